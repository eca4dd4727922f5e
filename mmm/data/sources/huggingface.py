"""Tables of images or videos, read with Hugging Face `datasets`: parquet files, saved data sets, data sets on the hub.

Rows stay encoded. `datasets` writes an Arrow copy of a parquet file into its cache once (in HF_HOME) and maps it into memory. A
value is then read from the Arrow column, without the decoding and formatting of `datasets` (measured: 1.2 us instead of 140 us
per row).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from mmm.core.checks import suggest
from mmm.data.errors import Unreadable
from mmm.data.media import IMAGES, Medium
from mmm.data.sources.base import EVALUATION, Table, number_labels
from mmm.system.files import digest

if TYPE_CHECKING:
    from datasets import Dataset

SHARD = re.compile(r"(.+?)-\d+-of-\d+")  # train-00000-of-00005
LABELS = ("label", "labels", "fine_label", "class", "target")


class ArrowColumn:
    """One column of a data set: encoded bytes or paths.

    Args:
        rows: the data set, mapped into memory.
        column: the name of the column of samples.
        title: first word of the samples' names.
        root: the folder that must contain the paths in the table. None: any path is accepted, because the hub library wrote it.
            An address: the table is at this address, and must not contain paths.
    """

    def __init__(self, rows: Dataset, column: str, title: str, root: Path | str | None) -> None:
        self.rows, self.column, self.title, self.root = rows, column, title, root
        self._values = rows.data.column(column)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the Arrow column, which would be copied. The data set is sent as the names of its files."""
        return {key: value for key, value in self.__dict__.items() if key != "_values"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._values = self.rows.data.column(self.column)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, row: int) -> bytes | Path:
        stored = self._values[row].as_py()
        data = stored.get("bytes") if isinstance(stored, dict) else stored
        value = stored.get("path") if data is None and isinstance(stored, dict) else data
        if value is None or value == "":
            raise Unreadable("the cell is empty")
        return value if isinstance(value, bytes) else self._path(value)

    def _path(self, name: str) -> Path:
        if self.root is None:
            return Path(name)
        if isinstance(self.root, str):
            raise Unreadable(f"the table names the file {name}; a table at an address must hold the bytes")
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise Unreadable(f"the table names {name}, which is not below its folder")
        return path

    def name(self, row: int) -> str:
        stored = self._values[row].as_py()
        path = stored.get("path") if isinstance(stored, dict) else stored if isinstance(stored, str) else None
        return f"{self.title} row {row}" + (f" ({path})" if path else "")


class Parquet:
    """Parquet files. The split of a file is the start of its name (train-00000-of-00005.parquet), the name of its folder, or
    `train`.

    Args:
        files: their paths or addresses, sorted, and their sizes in bytes.
        root: the folder that holds them, or the address that was given.
        column, label_column: the columns of samples and labels, if they are named.
        medium: images or videos.
    """

    def __init__(
        self, files: Mapping[str, int], root: Path | str, column: str | None, label_column: str | None, medium: Medium = IMAGES
    ) -> None:
        self.sizes, self.root, self.columns, self.medium = files, root, (column, label_column), medium
        self.files: dict[str, list[str]] = {}
        for file in files:
            self.files.setdefault(_split_of(PurePath(file)), []).append(file)
        self.splits = tuple(self.files)

    def rows(self, split: str) -> tuple[Dataset, Path | str | None, str]:
        """Reads one split, and only its files. Returns its rows, the root of paths in them, and a fingerprint."""
        from datasets import load_dataset

        files = self.files[split]
        rows = _load(f"{self.root} cannot be read", lambda: load_dataset("parquet", data_files={split: files}, split=split))
        return rows, self.root, digest([split, len(rows), *((PurePath(file).name, self.sizes[file]) for file in files)])

    def table(self, split: str) -> Table:
        """Returns the samples of one split."""
        rows, root, fingerprint = self.rows(split)
        return dataset_table(rows, split, self.columns, self.medium, root=root, fingerprint=fingerprint)


class Hub:
    """A data set on the Hugging Face hub, `owner/name` or `owner/name:subset`. Code of a data set is never run."""

    def __init__(self, name: str, column: str | None, label_column: str | None, medium: Medium = IMAGES) -> None:
        from datasets import get_dataset_split_names

        self.name, self.columns, self.medium = name, (column, label_column), medium
        path, _, subset = name.partition(":")
        self.path, self.subset = path, subset or None
        names = _load(
            f"{name} is not a path here, and cannot be read from the hub", lambda: get_dataset_split_names(self.path, self.subset)
        )
        self.splits = tuple(str(split) for split in names)

    def rows(self, split: str) -> tuple[Dataset, Path | str | None, str]:
        """Downloads one split, or reads it from the cache; returned as by `Parquet.rows`."""
        from datasets import load_dataset

        rows = _load(f"{self.name} cannot be read from the hub", lambda: load_dataset(self.path, self.subset, split=split))
        return rows, None, digest([self.name, split, len(rows), sorted(rows.features.items())])

    def table(self, split: str) -> Table:
        """Returns the samples of one split."""
        rows, _, fingerprint = self.rows(split)
        return dataset_table(rows, split, self.columns, self.medium, fingerprint=fingerprint)


class SavedDataset:
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""

    def __init__(self, root: Path, column: str | None, label_column: str | None, medium: Medium = IMAGES) -> None:
        self.root, self.columns, self.medium = root, (column, label_column), medium
        listed = root / "dataset_dict.json"
        self.splits = tuple(json.loads(listed.read_text())["splits"]) if listed.exists() else ("train",)

    @staticmethod
    def is_at(root: Path) -> bool:
        """True if a folder contains a saved data set."""
        return (root / "dataset_dict.json").exists() or all((root / name).exists() for name in ("dataset_info.json", "state.json"))

    def rows(self, split: str) -> tuple[Dataset, Path | str | None, str]:
        """Maps one split into memory; paths in it must be below the folder. Returned as by `Parquet.rows`."""
        from datasets import load_from_disk

        folder = self.root / split if (self.root / "dataset_dict.json").exists() else self.root
        rows: Any = _load(f"{folder} cannot be read", lambda: load_from_disk(str(folder)))
        rows = _in_order(rows)
        return rows, self.root, digest([split, rows._fingerprint])

    def table(self, split: str) -> Table:
        """Returns the samples of one split."""
        rows, root, fingerprint = self.rows(split)
        return dataset_table(rows, split, self.columns, self.medium, root=root, fingerprint=fingerprint)


def _split_of(file: PurePath) -> str:
    shard = SHARD.fullmatch(file.stem)
    words = [shard[1]] if shard else [re.split(r"[-_.]", file.stem)[0], file.parent.name]
    known = [word for word in words if shard or word in ("train", *EVALUATION)]
    return known[0] if known else "train"


def _load(complaint: str, read: Callable[[], Any]) -> Any:
    """Calls `read` and converts errors of the library to one line that begins with `complaint`."""
    try:
        return read()
    except Exception as error:  # errors of a dozen types: not found, gated, no network, a damaged file, several subsets
        text = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"data.source {complaint}: {type(error).__name__}: {text[:400]}") from error


def dataset_table(
    rows: Dataset,
    split: str,
    columns: tuple[str | None, str | None],
    medium: Medium,
    *,
    root: Path | str | None = None,
    fingerprint: str | None = None,
) -> Table:
    """Returns the table of one split of a data set of `datasets`.

    Args:
        rows: the split.
        split: its name.
        columns: the columns of samples and labels, if they are named.
        medium: images or videos.
        root: see `ArrowColumn`.
        fingerprint: fingerprint of the samples. None: that of the data set.

    Raises:
        ValueError: the column of the samples cannot be found, or labels are neither whole numbers nor names.
    """
    rows = _in_order(rows)
    column, label = _sample_column(rows, columns[0], medium), _label_column(rows, columns[1])
    labels = classes = None
    if label is not None:
        names = getattr(rows.features[label], "names", None)
        labels, classes = number_labels(rows.data.column(label).to_pylist(), names, f"data.label_column {label}")
    return Table(ArrowColumn(rows, column, split, root), labels, classes, fingerprint or digest([split, rows._fingerprint]))


def _in_order(rows: Dataset) -> Dataset:
    """Copies rows that were shuffled or selected, so that their Arrow columns have the same order."""
    if rows._indices is not None:
        rows = rows.flatten_indices()
    return rows


def _sample_column(rows: Dataset, name: str | None, medium: Medium) -> str:
    """Returns the named column, else the only one of the medium's type, else the only one of bytes."""
    import pyarrow.types as types

    if name is not None:
        if name not in rows.column_names:
            raise ValueError(f"{medium.flag} {name}: no such column{suggest(name, rows.column_names)}")
        return name
    kinds = {name: rows.data.schema.field(name).type for name in rows.column_names}
    found = [name for name, feature in rows.features.items() if type(feature).__name__ == medium.feature]
    found = found or [name for name, kind in kinds.items() if types.is_struct(kind) and kind.get_field_index("bytes") >= 0]
    found = found or [name for name, kind in kinds.items() if types.is_binary(kind) or types.is_large_binary(kind)]
    if len(found) != 1:
        several = f"holds several columns of {medium.noun} ({', '.join(found)})" if found else f"has no column of {medium.noun}"
        raise ValueError(f"data.source: the table {several}; name one with {medium.flag}: {', '.join(rows.column_names)}")
    return found[0]


def _label_column(rows: Dataset, name: str | None) -> str | None:
    """Returns the named column, else the first with a usual name, else the only one of class labels, else None."""
    if name is not None:
        if name not in rows.column_names:
            raise ValueError(f"data.label_column {name}: no such column{suggest(name, rows.column_names)}")
        return name
    usual = [name for name in LABELS if name in rows.column_names]
    classes = [name for name, feature in rows.features.items() if type(feature).__name__ == "ClassLabel"]
    return usual[0] if usual else classes[0] if len(classes) == 1 else None
