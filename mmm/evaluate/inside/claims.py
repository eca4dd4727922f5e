"""The claims of "How to Understand Masked Autoencoders" (Cao, Xu and Clifton, arXiv 2202.03670, 2022) as numbers of one model.

The paper proves statements without measurements; the formulas and bounds here are those of this library. The same model with random
weights can be measured for comparison.
"""

from __future__ import annotations

from typing import Any

from mmm.evaluate.inside.distance import RINGS


def claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns one row per claim.

    Args:
        found: the result of `Inspection.result`.

    Returns:
        Rows with `claim`, `formula`, `expected` (the expectation of the paper, in words), `value`, and `holds`: True, False, or
        None if the claim names no bound.
    """
    rows = []

    def add(claim: str, formula: str, expected: str, value: float, holds: bool | None) -> None:
        rows.append({"claim": claim, "formula": formula, "expected": expected, "value": value, "holds": holds})

    asymmetries = [value for block in found["asymmetry"] for value in block]
    if asymmetries:
        mean = sum(asymmetries) / len(asymmetries)
        add(
            "Attention is a non-symmetric kernel",
            "||M - M^T|| / (2 ||M||), M = Wq^T Wk, mean over heads",
            "above 0 (symmetric); random weights give 0.71",
            mean,
            mean > 0.1,
        )
    change = found["stability"]["change"]
    if change:
        largest = max(change)
        add(
            "Representations propagate stably",
            "largest ||x' - x|| / ||x|| of a block",
            "below 1: a block changes its tokens by less than their size",
            largest,
            largest < 1,
        )
    if found["stability"]["noise_gain"]:
        gain = max(found["stability"]["noise_gain"])
        add(
            "Small changes do not grow",
            "largest ||F(x + d) - F(x)|| / ||d|| of a block, ||d|| 1 % of ||x||",
            "near 1, thanks to skip connections and layer norms",
            gain,
            gain < 2,
        )
    cka = found["cka"]
    adjacent = [cka[number][number + 1] for number in range(len(cka) - 1)]
    if adjacent:
        add(
            "Neighbouring layers have similar features",
            "smallest unbiased CKA between a layer and the next",
            "near 1",
            min(adjacent),
            min(adjacent) > 0.5,
        )
    ranks = [sum(block) / len(block) for block in found["attention"]["effective_rank"]]
    if ranks:
        add(
            "Attention has low rank",
            "exp(entropy of singular values) of the attention matrix, mean over heads and blocks, over the number of tokens",
            "well below 1",
            sum(ranks) / len(ranks) / found["tokens"],
            sum(ranks) / len(ranks) < 0.5 * found["tokens"],
        )
    rings = found.get("decoder", {}).get("rings", [])
    if rings:
        far = sum(row["share"] for row in rings if row["up_to"] is None or row["up_to"] > RINGS[1])
        even = sum(row["even"] for row in rings if row["up_to"] is None or row["up_to"] > RINGS[1])
        add(
            "Hidden patches are interpolated globally",
            f"share of decoder attention to visible tokens farther than {RINGS[1]:g} tokens, over that of even attention",
            "not far below 1: not from neighbours alone",
            far / even if even else float("nan"),
            far / even > 0.5 if even else None,
        )
    return rows
