"""Attentive probe: a learned query attends to the tokens of a frozen encoder, and a linear layer classifies the result.

mmm attentive_probe runs/pretrain-1 --train.learning_rate 1e-3
mmm attentive_probe runs/pretrain-1 --rates 0.3 1 3 --held_back 0.05    several learning rates at once
mmm linear_probe video_linear_probe --help                              values for videos
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmm.core.registry import PartConfig
from mmm.evaluate.probes.heads import Optimizer
from mmm.evaluate.probes.run import run_probe
from mmm.evaluate.probes.setup import ProbeConfig
from mmm.objectives.adapt_encoder import run_data
from mmm.pools import AttentivePool
from mmm.train.config import TrainConfig

POSITIONAL = "model"


@dataclass(frozen=True, kw_only=True)
class Config(ProbeConfig):
    """Probe an encoder by attentive pooling."""

    pool: PartConfig = AttentivePool.Config()
    optimizer: Optimizer = "adamw"
    """Optimizer: lars, with the trust ratio on matrices only, or adamw."""
    train: TrainConfig = TrainConfig(epochs=10, batch_size=256, learning_rate=1e-3)
    """Training of pool and head. micro_batch_size is the number of samples that the encoder processes at once."""


def defaults(flags: Mapping[str, list[str]]) -> Config:
    """Returns the config that the flags change. If the model is from a run, the data is that of the run; see `run_data`."""
    data = run_data(flags)
    return Config() if data is None else Config(data=data)


def run(config: Config) -> dict[str, Any]:
    """Trains the probe, writes result.json into the run folder, and prints the scores."""
    result, text = run_probe(config, "attentive_probe")
    if text:
        print(text)
    return result
