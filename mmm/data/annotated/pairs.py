"""Sources of images with maps: built-in scenes, folders of image and map files, and tables with two columns."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from mmm.core.checks import suggest
from mmm.data.annotated.config import DepthConfig, PairsConfig
from mmm.data.media import IMAGE_SUFFIXES
from mmm.data.sources import nuclei
from mmm.data.sources.base import EVALUATION, Column, Source, Table
from mmm.data.sources.builtin_images import photograph, photograph_path
from mmm.data.sources.folder import SIZES, FileColumn, LocalTree, files_below, printable
from mmm.data.sources.huggingface import ArrowColumn, Hub, Parquet, SavedDataset
from mmm.data.sources.in_memory import ArrayColumn
from mmm.data.sources.scenes import CLASSES, COUNTS, Scene, check_scenes, scenes, scenes_fingerprint
from mmm.system.files import digest

logger = logging.getLogger(__name__)

MAPS = ("annotations", "annotation", "masks", "mask", "labels", "label", "segmentation", "depth", "depths")  # folders and columns
# builtin:motorcycle, as documented by scikit-image: files, focal length in pixels, baseline in metres, and the distance of the two
# images' centres in pixels, by which disparities are shifted
FILE, DISPARITIES, FOCAL, BASELINE, SHIFT = "motorcycle_left.png", "motorcycle_disp.npz", 994.978, 0.193001, 31.086
HALVES = {"train": (0.0, 0.5), "test": (0.55, 1.0)}  # shares of the width
NAMES = "classes.txt"  # file beside images/ with the names of the classes, one per line
LISTED = 3  # largest number of names in a message


class PairColumn:
    """Pairs of an image and its map.

    Args:
        images, maps: columns of the same length.
    """

    def __init__(self, images: Column, maps: Column) -> None:
        assert len(images) == len(maps)
        self.images, self.maps = images, maps

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.images[row], self.maps[row]

    def name(self, row: int) -> str:
        """See `Column.name`."""
        return self.images.name(row)


class SceneColumn:
    """Rendered images, or one of their maps.

    Args:
        split: the split of the scenes.
        values: returns the pixels or a map of a scene, (T, S, S); its first frame is used.
    """

    def __init__(self, split: str, values: Callable[[Scene], Any]) -> None:
        self.split, self.values = split, values

    def __len__(self) -> int:
        return COUNTS[self.split]

    def __getitem__(self, row: int) -> Any:
        return self.values(scenes(self.split)[row])[0]

    def name(self, row: int) -> str:
        """See `Column.name`."""
        return f"{self.split} scene {row}"


class Scenes:
    """`builtin:scenes`, with masks or depths."""

    splits = tuple(COUNTS)

    def __init__(self, name: str, config: PairsConfig) -> None:
        check_scenes(name, config.channels)
        self.depth = isinstance(config, DepthConfig)

    def table(self, split: str) -> Table:
        """Returns the scenes of one split, a pure function of its name."""
        maps = SceneColumn(split, attrgetter("depth" if self.depth else "classes"))
        classes = None if self.depth else CLASSES
        return Table(PairColumn(SceneColumn(split, attrgetter("pixels")), maps), None, classes, scenes_fingerprint(split))


class Motorcycle:
    """`builtin:motorcycle`: the left photograph of scikit-image's stereo pair, with measured depths (Middlebury 2014).

    The left half is for training, and the right half, after a gap, for testing. Each is one image; training uses random crops.
    """

    splits = tuple(HALVES)

    def __init__(self, config: PairsConfig) -> None:
        if not isinstance(config, DepthConfig):
            raise ValueError("data.source builtin:motorcycle has depths and no masks; use it with mmm depth")

    def table(self, split: str) -> Table:
        """Returns the image of one split with its depths in metres, 0 for pixels without a measurement."""
        image = photograph(FILE)
        with np.load(photograph_path(DISPARITIES), allow_pickle=False) as stored:
            disparity = stored[stored.files[0]]
        with np.errstate(invalid="ignore"):
            depth = BASELINE * FOCAL / (disparity + SHIFT)  # metres; 0 where the disparity is infinite
        start, end = (round(share * image.width) for share in HALVES[split])
        pixels, metres = np.asarray(image)[:, start:end], depth[:, start:end].astype(np.float32)
        names = [f"{FILE}, columns {start} to {end}"]
        pairs = PairColumn(ArrayColumn(pixels[None], names), ArrayColumn(metres[None], names))
        return Table(pairs, None, None, digest([split, *names, float(np.nansum(metres))]))


class Nuclei:
    """`builtin:nuclei`, with masks of two classes: background and nucleus."""

    splits = tuple(nuclei.PARTS)

    def __init__(self, config: PairsConfig) -> None:
        if isinstance(config, DepthConfig):
            raise ValueError("data.source builtin:nuclei has masks and no depths; use it with mmm segment or mmm detect")
        nuclei.nuclei_folder()

    def table(self, split: str) -> Table:
        """Returns the tiles of one split."""
        tiles = nuclei.nuclei(split)
        pixels, masks = tiles.pixels, (tiles.instances > 0).astype(np.uint8)
        pairs = PairColumn(ArrayColumn(pixels, tiles.names), ArrayColumn(masks, tiles.names))
        return Table(pairs, None, nuclei.CLASSES, nuclei.nuclei_fingerprint(split))


class PairedFolders:
    """A folder of images and one of maps with the same relative paths, apart from suffixes.

    Sub-folders `training` and `train`, and those named in EVALUATION (`validation`, ...), are splits if both folders have them.

    Args:
        images, maps: the folders.
        root: folder that may contain the names of the classes (`classes.txt`).

    Raises:
        ValueError: the folders have no split in common.
    """

    def __init__(self, images: Path, maps: Path, root: Path) -> None:
        self.images, self.maps, self.root = images, maps, root
        found = LocalTree(images).folders()
        known = [name for name in found if name in ("train", "training", *EVALUATION)]
        others = [name for name in LocalTree(maps).folders() if name in known]
        if known and not others:
            raise ValueError(f"data.source: {images} has the splits {', '.join(known)}, and {maps} has none of these sub-folders")
        if left := sorted(set(known) - set(others)):
            logger.warning("%s: the splits %s have no maps in %s and cannot be used", images, ", ".join(left), maps)
        # the folder `training` is the split `train`, as `data.split` calls it
        self.folders = {("train" if name == "training" else name): f"{name}/" for name in others} or {"train": ""}
        self.splits = tuple(self.folders)

    def table(self, split: str) -> Table:
        """Pairs the files of a split. Files without a partner are counted and named in a warning.

        Raises:
            ValueError: there is no pair.
        """
        below = self.folders[split]
        images, maps = (_by_stem(folder, below) for folder in (self.images, self.maps))
        both = sorted(images.keys() & maps.keys())
        for mine, other, noun in ((images, maps, "images without a map"), (maps, images, "maps without an image")):
            if alone := sorted(mine.keys() - other.keys()):
                names = ", ".join(printable(mine[stem]) for stem in alone[:LISTED])
                more = ", ..." if len(alone) > LISTED else ""
                logger.warning("%s: %d %s are left out: %s%s", self.root, len(alone), noun, names, more)
        if not both:
            held = f"{self.images / below} ({len(images)} images) and {self.maps / below} ({len(maps)} maps)"
            raise ValueError(f"data.source: {held} have no file name in common; an image and its map differ in the suffix only")
        paths = [[files[stem] for stem in both] for files in (images, maps)]
        columns = [FileColumn(folder / below, own, below) for folder, own in zip((self.images, self.maps), paths, strict=True)]
        step = max(1, len(both) // SIZES)
        sizes = [
            LocalTree(folder / below).size(path)
            for folder, own in zip((self.images, self.maps), paths, strict=True)
            for path in own[::step]
        ]
        return Table(PairColumn(*columns), None, _class_names(self.root), digest([split, *paths[0], *paths[1], *sizes]))


def _by_stem(folder: Path, below: str) -> dict[str, str]:
    """Lists the images or maps below a folder by their relative paths without suffix.

    Raises:
        ValueError: two files differ in the suffix only.
    """
    found: dict[str, str] = {}
    for path in files_below(folder / below):
        stem, suffix = os.path.splitext(path)
        if suffix.lower() in IMAGE_SUFFIXES:
            if stem in found:
                raise ValueError(f"data.source: {folder / below} holds both {found[stem]} and {path}; keep one")
            found[stem] = path
    return found


def _class_names(root: Path) -> tuple[str, ...] | None:
    file = root / NAMES
    if not file.is_file():
        return None
    return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())


class PairedTable:
    """A table with a column of images and a column of maps.

    Args:
        source: the table.
        config: names columns that do not have the usual names.
    """

    def __init__(self, source: Parquet | Hub | SavedDataset, config: PairsConfig) -> None:
        self.source, self.config, self.splits = source, config, source.splits

    def table(self, split: str) -> Table:
        """Reads one split.

        Raises:
            ValueError: a column is missing.
        """
        rows, root, fingerprint = self.source.rows(split)
        names, image = rows.column_names, self.config.image_column or "image"
        if image not in names:
            raise ValueError(f"data.image_column {image}: no such column{suggest(image, names)}")
        maps = self.config.maps or next((name for name in MAPS if name in names), None)
        if maps is None or maps not in names:
            given = "is not set, and no column has a usual name" if maps is None else f"{maps}: no such column"
            raise ValueError(f"data.maps {given}; there are: {', '.join(names)}")
        columns = [ArrowColumn(rows, name, split, root) for name in (image, maps)]
        return Table(PairColumn(*columns), None, None, digest([fingerprint, image, maps]))


def find_pairs(config: PairsConfig) -> Source:
    """Opens the source that `data.source` names.

    Raises:
        ValueError: the source does not exist, or has no maps.
    """
    name = config.source
    if not name:
        raise ValueError("data.source is not set; give builtin:scenes, a folder with images/ and annotations/, or a table")
    if name == "builtin:motorcycle":
        return Motorcycle(config)
    if name == "builtin:nuclei":
        return Nuclei(config)
    if name.startswith("builtin:"):
        return Scenes(name.removeprefix("builtin:"), config)
    path = Path(name).expanduser()
    columns = (config.image_column, None)
    if path.is_dir() and SavedDataset.is_at(path):
        return PairedTable(SavedDataset(path, *columns), config)
    if path.is_dir() and (files := sorted(path.rglob("*.parquet"))):
        return PairedTable(Parquet({str(file): file.stat().st_size for file in files}, path, *columns), config)
    if path.suffix == ".parquet" and path.is_file():
        return PairedTable(Parquet({str(path): path.stat().st_size}, path.parent, *columns), config)
    if path.is_dir():
        return _folders(path, config)
    if name.startswith(("/", ".", "~")) or name.count("/") != 1 or path.exists():
        raise ValueError(f"data.source {name} does not exist, or is neither a folder nor parquet")
    return PairedTable(Hub(name, *columns), config)


def _folders(root: Path, config: PairsConfig) -> PairedFolders:
    inner = root / "images" if (root / "images").is_dir() else root
    if config.maps is not None:
        maps = Path(config.maps).expanduser()
        maps = maps if maps.is_dir() or maps.is_absolute() else root / maps
        if not maps.is_dir():
            raise ValueError(f"data.maps {config.maps} is not a folder")
        return PairedFolders(inner, maps, root)
    beside = [root / name for name in MAPS if (root / name).is_dir()]
    if inner == root or len(beside) != 1:
        held = ", ".join(LocalTree(root).folders()) or "no folders"
        expected = "images/ and one of annotations/, masks/, labels/ and depth/ are expected; or name the folder with data.maps"
        raise ValueError(f"data.source {root} holds {held}; {expected}")
    return PairedFolders(inner, beside[0], root)
