"""Linear probe: a linear classifier on a frozen encoder, trained by gradient descent as published, or fitted exactly.

mmm linear_probe runs/pretrain-1                                        exact: features once, then several penalties
mmm linear_probe runs/pretrain-1/config.yaml                            the same model with random weights
mmm linear_probe runs/pretrain-1 --methods trained exact --rates 0.3 1 3 --held_back 0.05
mmm linear_probe image_linear_probe --model mae_pretrain_vit_base.pth --data.source /data/imagenet      as published
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmm.evaluate.probes.logistic_sweep import SweepConfig
from mmm.evaluate.probes.run import run_probe
from mmm.evaluate.probes.setup import ProbeConfig
from mmm.objectives.adapt_encoder import run_data

POSITIONAL = "model"


@dataclass(frozen=True, kw_only=True)
class Config(ProbeConfig):
    """Probe an encoder with a linear classifier."""

    methods: tuple[Literal["trained", "exact"], ...] = ("exact",)
    """trained: gradient descent on augmented samples (options train, rates, optimizer). exact: logistic regression on features."""
    exact: SweepConfig = SweepConfig()
    """Options of the exact method."""


def defaults(flags: Mapping[str, list[str]]) -> Config:
    """Returns the config that the flags change. If the model is from a run, the data is that of the run; see `run_data`."""
    data = run_data(flags)
    return Config() if data is None else Config(data=data)


def run(config: Config) -> dict[str, Any]:
    """Trains or fits the probe, writes result.json into the run folder, and prints the scores."""
    result, text = run_probe(config, "linear_probe", config.methods, config.exact)
    if text:
        print(text)
    return result
