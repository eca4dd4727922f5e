"""Model cards: the README.md of a saved model, written from its parts and its run."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from mmm.classifier import Classifier
from mmm.config.diff import flatten
from mmm.model import MaskedModel
from mmm.weights.formats.base import Model, public_config, without_folders

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData

CARD = "README.md"
# options of `train` that a card lists
TRAINING = ("batch_size", "learning_rate", "warmup_epochs", "warmup_steps", "weight_decay", "precision")
LICENCE = """## Licence

Not stated. Whoever publishes this model replaces `license: unknown` at the top, within what the licences of its data and of the
weights that it started from allow."""
ACCURACY = "top1 and top5 are accuracies, from 0 to 1"
PIXELS = "miou is the mean intersection over union of the classes, and pixel_accuracy the share of correct pixels, from 0 to 1"
PRECISION = "ap is COCO's average precision over overlaps from 0.5 to 0.95, and ap50 and ap75 at one overlap, from 0 to 1"
# the measures of evaluations that a card lists: type of the metric on the hub, and explanation
MEASURES = {
    "psnr": ("psnr", "psnr is in dB"),
    "top1": ("accuracy", ACCURACY),
    "top5": ("accuracy", ACCURACY),
    "miou": ("mean_iou", PIXELS),
    "pixel_accuracy": ("accuracy", PIXELS),
    "ap": ("mean_average_precision", PRECISION),
    "ap50": ("mean_average_precision", PRECISION),
    "ap75": ("mean_average_precision", PRECISION),
}
LOAD = ["import mmm", 'model = mmm.load("user/name")  # the name of this repository, or a folder with its files']
PARTS = ("tokenizer", "masker", "encoder", "decoder", "target", "pool", "head")


@dataclass(frozen=True)
class Origin:
    """The source of a model.

    Attributes:
        name: name of the run folder or of the file. None: not known.
        config: config of the run. None: not known.
        step: number of updates of the weights. None: not known.
        evaluations: results in the run's folder, by kind; those of another step are left out.
        results: other results of these weights, by name.
        license: identifier of a licence on the hub.
    """

    name: str | None = None
    config: Mapping[str, Any] | None = None
    step: int | None = None
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    results: Mapping[str, float] = field(default_factory=dict)
    license: str = "unknown"


def model_card(model: Model, origin: Origin, load: Sequence[str]) -> ModelCard:
    """Returns the card of a model.

    Args:
        origin: source of the model.
        load: lines of Python that load and call it.
    """
    from huggingface_hub import ModelCard

    results = _results(origin)
    sections = [
        _title(model, origin),
        _parts(model),
        _training(origin),
        "## How to load it\n\n```python\n" + "\n".join(load) + "\n```",
        _table(results),
        LICENCE if origin.license == "unknown" else "",
    ]
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{_front(model, origin, results).to_yaml()}\n---\n\n{body}\n", ignore_metadata_errors=True)


def _front(model: Model, origin: Origin, results: Mapping[tuple[str, str], float]) -> ModelCardData:
    """Returns the metadata that the hub reads: library, licence, pipeline, tags and metrics."""
    from huggingface_hub import EvalResult, ModelCardData

    clips, headed = len(model.tokenizer.size) == 3, isinstance(model, Classifier)
    encodes = "feature-extraction" if clips else "image-feature-extraction"
    pipeline = f"{'video' if clips else 'image'}-classification" if headed else encodes
    pipeline = {"Segmenter": "image-segmentation", "Detector": "object-detection"}.get(type(model).__name__, pipeline)
    source = _source(((origin.config or {}).get("data") or {}).get("source"))
    types = {name: MEASURES.get(_measure(name), (name, ""))[0] for _, name in results}
    found = [
        EvalResult(pipeline, "custom", source, types[name], value, metric_name=f"{kind} {name}".strip())
        for (kind, name), value in results.items()
    ]
    return ModelCardData(
        library_name="mmm",
        license=origin.license,
        pipeline_tag=pipeline,
        tags=["masked-autoencoder", "self-supervised-learning", "video" if clips else "image"],
        metrics=list(dict.fromkeys(types.values())) or None,
        model_name=_plain(origin.name or "model") if found else None,
        eval_results=found or None,
    )


def _title(model: Model, origin: Origin) -> str:
    from mmm import __version__

    medium = "video clips" if len(model.tokenizer.size) == 3 else "images"
    decoder = model.decoder if isinstance(model, MaskedModel) else None
    encoder = f"An encoder{'' if decoder is None else ' and its decoder'}, of a masked model of {medium}"
    what = encoder if isinstance(model, MaskedModel) else f"A {type(model).__name__.lower()} of {medium}"
    alone = isinstance(model, MaskedModel) and decoder is None
    lacks = " It computes features, and has no loss and no reconstruction." if alone else ""
    return f"# {_plain(origin.name or f'Masked model of {medium}')}\n\n{what}, written by mmm {__version__}.{lacks}"


def _parts(model: Model) -> str:
    """Returns the section on the parts, their sizes and their input."""
    parts = {name: part for name in PARTS if (part := getattr(model, name, None)) is not None}
    counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}
    sizes = ", ".join(f"{name}: {count:,}" for name, count in counts.items() if count)
    data = {} if model.data is None else {name: value for name, value in vars(model.data).items() if value is not None}
    enters = ", ".join(f"{name}: {list(value) if isinstance(value, tuple) else value}" for name, value in data.items())
    chosen = {name: public_config(part) for name, part in parts.items()}
    choices = yaml.safe_dump(chosen, sort_keys=False, default_flow_style=None, width=110)
    labels = None if isinstance(model, MaskedModel) else model.labels
    classes = [f"Classes: {_plain(', '.join(labels))}."] if labels else []
    return "\n\n".join(["## What it is", f"Weights: {sizes}.", f"Input, normalised: {enters}.", *classes, f"```yaml\n{choices}```"])


def _training(origin: Origin) -> str:
    """Returns the section on training, from the run's config."""
    if origin.config is None:
        return (
            "## How it was trained\n\nNot stated. `mmm export RUN` writes the data and the options of a run's training here."
            if origin.name is None
            else ("## How it was trained\n\nThe weights come from a file without this information.")
        )
    data, train = origin.config.get("data") or {}, origin.config.get("train") or {}
    lines = [f"- data: `{_source(data.get('source'))}`"]
    lines += [f"- updates: {origin.step:,}"] if origin.step is not None else []
    lines += [f"- {name.replace('_', ' ')}: {_plain(train[name])}" for name in TRAINING if train.get(name) is not None]
    return "## How it was trained\n\n" + "\n".join(lines)


def _source(source: Any) -> str:
    """Returns the name of a source of data, without the folders of this machine."""
    if source is None:
        return "not stated"
    return _plain(without_folders(str(source)))


def _plain(value: Any) -> str:
    """Returns a value as one line of plain text. Markup is escaped, because a run folder may be untrusted."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("`", "'").replace("|", "&#124;")


def _results(origin: Origin) -> dict[tuple[str, str], float]:
    """Returns the results of evaluations of exactly these weights, by kind and measure."""
    found = {("", _plain(name)): float(value) for name, value in origin.results.items()}
    for kind, line in origin.evaluations.items():
        if line.get("step") != origin.step or origin.step is None:
            continue
        values = flatten({name: value for name, value in line.items() if name not in ("kind", "step", "figures")})
        kept = {name: value for name, value in values.items() if _measure(name) in MEASURES}
        found |= {(_plain(kind), _plain(name)): value for name, value in kept.items() if isinstance(value, (int, float))}
    return found


def _measure(name: str) -> str:
    """Returns the measure of a result: `top1` of neighbours.trained.top1, `psnr` of psnr.model."""
    return "psnr" if name.startswith("psnr.") else name.rpartition(".")[2]


def _table(results: Mapping[tuple[str, str], float]) -> str:
    if not results:
        return ""
    rows = [f"| {kind} | {name} | {value:.4g} |" for (kind, name), value in results.items()]
    meanings = dict.fromkeys(MEASURES[measure][1] for _, name in results if (measure := _measure(name)) in MEASURES)
    said = ". ".join(["Results from `evaluations.jsonl` and `result.json` of the run, or as stated by its author", *meanings])
    return f"## Results\n\n{said}.\n\n" + "\n".join(["| evaluation | measure | value |", "| --- | --- | --- |", *rows])
