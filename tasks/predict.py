"""Classify images or videos with a fine-tuned model, or predict the classes of pixels, or detect objects.

    mmm predict runs/finetune-1 photograph.jpg
    mmm predict runs/finetune-1 holiday_pictures --top 3 --out predictions.csv
    mmm predict runs/finetune-1 /data/imagenet --split val
    mmm predict runs/finetune-1 video.mp4 --eval_clips 5 --eval_crops 3 --out predictions.json
    mmm predict runs/segment-1 holiday_pictures --masks masks
    mmm predict runs/detect-1 holiday_pictures --masks masks --out objects.json

A source is a file, a folder, a list, or any other source of training data. The probabilities of a video are the mean over its
clips and crops. If the inputs of a classifier have labels, for instance sub-folders, the accuracy is printed too. For a segmenter,
the share of each class in an image is printed, and for a detector, the objects.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mmm
from mmm.classifier import Classifier
from mmm.core.checks import CheckedConfig, Count, Positive, ZeroToOne
from mmm.data import Clips, ClipsConfig, DataConfig, Images, ImagesConfig, open_data
from mmm.data.datasets.detect import with_split
from mmm.data.errors import Unreadable
from mmm.data.loading.loader import eval_batches
from mmm.data.transforms.crop import normalise
from mmm.dense.detector import Detector
from mmm.dense.segmenter import Segmenter
from mmm.evaluate.dense.predict import dense_row
from mmm.evaluate.features.table import inference
from mmm.evaluate.loaded_model import choose_device
from mmm.evaluate.metrics import Tally, mean_of_views
from mmm.model import MaskedModel
from mmm.system.files import write_json

logger = logging.getLogger(__name__)

POSITIONAL = "inputs"
PRINTED = 50  # number of rows that are printed; the file contains all rows


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Classify images or videos."""

    inputs: tuple[str, ...] = ()
    """The model, then one or more sources: image or video files, folders, lists of files, parquet files, names on the hub."""

    top: Positive = 5
    """Number of classes to print, in order of probability."""

    out: str | None = None
    """File for all rows: .csv or .json. None: no file."""

    split: str | None = None
    """Split of the sources, for instance val. None: the only split."""

    root: str | None = None
    """Folder from which relative paths in a list file start. None: the list's own folder."""

    list_columns: tuple[str, ...] = ()
    """Meaning of the columns of a list file, in the form of data.list_columns of a recipe."""

    column: str | None = None
    """Column of images or videos in a table. None: found by type."""

    label_column: str | None = None
    """Column of labels in a table. None: found by name or type."""

    image_size: Positive | None = None
    """Side of the images or frames that the model gets, in pixels. None: that of the model."""

    masks: str | None = None
    """Folder for the masks of a segmenter or detector: for each image a picture, and a PNG file with the class of each pixel or the
    number of its object, in the order of scores. None: no files."""

    least: ZeroToOne = 0.5
    """Smallest score of an object that is kept."""

    eval_clips: Positive = 1
    """Clips of a video whose probabilities are averaged."""

    eval_crops: Positive = 1
    """Crops of a clip whose probabilities are averaged."""

    workers: Count = 0
    """Processes that read the data."""

    batch_size: Positive = 32
    """Samples that the model processes at once."""

    device: str | None = None
    """Device, for instance cpu or cuda:1. None: the accelerator of this machine, else the CPU."""

    def validate(self) -> None:
        if self.out is not None and Path(self.out).suffix not in (".csv", ".json"):
            raise ValueError(f"--out {self.out} is neither a .csv nor a .json file; give one of these")


def run(config: Config) -> dict[str, Any]:
    """Predicts, prints the first rows, and writes all rows if a file is given.

    Raises:
        ValueError: the model has no head, no source is given, or no input can be read.
    """
    if len(config.inputs) < 2:
        raise ValueError(
            f"{len(config.inputs)} arguments are given; give a model and a source: mmm predict runs/finetune-1 photograph.jpg"
        )
    path, *sources = config.inputs
    model = mmm.load(path)
    if isinstance(model, MaskedModel):
        raise ValueError(
            f"{path} holds no head, so it cannot classify; fine-tune it first (mmm finetune {path}), "
            "or use its features (mmm extract, mmm retrieve)"
        )
    model = model.to(choose_device(config.device))
    if config.masks is not None and isinstance(model, Classifier):
        raise ValueError(f"--masks is for segmenters and detectors; {path} names classes of whole inputs")
    tally = Tally(1, model.head.classes) if isinstance(model, Classifier) else None
    rows: list[dict[str, Any]] = []
    for source in sources:
        found = predict_source(model, source, config, tally, first=len(rows))
        rows += found if len(sources) == 1 else [{"source": source, **row} for row in found]
    _show(rows)
    result: dict[str, Any] = {"predictions": rows}
    if tally is not None and tally.seen.any():
        result["accuracy"] = accuracy = tally.result(0)
        print(
            f"top-1 {accuracy['top1']:.2%}, top-5 {accuracy['top5']:.2%}, mean over classes {accuracy['mean_per_class']:.2%}, "
            f"of {accuracy['samples']:,} labelled inputs"
        )
    if config.out is not None:
        _write(rows, Path(config.out))
        print(f"predictions: {config.out}")
    if rows and all("problem" in row for row in rows):
        raise ValueError(f"none of the {len(rows):,} inputs could be read; the lines above give the reasons")
    return result


def predict_source(
    model: Classifier | Segmenter | Detector, source: str, config: Config, tally: Tally | None = None, first: int = 0
) -> list[dict[str, Any]]:
    """Returns one row per input, in the order of the source: its `name`, and the most probable `classes` with their probabilities
    or a `problem`.

    The rows of a segmenter have `classes` with their shares of the pixels, those of a detector `objects`. For a classifier, rows of
    labelled inputs have a `label`.

    Args:
        tally: labelled inputs of a classifier are counted here.
        first: number of the first input, for the names of files of masks.

    Raises:
        ValueError: the source cannot be opened, or it has several splits and no split was chosen.
    """
    data = with_split(_data(model, source, config), config.split)
    part = open_data(data, "train")
    logger.info("%s: %s %s", source, f"{len(part):,}", data.medium.noun)
    if isinstance(model, Classifier):
        return list(_rows(model, part, config, Tally(1, model.head.classes) if tally is None else tally))
    assert isinstance(part, Images)
    return list(_dense_rows(model, part, config, first))


def _dense_rows(model: Segmenter | Detector, part: Images, config: Config, first: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of images, one at a time and at their own size."""
    for index in range(len(part)):
        name = part.name(index)
        try:
            image = part.read(index)
        except Unreadable as error:
            yield {"name": name, "problem": str(error)}
            continue
        stem = None if config.masks is None else Path(config.masks) / f"{first + index:05d}_{Path(name).stem}"
        yield {"name": name, **dense_row(model, image, stem, least=config.least, top=config.top)}


def _rows(model: Classifier, part: Images | Clips, config: Config, tally: Tally) -> Iterator[dict[str, Any]]:
    """Yields the rows of a part, batch by batch."""
    device, views = next(model.parameters()).device, part.config.views
    labels, names = _labels(model, part), model.names
    for batch in eval_batches(part, part.config, batch_size=config.batch_size):
        rows: dict[int, dict[str, Any]] = {
            problem.index: {"name": problem.name, "problem": problem.reason} for problem in batch.problems
        }
        if len(batch):
            with inference(model):
                logits = model(normalise(batch.pixels.to(device), part.config.mean, part.config.std))
            chances = mean_of_views(logits, views).cpu()  # (b V, K) -> (b, K)
            index = batch.index[::views]
            own = labels[index]
            tally.add(chances[None, own >= 0], own[own >= 0])
            for number, label, classes in zip(index.tolist(), own.tolist(), model.named(chances, top=config.top), strict=True):
                row = {"name": part.name(number), "classes": classes}
                rows[number] = row if label < 0 else row | {"label": names[label]}
        yield from (row for _, row in sorted(rows.items()))


def _labels(model: Classifier, part: Images | Clips) -> torch.Tensor:
    """Returns the classes of the model that the samples are labelled with, int64 (N,). -1: no label, or no class of the model.

    Names of classes are compared if the model and the source have them. If one of them has no names, the numbers of the classes are
    compared.
    """
    labels = part.labels()
    if labels is None:
        return torch.full((len(part),), -1)
    named = part.classes is not None and list(part.classes) != [str(number) for number in range(len(part.classes))]
    if named and (model.labels is not None or len(part.classes or ()) != model.head.classes):
        numbers = {name: number for number, name in enumerate(model.names)}
        known = torch.tensor([numbers.get(name, -1) for name in part.classes or ()])
    else:
        known = torch.arange(max(int(labels.max()) + 1, 1))
        known[model.head.classes :] = -1
    found = known[labels.clamp(min=0)].where(labels >= 0, -1)
    if other := int(((labels >= 0) & (found < 0)).sum()):
        logger.info("%s inputs have a label that is no class of the model, and are not counted in an accuracy", f"{other:,}")
    return found


def _data(model: Classifier | Segmenter | Detector, source: str, config: Config) -> DataConfig:
    """Returns the config that reads samples of this source for the model."""
    data = model.data
    if data is None:
        raise ValueError("the size and normalisation of the samples of this model are not known")
    *frames, height, width = data.size
    size: Any = (height, width) if config.image_size is None else config.image_size
    common: Any = {
        "source": source,
        "root": config.root,
        "list_columns": config.list_columns,
        "label_column": config.label_column,
        "image_size": size,
        "channels": data.channels,
        "mean": data.mean,
        "std": data.std,
        "workers": config.workers,
        "holdout": 0.0,
        "max_bad": 1.0,
    }
    if not frames:
        return ImagesConfig(**common, image_column=config.column, cache=False)
    common |= {"frames": frames[0], "fps": data.fps, "eval_clips": config.eval_clips, "eval_crops": config.eval_crops}
    common |= {name: value for name in ("stride", "sampling") if (value := getattr(data, name)) is not None}
    return ClipsConfig(**common, video_column=config.column)


def _show(rows: list[dict[str, Any]]) -> None:
    """Prints one line per input."""
    for row in rows[:PRINTED]:
        pairs = list(row.get("classes", {}).items()) + [(one["class"], one["score"]) for one in row.get("objects", ())]
        words = "  ".join(f"{name} {chance:.1%}" for name, chance in pairs) or "no object"
        source = f"{row['source']}, " if "source" in row else ""
        print(f"{source}{row['name']}: {words if 'problem' not in row else 'cannot be read: ' + row['problem']}")
    if len(rows) > PRINTED:
        print(f"... and {len(rows) - PRINTED:,} more")
    bad = sum("problem" in row for row in rows)
    if bad:
        print(f"{bad:,} of {len(rows):,} inputs could not be read")


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes all rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        write_json(path, rows)
        return
    if any("objects" in row for row in rows):
        _write_objects(rows, path)
        return
    count = max((len(row.get("classes", ())) for row in rows), default=0)
    source = ["source"] if any("source" in row for row in rows) else []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        pairs = [f"{word}{n}" for n in range(1, count + 1) for word in ("class", "probability")]
        writer.writerow([*source, "name", "problem", "label", *pairs])
        for row in rows:
            pairs = [cell for pair in row.get("classes", {}).items() for cell in pair]
            writer.writerow([*(row[name] for name in source), row["name"], row.get("problem", ""), row.get("label", ""), *pairs])


def _write_objects(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes one line for each object, and one for each input without any."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        source = ["source"] if any("source" in row for row in rows) else []
        writer.writerow([*source, "name", "problem", "class", "score", "left", "top", "right", "bottom"])
        for row in rows:
            found = row.get("objects") or [None]
            for one in found:
                cells = [""] * 6 if one is None else [one["class"], one["score"], *one["box"]]
                writer.writerow([*(row[name] for name in source), row["name"], row.get("problem", ""), *cells])
