"""Few-shot probe: the accuracy of an attentive probe on few labels, for the trained encoder, for the same one with random weights,
and for controls without an encoder.

All encoders get the same labels, initial weights of the probe, batches and learning rates (`mmm.evaluate.probes.few_shot`). The
test samples are scored once. A second probe gets one frame instead of the clip, and the controls are linear classifiers on pixels.
Both measure the accuracy that is possible without motion.

Shapes: B samples, C channels, R prefix tokens, N tokens of the grid, D the encoder's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mmm.data import Clips, Images
from mmm.data.datasets.labelled import check_classes, labelled
from mmm.evaluate.evaluator import Column, Context, Evaluator, EvaluatorConfig, evaluators
from mmm.evaluate.features.logistic_regression import few_label_accuracy, few_labels
from mmm.evaluate.features.table import Extract, extract_features, inference, raw_pixels
from mmm.evaluate.probes.few_shot import FewShotConfig, probe_few_shot
from mmm.model import MaskedModel

TITLES = {"raw_pixels": "all pixels", "one_frame": "pixels of one frame"}


@evaluators.register("few_shot")
class FewShotProbe(Evaluator):
    """The accuracy of an attentive probe on a few labels per class, for the trained encoder and for one with random weights."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FewShotConfig, EvaluatorConfig):
        """Options of the labels, of the training of the probes, and of the interval between evaluations."""

    config: Config
    needs_labels = True
    columns: ClassVar[Mapping[str, Column]] = {
        "few_shot_top1": Column("attentive probe", "{:.1%}"),
        "few_shot_untrained": Column("untrained", "{:.1%}"),
    }

    def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
        """Returns the result of `evaluate_few_shot`."""
        models = {"trained": model, "untrained": context.untrained()}
        return evaluate_few_shot(models, context.train, context.test, self.config, **context.compute)

    def figures(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Returns the accuracies of both encoders."""
        return {"few_shot_top1": found["probe"]["trained"]["top1"], "few_shot_untrained": found["probe"]["untrained"]["top1"]}

    def format(self, found: Mapping[str, Any]) -> str:
        """Returns a line for each probe and control."""
        return format_few_shot(found)


def evaluate_few_shot(
    models: Mapping[str, MaskedModel],
    train: Images | Clips,
    test: Images | Clips,
    config: FewShotConfig,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Evaluates several encoders of the same shape with equal settings.

    Args:
        models: by name, for instance `trained` and `untrained`, on the device.
        train: labelled samples, of which few are used.
        test: samples to score. They are not used to choose any setting.
        dtype: type for the encoders' autocast. None: fp32.
        batch_size: number of samples that an encoder gets at once.

    Returns:
        `labels`, the number of labels that were used, and `labels_per_class`; `test`, `classes`: numbers of test samples and of
        classes; `probe` and, for clips, `one_frame`: for each model `top1` on the test samples, the chosen learning `rate`, and
        `held_back`, the accuracy of each rate on the held-back labels; `controls`: top1 of linear classifiers on pixels;
        `problems`: inputs that could not be read.

    Raises:
        ValueError: there are no labels, or no sample can be read.
    """
    train, test = labelled(train), labelled(test)
    labels, others = cast(Tensor, train.labels()), cast(Tensor, test.labels())
    check_classes(labels, others, test.title, train.classes)
    fit, held = few_labels(labels, config.labels_per_class, config.label_seed)
    used = torch.cat([fit, held]).sort().values
    extracts = _extracts(models, clips=len(train.config.size) == 3, dtype=dtype)
    train_tables = extract_features(train.subset(used), extracts, device=device, batch_size=batch_size)
    test_tables = extract_features(test, extracts, device=device, batch_size=batch_size)
    first = next(iter(extracts))
    classes = int(torch.cat([labels, test_tables[first].labelled("cpu")[1]]).max()) + 1
    chooses = torch.isin(used, held)[train_tables[first].index].to(device)
    found: dict[str, Any] = {
        "labels": len(train_tables[first].index),
        "labels_per_class": config.labels_per_class,
        "test": len(test_tables[first].index),
        "classes": classes,
        "problems": [problem._asdict() for problem in train_tables[first].problems + test_tables[first].problems],
    }
    scores: dict[str, dict[str, Any]] = {"probe": {}, "one_frame": {}, "controls": {}}
    for name in extracts:
        kind, _, model = name.partition(" ")
        (train_values, train_labels), (test_values, test_labels) = (
            tables[name].labelled(device) for tables in (train_tables, test_tables)
        )
        if model:
            shape = models[model].encoder.shape
            known, asked = (values.unflatten(1, (-1, shape.width)) for values in (train_values, test_values))  # (n, R + N, D)
            scores[kind][model] = probe_few_shot((known, train_labels), chooses, (asked, test_labels), shape, classes, config)
        else:
            tables = (train_values, train_labels, test_values, test_labels)
            scores["controls"][name] = few_label_accuracy(*tables, config.labels_per_class, config.label_seed)["top1"]
    return found | scores


def _extracts(models: Mapping[str, MaskedModel], *, clips: bool, dtype: torch.dtype | None) -> dict[str, Extract]:
    """Returns the features to compute, by name: the kind of probe and the model, or a control."""
    found: dict[str, Extract] = {f"probe {name}": _tokens(model, dtype, still=False) for name, model in models.items()}
    found["raw_pixels"] = raw_pixels
    if clips:
        found |= {f"one_frame {name}": _tokens(model, dtype, still=True) for name, model in models.items()}
        found["one_frame"] = lambda x: raw_pixels(_middle(x))
    return found


def _middle(x: Tensor) -> Tensor:
    """Returns the middle frames of clips, (B, C, T, H, W) -> (B, C, H, W)."""
    return x[:, :, x.shape[2] // 2]


def _tokens(model: MaskedModel, dtype: torch.dtype | None, *, still: bool) -> Extract:
    """Returns all tokens of samples, or of the middle frame of each, flattened: (B, C, s...) -> (B, (R + N) D)."""

    def extract(x: Tensor) -> Tensor:
        with inference(model, dtype):
            return model.encode(model.tokenizer.lift(_middle(x) if still else x)).last.float().flatten(1)

    return extract


def format_few_shot(found: Mapping[str, Any]) -> str:
    """Returns the scores as lines of text."""
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
