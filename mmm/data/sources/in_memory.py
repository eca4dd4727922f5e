"""Sources from Python: arrays, lists of files or images, and data sets of torch or Hugging Face; and `.npy` files.

`register_source` gives such data a name for `data.source`, in a script or in a file that `--use` imports:

    register_source("cats", {"train": train_set, "test": test_set})
    images = open_images(ImagesConfig(source="registered:cats"), "train")

Shapes: N samples, (H, W) of an image, C channels.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmm.core.checks import suggest
from mmm.data.config import DataConfig
from mmm.data.decode.image import accepted_channels
from mmm.data.errors import Unreadable
from mmm.data.media import IMAGES
from mmm.data.sources.base import Column, Table, number_labels
from mmm.data.sources.folder import FileSource
from mmm.data.sources.huggingface import LABELS, dataset_table
from mmm.system.files import digest

logger = logging.getLogger(__name__)

CHECKED = 16  # samples whose content enters the fingerprint
COLUMNS = ("image", "img", "pixel_values", "video")  # names of the image or video in samples that are mappings
_registered: dict[str, object] = {}


def register_source(name: str, data: object) -> None:
    """Registers data under a name, so that `data.source registered:NAME` opens it in this process.

    Args:
        name: name of the source.
        data: one of the following, a mapping of splits (train, test, ...) to such data, or a function that returns it, called
            when the source is opened:

            - a torch map-style data set whose samples are images, tuples of an image and a label, or mappings of columns; an
              attribute `targets` or `labels` with as many values as samples is used as the labels, and `classes` as their names;
            - a Hugging Face `Dataset` or `DatasetDict`;
            - a list of files or images, or of tuples of one of them and a label; a single file or image;
            - an array or tensor of images, (N, H, W), (N, H, W, C) or (N, C, H, W).

            An image is a path, encoded bytes, a Pillow image, or an array or tensor in either channel order, with uint8, uint16 or
            floating point values from 0 to 1. An index must return the same image each time: mmm makes the crops and flips.
    """
    _registered[name] = data


class RegisteredSource:
    """Data that `register_source` registered.

    Raises:
        ValueError: nothing is registered under the name.
    """

    def __init__(self, name: str, config: DataConfig) -> None:
        if name not in _registered:
            hint = f"give the file that calls register_source with --use{suggest(name, _registered)}"
            raise ValueError(f"data.source registered:{name}: nothing is registered under this name; {hint}")
        data: Any = _registered[name]
        if isinstance(data, Callable) and not hasattr(data, "__getitem__"):  # type: ignore[arg-type]
            data = data()
        self.name, self.config = name, config
        self.data: Mapping[str, Any] = data if isinstance(data, Mapping) else {"train": data}
        self.splits = tuple(self.data)

    def table(self, split: str) -> Table:
        """Returns the samples of one split.

        Raises:
            ValueError: the data is of none of the kinds that `register_source` lists.
        """
        title, data, config = f"registered:{self.name}", self.data[split], self.config
        if isinstance(data, Tensor):
            data = data.detach().cpu()
            data = (data.float() if data.is_floating_point() else data).numpy()
        if isinstance(data, np.ndarray):
            return array_table(data, split, config, title)
        if "datasets" in sys.modules and isinstance(data, sys.modules["datasets"].Dataset):
            return dataset_table(data, split, (config.column, config.label_column), config.medium)
        if isinstance(data, str | Path | Image.Image):
            data = [data]
        if isinstance(data, Sequence) and data and all(isinstance(item, str | Path) for item in data):
            return FileSource([Path(item) for item in data], config.medium).table("train")
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise ValueError(f"data.source {title}: a {type(data).__name__} has no length or no index; give a map-style data set")
        column = ItemColumn(data, split, config)
        labels, classes = _labels(column, title)
        contents = [_content(column, row) for row in _spread(len(data))]
        return Table(column, labels, classes, digest([split, len(data), *contents, *([] if labels is None else labels.tolist())]))


class ArrayColumn:
    """Images of one size in one array, which may be a memory-mapped file.

    Args:
        values: (N, H, W), (N, H, W, C) or (N, C, H, W).
        names: names of the images, or the first word of all names.
    """

    def __init__(self, values: NDArray[Any], names: Sequence[str] | str) -> None:
        self.values, self.names = values, names

    def __getstate__(self) -> dict[str, Any]:
        """Replaces a memory-mapped array by the name of its file."""
        file = getattr(self.values, "filename", None)
        return self.__dict__ | ({} if file is None else {"values": file})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not isinstance(self.values, np.ndarray):
            self.values = np.load(self.values, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> NDArray[Any]:
        return np.array(self.values[row])

    def name(self, row: int) -> str:
        """See `Column.name`."""
        return f"{self.names} row {row}" if isinstance(self.names, str) else self.names[row]


def array_table(values: NDArray[Any], split: str, config: DataConfig, title: str) -> Table:
    """Returns the images of an array: a stack of images, or a single image, (H, W) or with its channels last or first.

    Raises:
        ValueError: the config is for videos, or the array has another number of axes.
    """
    if config.medium is not IMAGES:
        raise ValueError(f"data.source {title}: an array holds images; give files of {config.medium.noun}")
    last = accepted_channels(config.channels)
    if values.ndim == 2 or (values.ndim == 3 and (values.shape[2] in last or values.shape[0] == config.channels)):
        values = values[None]
    if values.ndim not in (3, 4):
        raise ValueError(f"data.source {title} has shape {values.shape}; images are (N, H, W), (N, H, W, C) or (N, C, H, W)")
    column = ArrayColumn(values, split)
    contents = [_content(column, row) for row in _spread(len(values))]
    return Table(column, None, None, digest([split, values.shape, values.dtype, *contents]))


class ArrayFile:
    """A `.npy` file of images, which is memory-mapped."""

    splits: tuple[str, ...] = ("train",)

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path, self.config = path, config

    def table(self, split: str) -> Table:
        """Returns the images, without labels.

        Raises:
            ValueError: the file does not contain an array of images.
        """
        try:
            values = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"data.source {self.path} cannot be read: {error}") from error
        if not isinstance(values, np.ndarray):
            raise ValueError(f"data.source {self.path} is an archive of arrays; give a single array (.npy)")
        return array_table(values, split, self.config, str(self.path))


class ItemColumn:
    """The samples of a list or of a map-style data set, read when they are needed.

    Args:
        items: an object with a length and an index.
        split: first word of the samples' names.
        config: names the columns of samples that are mappings.
    """

    def __init__(self, items: Any, split: str, config: DataConfig) -> None:
        self.items, self.split, self.config = items, split, config
        for item in items if isinstance(items, Sequence) else ():
            with suppress(Exception):  # an image that cannot be read is reported when it is decoded
                if isinstance(image := self._parts(item)[0], Image.Image):
                    image.load()  # here, because worker processes would share the position in its file

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        sample = self._read(row)[0]
        if self.config.medium is not IMAGES and not isinstance(sample, str | Path | bytes):
            raise Unreadable(f"is a {type(sample).__name__}; a path or encoded bytes are expected")
        return Path(sample) if isinstance(sample, str) else sample

    def label(self, row: int) -> Any:
        """Returns the label of a sample: a whole number, a name, or None."""
        return self._read(row)[1]

    def name(self, row: int) -> str:
        sample = self._parts(self.items[row])[0] if isinstance(self.items, Sequence) else None
        return str(sample) if isinstance(sample, str | Path) else f"{self.split} row {row}"

    def _read(self, row: int) -> tuple[Any, Any]:
        try:
            return self._parts(self.items[row])
        except Exception as error:  # the data set is the user's code
            raise Unreadable(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error

    def _parts(self, item: Any) -> tuple[Any, Any]:
        """Returns the image or video of a sample, and its label or None."""
        if isinstance(item, Mapping):
            name, label = self.config.column, self.config.label_column
            key = name or next((key for key in COLUMNS if key in item), "image")
            return item[key], item.get(label or next((key for key in LABELS if key in item), ""))
        return (item[0], item[1] if len(item) > 1 else None) if isinstance(item, tuple) else (item, None)


def _labels(column: ItemColumn, title: str) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Returns labels int64 (N,), -1 for samples without one, and the names of the classes.

    Raises:
        ValueError: the names of the classes, or the labels, are of another kind.
    """
    items = column.items
    found: list[Any] = [getattr(items, name, None) for name in ("targets", "labels")]
    values: Any = next((value for value in found if _is_column(value) and len(value) == len(items)), None)
    if values is None:
        if len(items) == 0 or _label(column, 0) is None:
            return None, None
        if not isinstance(items, Sequence):
            logger.info("data.source %s: each sample is read to get its label; an attribute `targets` avoids this", title)
        values = [_label(column, row) for row in range(len(items))]
    names: Any = getattr(items, "classes", None)
    if isinstance(names, np.ndarray):
        names = names.tolist()
    if names is not None and not (_is_column(names) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"data.source {title}: `classes` is {names!r:.80}; give a list of names, one of each class, or None")
    return number_labels([_plain(value) for value in values], names, f"data.source {title}: a label")


def _is_column(value: Any) -> bool:
    """Returns whether a value is a sequence, or an array or tensor with one axis, and not a text."""
    if isinstance(value, str | bytes | Mapping) or callable(value) or getattr(value, "ndim", 1) != 1:
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _label(column: ItemColumn, row: int) -> Any:
    try:
        return column.label(row)
    except Unreadable:
        return None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | np.ndarray | Tensor) and math.prod(value.shape) == 1 else value


def _spread(count: int) -> Iterable[int]:
    return range(0, count, max(1, count // CHECKED))


def _content(column: Column, row: int) -> str:
    """Returns a hash of a sample: of its content, of the path of a file, or of the kind of error if it cannot be read."""
    try:
        sample = column[row]
        if isinstance(sample, Tensor):
            sample = sample.detach().cpu().float().numpy()
        content = sample if isinstance(sample, bytes) else str(sample).encode() if isinstance(sample, Path) else sample.tobytes()
    except Exception as error:
        content = type(error).__name__.encode()
    return digest([content.hex()])
