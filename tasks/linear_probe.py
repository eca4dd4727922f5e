"""Linear probe: a linear classifier on a frozen encoder, trained by gradient as published, or fitted exactly.

mmm linear_probe runs/pretrain-1                                        exact: features once, then several penalties
mmm linear_probe runs/pretrain-1/config.yaml                            the same model with random weights
mmm linear_probe runs/pretrain-1 --methods trained exact --rates 0.3 1 3 --held_back 0.05
python recipes/image_linear_probe.py --model mae_pretrain_vit_base.pth --data.source /data/imagenet     as published
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mmm.config.serialize import to_dict
from mmm.evaluate.probes.logistic_sweep import SweepConfig, sweep
from mmm.evaluate.probes.report import format_probe, protocol_of, schedule_of, write_result
from mmm.evaluate.probes.setup import ProbeConfig, open_probe_setup
from mmm.evaluate.probes.train import ProbeTraining
from mmm.evaluate.protocol import weights_fingerprint
from mmm.train.distributed.setup import start, with_precision
from mmm.train.run.folder import RunFolder

POSITIONAL = "model"
TASK = "linear_probe"


@dataclass(frozen=True, kw_only=True)
class Config(ProbeConfig):
    """Probe an encoder with a linear classifier."""

    methods: tuple[Literal["trained", "exact"], ...] = ("exact",)
    """trained: by gradient on augmented samples (options train, rates, optimizer). exact: logistic regression on features."""
    exact: SweepConfig = SweepConfig()
    """Options of the exact method."""


def run(config: Config) -> dict[str, Any]:
    """Trains or fits the probe, writes result.json into the run folder, and prints the scores."""
    accelerator = start(config.train)
    config = with_precision(config, accelerator)
    setup = open_probe_setup(config, accelerator)
    weights = weights_fingerprint(setup.model.encoder)
    training = ProbeTraining.prepare(config, setup, weights=weights) if "trained" in config.methods else None
    if config.dry_run:
        print("nothing is trained by gradient" if training is None else training.preview())
        return {}
    found: dict[str, dict[str, Any]] = {}
    with RunFolder.open(config.folder, TASK, config, accelerator=accelerator, resume=config.resume) as folder:
        if training is not None:
            conditions = {"task": TASK, "head": to_dict(config.head), "schedule": schedule_of(config)}
            protocol = protocol_of(config, setup, weights=weights, conditions=conditions)
            found["trained"] = training.run(folder) | {"protocol": protocol}
        if "exact" in config.methods:
            batch_size = config.train.micro_batch_size or config.train.batch_size
            schedule = {"optimizer": "L-BFGS", "chosen_by": "a fifth of all samples except the test samples", "seed": config.seed}
            schedule |= asdict(config.exact)
            conditions = {"task": TASK, "head": {"norm": "standardised"}, "schedule": schedule}
            protocol = protocol_of(config, setup, weights=weights, conditions=conditions)
            scores = sweep(setup, config.pool, config.exact, batch_size=batch_size, seed=config.seed)
            found["exact"] = scores | {"protocol": protocol}
        result = write_result(folder, TASK, setup, found)
    if accelerator.is_main_process:
        print(format_probe(result))
        print(f"scores and protocol: {folder.path / 'result.json'}")
    return result
