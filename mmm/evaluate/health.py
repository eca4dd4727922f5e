"""Measures without labels whether features, targets or predictions collapse, and the norms of gradients.

Shapes: n samples, D the encoder's width, K values a token, T predicted tokens of all samples.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.core.checks import Positive
from mmm.data.loading.loader import prepare
from mmm.evaluate.batches import all_gather, check_read, choose, rank_and_world, read_batches
from mmm.evaluate.evaluator import Column, Context, Evaluator, EvaluatorConfig, EvaluatorSet, evaluators
from mmm.evaluate.features.table import inference
from mmm.model import MaskedModel
from mmm.targets import Target

logger = logging.getLogger(__name__)

RANK = 2.0  # below this value all features lie nearly on one line, or nearly all tokens have one class
TARGET_STD, PREDICTION_STD = 0.1, 0.01  # data2vec 2.0 stops below these


@evaluators.register("health")
class Health(Evaluator):
    """RankMe and the spread of features, the spread of targets and predictions, and the gradient's norm by part."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EvaluatorConfig):
        every: Positive | None = 500
        """Updates between two of these evaluations during training. None: train.evaluate_every."""

        samples: Positive = 512
        """Number of samples of the evaluation split, chosen by key. RankMe is at most this number and the encoder's width."""

    config: Config
    online = True
    columns: ClassVar[Mapping[str, Column]] = {
        "rankme": Column("RankMe", "{:.1f}"),
        "feature_std": Column("spread of features", "{:.3f}"),
        "target_std": Column("spread of targets", "{:.3f}"),
    }

    def why_not(self, model: MaskedModel, context: Context) -> str | None:
        """Rejects an encoder without a decoder."""
        return "the model is an encoder without a decoder, so it has no targets" if model.decoder is None else None

    def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
        """Returns measures over the samples that can be read, the same on all processes.

        Returns:
            rankme: effective number of directions of the mean tokens (Garrido et al., "RankMe", ICML 2023). feature_std: standard
            deviation of the mean tokens over the samples, after division by their norms, times the root of D; 1 for directions that
            are spread uniformly. target_std, prediction_std: standard deviation over the predicted tokens, averaged over
            values, for targets that are not classes. target_perplexity: effective number of classes, for targets that are.
            grad_norm_encoder, grad_norm_decoder, grad_norm_target: norms of the loss's gradient for a batch, for the parts that
            are trained.

        Raises:
            ValueError: no sample can be read.
        """
        part = choose(context.test, self.config.samples)
        features: list[Tensor] = []
        spreads: list[dict[str, tuple[Tensor, Tensor, int]]] = []
        norms: dict[str, float] = {}
        for batch in read_batches(part, "health", context.problems, batch_size=context.batch_size):
            x = prepare(batch.to(context.device), part.config, train=False)  # (b, C, ..., h, w)
            with inference(model, context.dtype):
                mask = model.draw_masks(x, batch.keys.to(context.device), masker=context.masker, steps=context.steps)
                features.append(model.encode(x).pooled("mean").cpu())
                with torch.set_grad_enabled(not norms):  # gradients are computed for the first batch only
                    output = model(x, mask=mask)
                norms = norms or gradient_norms(model, output.loss)
            found = {"prediction": output.prediction.detach()} | dict(tokens_of(output.target))
            spreads.append({name: moments(one, output.prediction.shape[2]) for name, one in found.items()})
        check_read(bool(features), part, context.problems)
        shares = all_gather((features, spreads, norms))
        table, figures = torch.cat([one for own, _, _ in shares for one in own]), {}
        figures["rankme"], figures["feature_std"] = rankme(table), feature_std(table)
        stds, used = deviations([one for _, own, _ in shares for one in own])
        prediction = stds.pop("prediction")
        figures |= {"target_std": min(stds.values()), "prediction_std": prediction} if stds else {}
        figures |= {"target_perplexity": min(used.values())} if used else {}
        known = [one for _, _, one in shares if one]
        figures |= {name: sum(one[name] for one in known) / len(known) for name in known[0]}
        if rank_and_world()[0] == 0 and (signs := collapse(figures, model.target.may_collapse)):
            logger.warning("%s: the representation collapses: %s", context.heading, "; ".join(signs))
        return figures


def with_health(chosen: EvaluatorSet, target: Target) -> EvaluatorSet:
    """Adds this evaluation if the target may collapse and it is not chosen already."""
    if not target.may_collapse or Health.Config.name in chosen.names:
        return chosen
    return EvaluatorSet.of(*chosen, Health.Config())


def collapse(figures: Mapping[str, float], learned: bool) -> list[str]:
    """Returns the signs of a collapse as text; those of targets and predictions only if the targets are `learned`."""
    signs = {"rankme": ("RankMe is", RANK)}
    if learned:
        signs |= {"target_std": ("the targets' deviation over tokens is", TARGET_STD)}
        signs |= {"prediction_std": ("the predictions' deviation over tokens is", PREDICTION_STD)}
        signs |= {"target_perplexity": ("the effective number of classes is", RANK)}
    return [
        f"{words} {figures[name]:.3g}, below {least:g}"
        for name, (words, least) in signs.items()
        if figures.get(name, least) < least
    ]


@torch.no_grad()
def rankme(features: Tensor) -> float:
    """Computes the exponential of the entropy of the normalised singular values of features (n, D), without centring."""
    singular = torch.linalg.svdvals(features.double())
    shares = singular / singular.sum() + 1e-7
    return float((-(shares * shares.log()).sum()).exp())


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Computes the standard deviation over samples of features (n, D) of norm 1, averaged over values, times the root of D."""
    unit = F.normalize(features.double(), dim=1)
    return float(unit.std(0, correction=0).mean() * features.shape[1] ** 0.5)


def tokens_of(target: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields the targets of tokens by name, but not those of class tokens: `values`, (kmB, Q, K), or `classes`, which are shares of
    K classes, (kmB, Q, K), or their numbers, int64 (kmB, Q).
    """
    if isinstance(target, tuple):
        for number, one in enumerate(target):
            yield from tokens_of(one, f"{name} {number}")
    elif not target.is_floating_point():
        yield f"classes{name}", target
    elif target.dim() == 3:
        shares = bool(target.min() >= 0 and (target.sum(2) - 1).abs().max() < 1e-3)
        yield f"{'classes' if shares else 'values'}{name}", target


def moments(values: Tensor, width: int) -> tuple[Tensor, Tensor, int]:
    """Returns the sums of values and of their squares over tokens, (K,) each in fp64 on the CPU, and the number of tokens.

    If the values are numbers of classes (at most `width` classes), the sums are counts of each class.
    """
    if not values.is_floating_point():
        counts = torch.bincount(values.flatten(), minlength=width).cpu().double()
        return counts, counts, values.numel()
    flat = values.flatten(0, 1).float()  # (kmB, Q, K) -> (T, K)
    return flat.sum(0).cpu().double(), flat.square().sum(0).cpu().double(), len(flat)


def deviations(parts: list[dict[str, tuple[Tensor, Tensor, int]]]) -> tuple[dict[str, float], dict[str, float]]:
    """Joins moments of several batches, by name.

    Returns:
        For values, the mean of the root of their variance over all tokens plus 1e-6. For classes, the perplexity of the mean share.
    """
    stds, used = {}, {}
    for name in parts[0]:
        sums, squares = (torch.stack([own[name][i] for own in parts]).sum(0) for i in (0, 1))  # type: ignore[misc]
        count = sum(own[name][2] for own in parts)
        if name.startswith("classes"):
            used[name] = float(torch.special.entr(sums / count).sum().exp())
        else:
            variance = (squares / count - (sums / count).square()).clamp(min=0)
            stds[name] = float((variance + 1e-6).sqrt().mean())
    return stds, used


def gradient_norms(model: MaskedModel, loss: Tensor) -> dict[str, float]:
    """Returns the norm of a loss's gradient for each trained part. The gradients stored in the weights do not change."""
    parts = {
        name: [one for one in getattr(model, name).parameters() if one.requires_grad] for name in ("encoder", "decoder", "target")
    }
    weights = [weight for own in parts.values() for weight in own]
    gradients = iter(torch.autograd.grad(loss, weights, allow_unused=True))
    norms = {}
    for name, own in parts.items():
        found = [gradient for gradient in (next(gradients) for _ in own) if gradient is not None]
        if found:
            norms[f"grad_norm_{name}"] = float(torch.nn.utils.get_total_norm(found))
    return norms
