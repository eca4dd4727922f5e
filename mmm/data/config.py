"""The options of images and videos: where the data is, how it is read, and the shape of a sample."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from mmm.core.checks import AboveZero, CheckedConfig, Count, Positive, Rate, Share, ZeroToOne
from mmm.core.types import Input
from mmm.data.media import IMAGES, Medium
from mmm.data.transforms.augment import check_policy

# options that describe a source, and not the samples
OF_SOURCE = (
    *("source", "root", "list_columns", "weights", "split", "eval_split", "eval_source", "holdout"),
    *("label_column", "image_column", "video_column"),
)


@dataclass(frozen=True, kw_only=True)
class DataConfig(CheckedConfig):
    """Options that images and videos share.

    Splits: a source has named splits (from folders, file names or the hub); a source without names has the single split
    `train`. Training uses `split`. Evaluation uses `eval_split`, or else the first of validation, valid, val, eval, dev and test
    that exists; training then uses all samples of its split. If none exists, a share `holdout` of the training split is held out
    for evaluation, chosen by a hash of the sample's index that does not depend on the run's seed. With `eval_source`, evaluation
    uses `eval_split` of that source, or else its split for evaluation, or else all of its samples.
    """

    medium: ClassVar[Medium]

    source: str | None = None
    """The data."""
    root: str | None = None
    """Folder from which relative paths in a list file start. None: the list's own folder."""
    list_columns: tuple[str, ...] = ()
    """Names of the columns of a list file without a header, for instance path start end label. Possible names: path, label,
    start (number of the first frame), end (number of the last), total (number of frames), ignore. Empty: found by their
    content."""
    weights: tuple[Positive, ...] = ()
    """Number of training samples in each cycle from each of several sources (source a+b), for instance 3 1. Empty: one order
    over all samples."""
    split: str = "train"
    """Split to train on."""
    eval_split: str | None = None
    """Split to evaluate on. None: the source's split for evaluation, or samples that are held out if it has none."""
    eval_source: str | None = None
    """Source of the samples to evaluate on, for instance a separate list. Its labels must name classes of `source`. None:
    `source`."""
    holdout: Rate = 0.02
    """Share of the training split that is held out for evaluation if the source has no split for it."""
    label_column: str | None = None
    """Column of labels in a table. None: found by name or type."""
    image_size: Positive | tuple[Positive, Positive] = 224
    """Size of a sample in pixels: one number for a square, or height and width."""
    sides: tuple[Positive, ...] = ()
    """Several sizes in one run: sides in pixels. Each update (with `pack`, each sample) uses one of them, drawn at random from the
    seed; evaluation uses image_size. Empty: the side of image_size."""
    aspects: tuple[AboveZero, ...] = ()
    """Several aspect ratios (width over height) in one run, drawn like `sides`. Samples have about the area of a square of the
    side, and `crop_ratio` is relative to the aspect ratio. Empty: that of image_size."""
    keep_aspect: bool = False
    """Give each training sample the aspect ratio of its image, and at most the area of image_size or of one of `sides`. Only for
    images; needs `pack`."""
    size_step: Positive = 16
    """Divisor of the sides of samples in pixels, with `aspects` and `keep_aspect`; give the side of a token or a multiple of it."""
    pack: bool = False
    """Let the samples of a pretraining update differ in size. Transformer blocks process them as one sequence, in which the tokens
    of a sample attend only to tokens of the same sample."""
    channels: Positive = 3
    """Number of channels: 1 for grey, 3 for RGB, 4 for RGB and alpha. Any other number must be that of the files (.npy,
    .tiff)."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel, from 0 to 1, which is subtracted from the pixels."""
    std: tuple[AboveZero, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, from 0 to 1, by which the pixels are divided."""
    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    """Smallest and largest share of the image's area that a training crop covers."""
    crop_ratio: tuple[AboveZero, AboveZero] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a training crop before it is resized."""
    flip: ZeroToOne = 0.5
    """Probability that a training crop is flipped horizontally."""
    lighting: Rate = 0.0
    """Largest relative change of a training crop's contrast and brightness, uniformly distributed. 0: no change."""
    augment: str | None = None
    """RandAugment of training crops in timm's notation, for instance rand-m9-mstd0.5-inc1. It changes all frames of a clip in
    the same way. None: no RandAugment."""
    repeats: Positive = 1
    """Number of samples, with different crops, from each decoded input. An epoch decodes each input once."""
    resize: Literal["worker", "device"] = "worker"
    """Place where training crops are resized. worker: the process that decodes. device: the device of the model, which leaves
    worker processes more time to decode, above all with several crops per input. On a CPU, both give the same bits. On other
    devices, pixels differ by at most 1 of 255 on photographs and 2 at hard edges. Workers always resize samples of up to 48 pixels
    per side."""
    workers: Count = 2
    """Number of processes per rank that decode and crop. 0: the training process decodes, which is best for cached small
    images."""
    deadline: AboveZero = 60.0
    """Seconds after which a worker that reads an input is killed and the input counts as unreadable; there is no deadline without
    workers."""
    max_bad: ZeroToOne = 0.01
    """Largest share of unreadable samples; a run with more of them stops."""

    @property
    def flag(self) -> str:
        return "data"

    @classmethod
    def variant(cls, names: set[str]) -> type[DataConfig]:
        """Returns the first kind of data that has fields of all these names, or images if there is none."""
        kinds = cls.__subclasses__() or [cls]
        return next((kind for kind in kinds if names <= {field.name for field in fields(kind)}), kinds[0])

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a sample in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def varies(self) -> bool:
        """Returns whether training samples differ in size."""
        return bool(self.sides or self.aspects or self.keep_aspect)

    @property
    def size(self) -> tuple[int, ...]:
        """Size of a sample: (h, w), or (T, h, w)."""
        return self.frame_size

    @property
    def views(self) -> int:
        """Number of samples from each input in evaluation."""
        return 1

    @property
    def column(self) -> str | None:
        """Name of the table's column of samples; None if it is not given."""
        return None

    def source_options(self) -> dict[str, Any]:
        """Returns the options that describe the source: where it is, its splits and its columns."""
        names = {field.name for field in fields(self)}
        return {name: getattr(self, name) for name in OF_SOURCE if name in names}

    def input(self) -> Input:
        """The properties of the data that the parts of a model need.

        Raises:
            ValueError: a value cannot be used; the message names its field.
        """
        self.check()
        return Input(size=self.size, channels=self.channels, mean=self.mean, std=self.std, repeats=self.repeats)

    def check(self) -> None:
        """Raises ValueError for invalid values, naming the field."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise ValueError(f"data.{name} has {len(values)} values for data.channels {self.channels}; give one per channel")
        for name in ("crop_scale", "crop_ratio"):
            least, largest = getattr(self, name)
            if least > largest:
                raise ValueError(f"data.{name} {least:g} {largest:g}: give the smaller number first")
        if sum(self.weights) > 1000:
            raise ValueError(f"data.weights {' '.join(map(str, self.weights))} add up to more than 1000; give smaller numbers")
        if self.keep_aspect and (not self.pack or self.aspects or self.medium is not IMAGES):
            raise ValueError(
                "data.keep_aspect needs data.pack, because the samples of an update then differ in size; "
                "it is for images only, and cannot be combined with data.aspects"
            )
        if self.pack and not self.varies:
            raise ValueError("data.pack is for samples that differ in size; set data.sides, data.aspects or data.keep_aspect")
        if self.augment is not None:
            check_policy(self.augment, self.channels)
            if self.resize == "device":
                raise ValueError("data.resize device does not work with data.augment, which changes resized crops; set worker")


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(DataConfig):
    """Options of images."""

    medium: ClassVar[Medium] = IMAGES

    source: str | None = None
    """A folder of images (its sub-folders are the classes), image files (a path or glob), a list file of `path label` lines,
    parquet files, WebDataset tars (file, folder, glob, {000..146}), a .npy array, a folder of `Dataset.save_to_disk`, a name on the
    hub (with `:subset` if it has several), builtin:photographs, or registered:NAME (data from Python, see `register_source`). Tars
    are also read at https addresses; tars, parquet files and folders also at hf://, s3://, gs:// and other addresses that fsspec
    opens. a+b names several sources."""
    image_column: str | None = None
    """Column of images in a table. None: found by type."""
    cache: bool = False
    """Decode each image once when the data is opened, and keep the pixels in memory. For small images, because large JPEGs are then
    decoded at their full size; without it they are decoded at 1/2, 1/4 or 1/8 of it if samples are small enough."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a sample in pixels."""
        return self.frame_size

    @property
    def column(self) -> str | None:
        return self.image_column
