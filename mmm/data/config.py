"""What a user says about data: where it is, how it is read, what shape the model gets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from mmm.core.types import Input
from mmm.data.sources.base import IMAGES, Medium
from mmm.data.transforms.augment import check_policy


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What images and videos have in common: their labels where there are any, and how a sample is cut from one.

    Splits. A source has named splits (folders, file names or the hub say which); one without has the single split `train`.
    Training takes `split`. Evaluation takes `eval_split`, or else the first of validation, valid, val, eval, dev and test
    that exists; training then uses every sample of its split. Where none exists, `holdout` of the training split is set aside
    for evaluation, chosen by a hash of the sample's index that does not depend on the run's seed. With `eval_source`, evaluation
    takes `eval_split` of that, or its own split for evaluation, or all of it.
    """

    medium: ClassVar[Medium]

    source: str | None = None
    """where the data is"""
    root: str | None = None
    """folder from which relative paths in a list file start; None: the list's own folder"""
    weights: tuple[int, ...] = ()
    """of several sources (source a+b): how many of every so many training samples come from each, for instance 3 1; without it
    one order passes over all samples alike"""
    split: str = "train"
    """the split to train on"""
    eval_split: str | None = None
    """the split to evaluate on; none takes the source's own, or holds samples out"""
    eval_source: str | None = None
    """where the samples to evaluate on are, if not in the source, for instance a list of its own; its classes are the source's"""
    holdout: float = 0.02
    """share of the training split that is held out when the source has no split for evaluation"""
    label_column: str | None = None
    """the table's column of labels; none finds it, and does without where there is none"""
    image_size: int | tuple[int, int] = 224
    """of a sample, in pixels: one number for a square, or height and width"""
    channels: int = 3
    """1 is grey, 3 is RGB, 4 is RGB and alpha; any other number must be the file's own (.npy, .tiff)"""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """of each channel, in units of [0, 1]: subtracted from the pixels"""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """of each channel, in units of [0, 1]: what the pixels are divided by"""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """smallest and largest share of the picture's area that a training crop covers"""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """smallest and largest width over height of a training crop, before it is resized"""
    flip: float = 0.5
    """probability that a training crop is mirrored left to right"""
    lighting: float = 0.0
    """largest relative change of a training crop's contrast, and of its brightness, drawn evenly; 0 changes nothing"""
    augment: str | None = None
    """RandAugment of a training crop, of a clip alike on all frames, in timm's words, for instance rand-m9-mstd0.5-inc1;
    none: not"""
    repeats: int = 1
    """samples that are cut, each in its own way, from an input that is decoded once; an epoch decodes each input once"""
    resize: Literal["worker", "device"] = "worker"
    """where training crops are resized: worker, in the process that decoded them; device, where the model trains, so that with a
    GPU each core has more time to decode, above all with several crops of a decode. The same bits on a CPU; elsewhere at most 1
    of 255 off on photographs, 2 at hard edges; samples of up to 48 pixels a side are always resized by workers"""
    workers: int = 2
    """processes a rank that decode and crop; 0 does it in the training process, which is best for cached small images"""
    deadline: float = 60.0
    """seconds after which a worker that has not read an input is killed, and the input counts as unreadable; without
    workers there is no deadline"""
    max_bad: float = 0.01
    """largest share of the samples that may be unreadable before the run stops"""

    @classmethod
    def variant(cls, names: set[str]) -> type[DataConfig]:
        """Of the kinds of data, the first that has fields of all these names; images where none has."""
        kinds = cls.__subclasses__() or [cls]
        return next((kind for kind in kinds if names <= {field.name for field in fields(kind)}), kinds[0])

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a sample, pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def size(self) -> tuple[int, ...]:
        """Of a sample: (h, w), or (T, h, w)."""
        return self.frame_size

    @property
    def views(self) -> int:
        """Samples that an input gives in evaluation."""
        return 1

    @property
    def column(self) -> str | None:
        """The table's column of samples, where it is named."""
        return None

    def input(self) -> Input:
        """What the parts must know of the data.

        Raises:
            ValueError: naming the field whose value cannot be used.
        """
        self.check()
        return Input(size=self.size, channels=self.channels, mean=self.mean, std=self.std)

    def check(self) -> None:
        """Raises ValueError, naming the field, for values that make no sense."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise ValueError(f"data.{name} has {len(values)} values for data.channels {self.channels}; give one a channel")
        rules = {
            "image_size": min(self.frame_size) >= 1,
            "std": min(self.std, default=1.0) > 0,
            "crop_scale": 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
            "crop_ratio": 0 < self.crop_ratio[0] <= self.crop_ratio[1],
            "flip": 0 <= self.flip <= 1,
            "lighting": 0 <= self.lighting < 1,
            "holdout": 0 <= self.holdout < 1,
            "max_bad": 0 <= self.max_bad <= 1,
            "channels": self.channels >= 1,
            "repeats": self.repeats >= 1,
            "workers": self.workers >= 0,
            "deadline": self.deadline > 0,
            "weights": min(self.weights, default=1) >= 1 and sum(self.weights) <= 1000,
        }
        for name, fine in rules.items():
            if not fine:
                raise ValueError(f"data.{name} cannot be {getattr(self, name)}: {RANGES[name]}")
        if self.augment is not None:
            check_policy(self.augment, self.channels)
            if self.resize == "device":
                raise ValueError("data.resize cannot be device with data.augment, which works on resized crops; set worker")


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(DataConfig):
    """Images."""

    medium: ClassVar[Medium] = IMAGES

    source: str | None = None
    """a folder of images (its sub-folders are the classes), parquet or WebDataset tars (file, folder, glob, {000..146}, for
    tars https addresses too), a name on the hub, or builtin:photographs; a hub name may end in `:subset`; a+b takes several"""
    image_column: str | None = None
    """the table's column of images; none finds it"""
    cache: bool = False
    """decode each image once, when the data is opened, and keep the pixels in memory (for small images: whole ones, where
    a large JPEG would else be decoded at a half, a quarter or an eighth, whatever a sample needs)"""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a sample, pixels."""
        return self.frame_size

    @property
    def column(self) -> str | None:
        return self.image_column


RANGES = {
    "image_size": "give at least 1 pixel",
    "std": "give numbers above 0",
    "crop_scale": "give a smallest and a largest share above 0, of at most 1",
    "crop_ratio": "give a smallest and a largest ratio above 0",
    "flip": "give a probability from 0 to 1",
    "lighting": "give a share of at least 0, below 1",
    "holdout": "give a share of at least 0, below 1",
    "max_bad": "give a share from 0 to 1",
    "channels": "give at least 1",
    "repeats": "give at least 1",
    "workers": "give at least 0",
    "deadline": "give a number of seconds above 0",
    "weights": "give whole numbers of at least 1, of at most 1000 together",
}
