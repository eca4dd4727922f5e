"""The base class of formats of weights, and the list of all formats.

A format is a class with `detect`, `read` and `write`, registered under its name; docs/adding_a_part.md shows one. `mmm.load` calls
`detect` of each format in the order of the list; `mmm export --to NAME` writes in the format of that name.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file
from torch import Tensor

from mmm.classifier import Classifier
from mmm.config.serialize import to_dict
from mmm.core.checks import nearest
from mmm.core.types import Input
from mmm.dense.detector import Detector
from mmm.dense.segmenter import Segmenter
from mmm.model import MaskedModel
from mmm.system.files import write_json
from mmm.targets.teachers import LIBRARIES
from mmm.weights.matching import shorten_list
from mmm.weights.safe_load import read_weights

logger = logging.getLogger(__name__)

Model = MaskedModel | Classifier | Segmenter | Detector

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"  # names of files of weights in a folder, as on the hub
PATHS = ("teacher", "source")  # options of parts that may be paths of this machine
FILE = "checkpoint.pth"  # name of the file of weights in official layouts; that of I-JEPA ends with .tar
NAMES = (WEIGHTS, PICKLED, FILE, f"{FILE}.tar")


def find_input(size: tuple[int, ...], channels: int, mean: Any = None, std: Any = None) -> Input:
    """Returns the size and normalisation of samples. Without mean and std, ImageNet's values are assumed for 3 channels, and no
    normalisation otherwise."""
    if mean is not None and std is not None:
        return Input(size=size, channels=channels, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    if channels == 3:
        return Input(size=size)
    return Input(size=size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)


@dataclass(frozen=True)
class Stored:
    """Stored weights whose format is not known yet.

    Attributes:
        path: a folder or a file that exists.
    """

    path: Path

    @property
    def folder(self) -> Path:
        """The folder itself, or the folder of the file."""
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def file(self) -> Path:
        """The file of weights: the path itself, or the file in the folder.

        Raises:
            ValueError: the folder contains no such file.
        """
        if not self.path.is_dir():
            return self.path
        for name in NAMES:
            if (self.path / name).is_file():
                return self.path / name
        raise ValueError(f"{self.path} is not a run folder (no config.yaml), and it contains none of {', '.join(NAMES)}")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, on the CPU."""
        return read_weights(self.file)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of the config.json beside the weights. Empty if there is none, or if the name of the file is unusual."""
        return self._json(CONFIG)

    @cached_property
    def processor(self) -> dict[str, Any]:
        """The content of the preprocessor_config.json beside the weights, under the same conditions."""
        return self._json(PROCESSOR)

    def input(self, size: tuple[int, ...], channels: int) -> Input:
        """Returns the properties of samples of this size. mean and std are those of preprocessor_config.json, or those that
        `find_input` assumes."""
        return find_input(size, channels, self.processor.get("image_mean"), self.processor.get("image_std"))

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if (self.path.is_file() and self.path.name not in NAMES) or not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path} does not contain names and values")
        return found

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Properties that files do not contain and that a user may give; see `mmm.load`. None: not given."""

    heads: int | None = None
    decoder_heads: int | None = None
    image_size: int | tuple[int, int] | None = None
    frames: int | None = None
    norm_pix: bool | None = None
    predict: float | None = None
    fusion_blocks: tuple[int, ...] | None = None

    def given(self) -> dict[str, Any]:
        """Returns the options that are not None, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


class Format:
    """A format of stored models.

    Attributes:
        name: name in the list.
        title: name in messages, for instance "MAE's layout".
        options: names of the `Options` that `read` uses; other options are refused.
        dense: whether `write` supports models with an output for each pixel or object.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    options: ClassVar[frozenset[str]] = frozenset()
    dense: ClassVar[bool] = False

    def detect(self, stored: Stored) -> bool:
        """Returns whether the weights have this format."""
        raise NotImplementedError

    def read(self, stored: Stored, options: Options) -> Model:
        """Returns the model. Every tensor is used, or reported in an error or a warning.

        Raises:
            ValueError: tensors are missing, unexpected or have a wrong shape; one line names them.
        """
        raise ValueError(f"{stored} is {self.title}, which can be exported, but not loaded")

    def leave_out(
        self, stored: Stored, *beginnings: str, reason: str, what: str = "head", tensors: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Returns the tensors without those of a part, and logs a warning that names this part.

        Args:
            beginnings: prefixes of the part's names.
            reason: the reason why the part cannot be used.
            what: name of the part.
            tensors: the tensors, if their names differ from those in the file.
        """
        tensors = stored.tensors if tensors is None else tensors
        left = [name for name in tensors if name.startswith(beginnings)]
        if left:
            logger.warning("%s: the %s is left out (%s), because %s", stored, what, shorten_list(left), reason)
        return {name: value for name, value in tensors.items() if name not in left}

    def report(self, stored: Stored, tensors: Mapping[str, Tensor], about: str, assumed: str) -> None:
        """Logs the tensors that were read, and the assumed properties that the file does not contain."""
        logger.info("%s: %s, all %d weights used; %s; assumed: %s", stored, self.title, len(tensors), about, assumed)

    def write(self, model: Model, folder: Path) -> list[str]:
        """Writes a model into an empty folder, and returns the lines of Python that load it.

        Raises:
            ValueError: the format does not support a property of the model, which the message names. Raised before writing.
        """
        raise ValueError(f"{self.title} can be loaded, but not exported; use the files that it came from")

    def usage(self, model: Model) -> list[str]:
        """Returns lines of Python that call the model after the lines of `write`. Default: none, as those only load tensors."""
        return []


def shape_of(model: Model) -> str:
    """Returns the shape of a model's samples: "(B, C, H, W)" or "(B, C, T, H, W)"."""
    return "(B, C, H, W)" if len(model.tokenizer.size) == 2 else "(B, C, T, H, W)"


FORMATS: dict[str, Format] = {}
"""The formats by name, in the order of detection."""


def register(name: str) -> Callable[[type[Format]], type[Format]]:
    """Returns a decorator that adds a format to the list.

    Raises:
        ValueError: the name is used already.
    """

    def add(kind: type[Format]) -> type[Format]:
        if name in FORMATS:
            raise ValueError(f"two formats of weights are called {name!r}")
        kind.name = name
        FORMATS[name] = kind()
        return kind

    return add


def write_folder(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes weights and config.json into a folder, as timm and transformers do."""
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    write_json(folder / CONFIG, config)


def data_of(model: Model) -> Input:
    """Returns the size and normalisation of a model's samples.

    Raises:
        ValueError: the model has no such properties.
    """
    if model.data is None:
        raise ValueError(
            f"this model lacks the properties of its data; build it as {type(model).__name__}(..., data=Input(size=...))"
        )
    return model.data


def public_config(part: Any) -> Any:
    """Returns the config of a part as plain values, to be published: paths of teachers and vocabularies lack the folders of this
    machine. Only a training reads these files, and `mmm.load` does not."""
    return _published(to_dict(getattr(part, "config", None)))


def _published(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _published(one, key) for key, one in value.items()}
    return without_folders(value) if name in PATHS and isinstance(value, str) else value


def without_folders(name: str) -> str:
    """Returns the last name of a path of this machine, also in `timm:PATH`. Other names are returned unchanged."""
    library, _, rest = name.partition(":")
    path = rest if library in LIBRARIES else name
    local = path.startswith(("/", "~", ".")) or Path(path).exists()
    return name.removesuffix(path) + Path(path).name if local else name


def written_formats() -> list[str]:
    """Returns the names of the formats in which models can be written."""
    return [name for name, form in FORMATS.items() if type(form).write is not Format.write]


def find_format(name: str) -> Format:
    """Returns the format of this name.

    Raises:
        ValueError: there is no such format; the message lists the formats that can be written and names the nearest.
    """
    if name not in FORMATS:
        names = written_formats()
        raise ValueError(f"--to {name}: no such format; choose from {', '.join(names)}{nearest(name, names)}")
    return FORMATS[name]
