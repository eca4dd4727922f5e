"""What few labels make of an encoder: an attentive probe of the trained one, of the same untrained, and what needs no encoder.

All encoders get the same labels, first weights of the probe, batches and choice of learning rates (`mmm.evaluate.probes.few_shot`).
The test part is scored once. A second probe sees one frame in the place of the clip, and the controls are linear classifiers on
pixels: what they find is not motion.

Shapes: B samples, C channels, R prefix tokens, N tokens of the grid, D the encoder's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mmm.core.types import Shape
from mmm.data import Clips, Images
from mmm.data.datasets.labelled import check_classes, labelled
from mmm.evaluate.evaluator import Column, Context, Evaluator, EvaluatorConfig, evaluators
from mmm.evaluate.features.logistic_regression import few_label_accuracy, few_labels
from mmm.evaluate.features.table import Extract, extract_features, inference, raw_pixels
from mmm.evaluate.probes.few_shot import TransferConfig, probe_few_labels
from mmm.model import MaskedModel

TITLES = {"raw_pixels": "all pixels", "one_frame": "pixels of one frame"}


@evaluators.register("few_shot")
class FewShotProbe(Evaluator):
    """The accuracy of an attentive probe trained on a few labels per class: of the trained encoder, and of the same untrained."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EvaluatorConfig, TransferConfig):
        """How probes are trained."""

        def validate(self) -> None:
            TransferConfig.__post_init__(self)

    config: Config
    needs_labels = True
    columns: ClassVar[Mapping[str, Column]] = {
        "few_shot": Column("attentive probe", "{:.1%}"),
        "few_shot_untrained": Column("untrained", "{:.1%}"),
    }

    def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
        """Returns what `judge_transfer` returns."""
        models = {"trained": model, "untrained": context.untrained()}
        return judge_transfer(
            models,
            context.train,
            context.test,
            self.config,
            device=context.device,
            dtype=context.dtype,
            batch_size=context.batch_size,
        )

    def figures(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Returns the accuracy of both encoders."""
        return {"few_shot": found["probe"]["trained"]["top1"], "few_shot_untrained": found["probe"]["untrained"]["top1"]}

    def format(self, found: Mapping[str, Any]) -> str:
        """Returns a line for each probe and control."""
        return describe_transfer(found)


def judge_transfer(
    models: Mapping[str, MaskedModel],
    train: Images | Clips,
    test: Images | Clips,
    config: TransferConfig,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Probes several encoders of one shape, at equal settings.

    Args:
        models: by name, for instance `trained` and `untrained`, on the device.
        train: samples of which few labels are used.
        test: samples to score; nothing is chosen by them.
        dtype: of the encoders' autocast; none: fp32.
        batch_size: of the encoders, samples.

    Returns:
        `labels`, how many were used, and `labels_per_class`; `test`, `classes`: numbers of them; `probe` and, of clips,
        `one_frame`: by model its `top1` on the test part, the `rate` that was chosen, and by each rate that was tried the share of
        the labels held back that it got right, `held_back`; `controls`: top1 of linear classifiers on pixels; `problems`: inputs
        that could not be read.

    Raises:
        ValueError: without labels, or where nothing can be read.
    """
    train, test = labelled(train), labelled(test)
    labels, others = cast(Tensor, train.labels()), cast(Tensor, test.labels())
    check_classes(labels, others, test.title, train.classes)
    fit, held = few_labels(labels, config.labels_per_class, config.label_seed)
    used = torch.cat([fit, held]).sort().values
    extracts = _extracts(models, clips=len(train.config.size) == 3, dtype=dtype)
    known, asked = (extract_features(part, extracts, device=device, batch_size=batch_size) for part in (train.subset(used), test))
    first = next(iter(extracts))
    classes = int(torch.cat([labels, asked[first].labelled("cpu")[1]]).max()) + 1
    chooses = torch.isin(used, held)[known[first].index].to(device)
    found: dict[str, Any] = {
        "labels": len(known[first].index),
        "labels_per_class": config.labels_per_class,
        "test": len(asked[first].index),
        "classes": classes,
        "problems": [problem._asdict() for problem in known[first].problems + asked[first].problems],
    }
    scores: dict[str, dict[str, Any]] = {"probe": {}, "one_frame": {}, "controls": {}}
    for name in extracts:
        kind, _, model = name.partition(" ")
        tables = (*known[name].labelled(device), *asked[name].labelled(device))
        if model:
            scores[kind][model] = _probe(models[model].encoder.shape, tables, chooses, classes, config)
        else:
            scores["controls"][name] = few_label_accuracy(*tables, config.labels_per_class, config.label_seed)["top1"]
    return found | scores


def _probe(
    shape: Shape, tables: tuple[Tensor, Tensor, Tensor, Tensor], chooses: Tensor, classes: int, config: TransferConfig
) -> dict[str, Any]:
    """A probe of flattened tokens: those with known labels, the labels, those to score, and theirs."""
    known, labels, asked, wanted = tables
    tokens, others = (values.unflatten(1, (-1, shape.width)) for values in (known, asked))  # (n, R + N, D), (m, R + N, D)
    return probe_few_labels((tokens, labels), chooses, (others, wanted), shape, classes, config)


def _extracts(models: Mapping[str, MaskedModel], *, clips: bool, dtype: torch.dtype | None) -> dict[str, Extract]:
    """What is made of the samples, by name: the kind of probe and the model, or a control."""
    found: dict[str, Extract] = {f"probe {name}": _tokens(model, dtype, still=False) for name, model in models.items()}
    found["raw_pixels"] = raw_pixels
    if clips:
        found |= {f"one_frame {name}": _tokens(model, dtype, still=True) for name, model in models.items()}
        found["one_frame"] = lambda x: raw_pixels(_middle(x))
    return found


def _middle(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B, C, H, W)."""
    return x[:, :, x.shape[2] // 2]


def _tokens(model: MaskedModel, dtype: torch.dtype | None, *, still: bool) -> Extract:
    """All that an encoder makes of samples, or of the middle frame of each, flattened: (B, C, s...) -> (B, (R + N) D)."""

    def extract(x: Tensor) -> Tensor:
        with inference(model, dtype):
            return model.encode(_middle(x) if still else x).last.float().flatten(1)

    return extract


def describe_transfer(found: Mapping[str, Any]) -> str:
    """The scores as lines of text."""
    labels = f"{found['labels_per_class']} labels of each of {found['classes']} classes"
    lines = [f"Attentive probe of the frozen encoder, {labels}, {found['test']:,} test samples (chance {1 / found['classes']:.1%})"]
    rows = [(name, score["top1"], f"learning rate {score['rate']:g}") for name, score in found["probe"].items()]
    rows += [
        (f"{name}, one frame", score["top1"], f"learning rate {score['rate']:g}") for name, score in found["one_frame"].items()
    ]
    rows += [(TITLES[name], top1, "linear, no encoder") for name, top1 in found["controls"].items()]
    wide = max(len(name) for name, _, _ in rows)
    lines += [f"  {name:<{wide}}  {top1:>6.1%}  {words}" for name, top1, words in rows]
    if found["problems"]:
        lines.append(f"{len(found['problems'])} inputs could not be read and were left out")
    return "\n".join(lines)
