"""The card of an exported model: what is known of it, from its config and its run, and nothing that is not."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import mmm
from mmm.config.diff import flatten
from mmm.config.serialize import to_dict
from mmm.model import MaskedModel, ModelConfig

TRAINING = (
    "batch_size",
    "learning_rate",
    "warmup_epochs",
    "warmup_steps",
    "weight_decay",
    "precision",
)  # of a run's `train`, what a card says
LICENCE = """## Licence

Not stated. Whoever publishes this model adds one here and as `license:` at the top, within what the licences of its data and of the
weights that it started from allow."""
MEASURES = (".top1", ".top5")  # ends of the names of results that a card lists, beside `psnr.`


@dataclass(frozen=True)
class Origin:
    """Where a model is from.

    Attributes:
        name: of the run's folder, or of the file.
        config: of the run; None for published weights.
        step: updates that its weights have seen, where a run says so.
        evaluations: results in the run's folder, by kind.
    """

    name: str
    config: Mapping[str, Any] | None = None
    step: int | None = None
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def model_card(model: MaskedModel, parts: ModelConfig, data: Mapping[str, Any], origin: Origin, load: Sequence[str]) -> str:
    """The text of README.md.

    Args:
        parts: the model's choices.
        data: the data's choices by name.
        origin: where it is from.
        load: lines of Python that load it.
    """
    sections = [
        _head(model, origin),
        _what(model, parts, data),
        _training(origin),
        "## How to load it\n\n```python\n" + "\n".join(load) + "\n```",
        _results(origin),
        LICENCE,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(model: MaskedModel, origin: Origin) -> str:
    clips = len(model.tokenizer.size) == 3
    tags = ["masked-autoencoder", "self-supervised-learning", "video" if clips else "image"]
    front = yaml.safe_dump({"library_name": "mmm", "tags": tags}, sort_keys=False)
    what = "An encoder" if model.decoder is None else "An encoder and its decoder"
    medium = "video clips" if clips else "images"
    return f"---\n{front}---\n\n# {_plain(origin.name)}\n\n{what}, of a masked model of {medium}, written by mmm {mmm.__version__}."


def _what(model: MaskedModel, parts: ModelConfig, data: Mapping[str, Any]) -> str:
    """The parts, how large they are, and what enters."""
    counts = {"encoder": model.encoder, "decoder": model.decoder}
    sizes = [f"{name}: {sum(p.numel() for p in part.parameters()):,}" for name, part in counts.items() if part is not None]
    enters = [f"{name}: {data[name]}" for name in ("image_size", "frames", "channels", "mean", "std") if name in data]
    chosen = to_dict(parts)
    if model.decoder is None:
        del chosen["decoder"]
    choices = yaml.safe_dump(chosen, sort_keys=False, default_flow_style=None, width=110)
    lines = [f"Weights: {', '.join(sizes)}.", f"Input, normalised: {', '.join(enters)}.", f"```yaml\n{choices}```"]
    return "## What it is\n\n" + "\n\n".join(lines)


def _training(origin: Origin) -> str:
    """What the run's config says."""
    if origin.config is None:
        return "## How it was trained\n\nThe weights were read from a file that does not say."
    data, train = origin.config.get("data") or {}, origin.config.get("train") or {}
    lines = [f"- data: {_public(data.get('source'))}"]
    lines += [f"- updates: {origin.step:,}"] if origin.step is not None else []
    lines += [f"- {name.replace('_', ' ')}: {_plain(train[name])}" for name in TRAINING if train.get(name) is not None]
    return "## How it was trained\n\n" + "\n".join(lines)


def _public(source: Any) -> str:
    """A source's name; of a place on a disk only the last part."""
    local = source is not None and (str(source).startswith(("/", "~", ".")) or Path(str(source)).exists())
    return f"`{_plain(Path(str(source)).name if local else source)}`"


def _plain(value: Any) -> str:
    """On a page, a text and no more: what a run's folder says may be anybody's."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("`", "'").replace("|", "&#124;")


def _results(origin: Origin) -> str:
    """What evaluations of these very weights came to."""
    rows = []
    for kind, found in origin.evaluations.items():
        values = flatten({name: value for name, value in found.items() if name not in ("kind", "step")})
        kept = {name: value for name, value in values.items() if name.endswith(MEASURES) or name.startswith("psnr.")}
        if found.get("step") == origin.step and origin.step is not None:
            numbers = {_plain(name): value for name, value in kept.items() if isinstance(value, (int, float))}
            rows += [f"| {_plain(kind)} | {name} | {value:.4g} |" for name, value in numbers.items()]
    if not rows:
        return ""
    table = ["| evaluation | measure | value |", "| --- | --- | --- |", *rows]
    said = "As the run's `evaluations.jsonl` has it; psnr in dB, top1 and top5 as shares of 1."
    return f"## What it scored\n\n{said}\n\n" + "\n".join(table)
