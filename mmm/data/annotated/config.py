"""Options of images with annotations."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Annotated, ClassVar

from mmm.core.checks import AboveZero, Limit, Positive, Share
from mmm.data.config import DataConfig
from mmm.data.media import IMAGES, Medium

# options of whole images that annotated images do not have; a value other than the default is refused
UNUSED = (
    *("root", "weights", "eval_source", "label_column", "crop_scale", "crop_ratio", "augment", "repeats", "resize"),
    *("sides", "aspects", "keep_aspect", "pack"),
)


@dataclass(frozen=True, kw_only=True)
class AnnotatedConfig(DataConfig):
    """Options that all images with annotations share."""

    medium: ClassVar[Medium] = IMAGES

    scale: tuple[AboveZero, AboveZero] = (0.5, 2.0)
    """Smallest and largest scale of a training image before it is cropped to `image_size`, uniformly distributed. At scale 1, its
    shorter side (for objects: its longer side) is as long as that of the crop."""
    photometric: bool = False
    """Change brightness, contrast, saturation and hue of training crops, each for half of them (SSD's photometric distortion)."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a training crop in pixels."""
        return self.frame_size

    def check(self) -> None:
        """Raises ValueError for invalid values, and for options of whole images."""
        super().check()
        defaults = {field.name: field.default for field in fields(DataConfig) if field.default is not MISSING}
        for name in UNUSED:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"data.{name} {getattr(self, name)}: images with annotations have no such option; leave it out")
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"data.scale {self.scale[0]:g} {self.scale[1]:g}: give the smaller factor first")
        if self.photometric and self.channels != 3:
            raise ValueError(f"data.photometric changes colours, and data.channels is {self.channels}; use data.lighting")


@dataclass(frozen=True, kw_only=True)
class PairsConfig(AnnotatedConfig):
    """Options of images with a map of the same size: a number for each pixel."""

    source: str | None = None
    """Images and their maps: builtin:scenes (rendered); for masks also builtin:nuclei (a micrograph), for depths
    builtin:motorcycle (a photograph); a folder with images/ and annotations/ (or masks/, labels/, depth/), which contain the same
    file names and the same sub-folders for splits (ADE20K's layout); a folder of images, with `maps`; or parquet files, a folder
    of `Dataset.save_to_disk` or a name on the hub, with a column of images and one of maps."""
    maps: str | None = None
    """Folder of the maps, or their column in a table. None: found by its usual name."""
    image_column: str | None = None
    """Column of images in a table. None: `image`."""
    whole_maps: bool = False
    """Evaluate each image as a whole. False: evaluate windows of `image_size` that overlap by a third, and average their scores."""

    @property
    def column(self) -> str | None:
        return self.image_column


@dataclass(frozen=True, kw_only=True)
class MasksConfig(PairsConfig):
    """Options of images with a class for each pixel."""

    classes: Annotated[int, Limit("from 1 to 65,534", lambda value: 1 <= value <= 65534)] | None = None
    """Number of classes. None: the number of classes that the source names, or one more than the largest label of all training
    masks, which are then read."""
    ignore: int = 255
    """Label of pixels that are neither trained on nor evaluated."""
    zero_is_ignored: bool = False
    """Ignore label 0 too; label 1 is then the first class (ADE20K)."""
    largest_class: Share = 0.75
    """Largest share of the labelled pixels of a crop that one class may cover. If it covers more, another crop is drawn, at most
    ten times."""


@dataclass(frozen=True, kw_only=True)
class DepthConfig(PairsConfig):
    """Options of images with a depth for each pixel."""

    unit: AboveZero = 0.001
    """Metres for each unit of a map of whole numbers (a 16-bit PNG); maps of floating point numbers are in metres."""
    range: tuple[AboveZero, AboveZero] = (0.001, 10.0)
    """Smallest and largest depth in metres; pixels of other depths are neither trained on nor evaluated."""

    def check(self) -> None:
        """Raises ValueError for invalid values, naming the field."""
        super().check()
        if not self.range[0] < self.range[1]:
            raise ValueError(f"data.range {self.range[0]:g} {self.range[1]:g}: give the smaller depth first")


@dataclass(frozen=True, kw_only=True)
class ObjectsConfig(AnnotatedConfig):
    """Options of images with boxes and masks of objects."""

    source: str | None = None
    """Images and their objects: builtin:scenes (rendered); builtin:nuclei (a micrograph); COCO's folder, with
    annotations/instances_SPLIT.json and SPLIT/ (or images/SPLIT/); or a folder of images, with `annotations`."""
    annotations: str | None = None
    """Annotation file of the images in `source`, in COCO's format. None: annotations/instances_SPLIT.json."""
    classes: Positive | None = None
    """Number of classes; found when the data is opened, and kept in the run's config."""
    one_class: bool = False
    """Give all objects the same class, `object`, so that the detector finds objects without classifying them."""
