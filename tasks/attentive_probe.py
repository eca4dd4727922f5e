"""Attentive probe: a learned query attends to the tokens of a frozen encoder, and a linear layer classifies the result.

mmm attentive_probe runs/pretrain-1 --train.learning_rate 1e-3
mmm attentive_probe runs/pretrain-1 --rates 0.3 1 3 --held_back 0.05    several learning rates at once
python recipes/video_linear_probe.py --help                  values for videos
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmm.config.serialize import to_dict
from mmm.core.registry import PartConfig
from mmm.evaluate.probes.heads import Optimizer
from mmm.evaluate.probes.report import format_probe, protocol_of, schedule_of, write_result
from mmm.evaluate.probes.setup import ProbeConfig, open_probe_setup
from mmm.evaluate.probes.train import ProbeTraining
from mmm.evaluate.protocol import weights_fingerprint
from mmm.pools import AttentivePool
from mmm.train.config import TrainConfig
from mmm.train.distributed.setup import start, with_precision
from mmm.train.run.folder import RunFolder

POSITIONAL = "model"
TASK = "attentive_probe"


@dataclass(frozen=True, kw_only=True)
class Config(ProbeConfig):
    """Probe an encoder by attentive pooling."""

    pool: PartConfig = AttentivePool.Config()
    optimizer: Optimizer = "adamw"
    """Optimizer: lars, with the trust ratio on matrices only, or adamw."""
    train: TrainConfig = TrainConfig(epochs=10, batch_size=256, learning_rate=1e-3)
    """Training of pool and head. micro_batch_size is the number of samples that the encoder processes at once."""


def run(config: Config) -> dict[str, Any]:
    """Trains the probe, writes result.json into the run folder, and prints the scores."""
    accelerator = start(config.train)
    config = with_precision(config, accelerator)
    setup = open_probe_setup(config, accelerator)
    weights = weights_fingerprint(setup.model.encoder)
    training = ProbeTraining.prepare(config, setup, weights=weights)
    if config.dry_run:
        print(training.preview())
        return {}
    with RunFolder.open(config.folder, TASK, config, accelerator=accelerator, resume=config.resume) as folder:
        conditions = {"task": TASK, "head": to_dict(config.head), "schedule": schedule_of(config)}
        protocol = protocol_of(config, setup, weights=weights, conditions=conditions)
        scores = training.run(folder) | {"protocol": protocol}
        result = write_result(folder, TASK, setup, {"trained": scores})
    if accelerator.is_main_process:
        print(format_probe(result))
        print(f"scores and protocol: {folder.path / 'result.json'}")
    return result
