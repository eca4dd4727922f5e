"""Any number of processes and data workers draws the same samples, crops, clips, flips and masks, also if it changes in an epoch.

The tests run complete pretrainings in real processes, which record the inputs of the model. They use `train.strict`, so that the
results are also equal bit for bit. Run as a script, this file starts the processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import ends, fork_ranks, watch
from torch import Tensor
from video_files import write

from mmm.data import ClipsConfig, ImagesConfig
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.evaluate.builtin import MaskedLoss
from mmm.evaluate.evaluator import EvaluatorSet
from mmm.objectives.masked import MaskedObjective
from mmm.tokenizers import Patches, Tubes
from mmm.train.config import TrainConfig
from mmm.train.state import Training
from tasks import pretrain

STEPS, STOP = 5, 2
IMAGES = ImagesConfig(
    source="builtin:photographs", eval_split="test", image_size=16, channels=1, mean=(0.5,), std=(0.18,), workers=0
)
CONFIG = pretrain.Config(
    data=IMAGES,
    tokenizer=Patches.Config(size=4),
    encoder=VisionTransformer.Config(width=24, depth=2, heads=2, drop_path=0.2),
    decoder=SelfAttentionDecoder.Config(width=16, depth=1, heads=2),
    train=TrainConfig(
        steps=STEPS,
        batch_size=8,
        micro_batch_size=1,
        learning_rate=1e-3,
        ema=0.9,
        clip_norm=0.1,
        log_every=1,
        precision="fp32",
        threads=1,
        strict=True,
        timeout=60,
    ),
    evaluate=EvaluatorSet.of(MaskedLoss.Config(samples=4)),
)
# (processes, data workers) of complete runs, and of the resumed rest of a run that two processes with one worker began
WHOLE, REST = ((1, 0), (2, 2)), ((1, 2),)
ALL_WHOLE, ALL_REST = ((1, 0), (1, 4), (2, 2), (4, 1)), ((1, 2), (2, 0), (4, 0))


def clips(folder: Path) -> ClipsConfig:
    """Writes seven small videos, and returns the config that reads them."""
    for i in range(7):
        write(folder / f"{i}.mp4", count=10 + i, size=(24, 32))
    return ClipsConfig(source=str(folder), image_size=16, frames=4, stride=2, workers=0, holdout=0.3, repeats=1)


@pytest.mark.slow
def test_images_on_one_and_two_processes(tmp_path: Path) -> None:
    try_and_check(tmp_path, "images", WHOLE, REST)


@pytest.mark.slow
@pytest.mark.parametrize("medium", ["images", "clips"])
def test_on_one_two_and_four_processes(tmp_path: Path, medium: str) -> None:
    try_and_check(tmp_path, medium, ALL_WHOLE, ALL_REST)


def try_and_check(folder: Path, medium: str, whole: Sequence[tuple[int, int]], rest: Sequence[tuple[int, int]]) -> None:
    code, output = watch([sys.executable, __file__, str(folder), medium, json.dumps([whole, rest])])
    assert code == 0, output
    expected = seen(folder / "whole_1_0", 1)
    assert [len(rows) for rows in expected.values()] == [8] * STEPS
    for what in range(1, 5):  # keys, pixels, visible and predicted tokens differ between all samples and all epochs
        assert len({row[what] for rows in expected.values() for row in rows}) == 8 * STEPS
    for processes, workers in whole[1:]:
        assert seen(folder / f"whole_{processes}_{workers}", processes) == expected
    begun = seen(folder / "begun", 2)
    assert STOP < max(begun) < STEPS - 1  # all processes stop after the same update, at most one update later
    assert begun == {step: expected[step] for step in begun}
    for processes, workers in rest:
        run = folder / f"rest_{processes}_{workers}"
        assert begun | seen(run, processes) == expected
        assert left(run) == left(folder / "whole_1_0")


def seen(run: Path, processes: int) -> dict[int, list[list[Any]]]:
    """Returns the inputs of the model by step, in the order of the global batch."""
    steps: dict[int, list[list[Any]]] = {}
    for rank in range(processes):
        for line in (run.with_name(f"{run.name}_notes") / f"seen_{rank}.jsonl").read_text().splitlines():
            step, *rows = json.loads(line)
            steps.setdefault(step, []).extend(rows)
    return steps


def left(run: Path) -> list[Any]:
    """Returns the results of a run: weights, optimizer state and average as bytes, and the metrics."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    numbers = [[line[name] for name in ("step", "loss", "grad_norm", "learning_rate", "epoch")] for line in metrics]
    last = run / "checkpoints" / f"step_{STEPS:08d}"
    return [numbers, *((last / f"{file}.safetensors").read_bytes() for file in ("model", "optimizer", "ema"))]


# --- the script -------------------------------------------------------------------------------------------------------------


def record(folder: Path, stop: int | None) -> None:
    """Makes pretraining record the inputs of its model in `folder`. `stop`: a step in which the last rank gets a signal."""
    rank, made, prepare = int(os.environ.get("RANK", "0")), MaskedObjective.loss, Training.prepare
    last, now = int(os.environ.get("WORLD_SIZE", "1")) - 1, dict[str, Any]()

    def note(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            mask, batch = kwargs["mask"], now["batch"]
            parts = (batch.index, batch.keys, args[0], mask.visible, mask.predict)
            rows = [[digest(part[i]) for part in parts] for i in range(len(batch))]
            with (folder / f"seen_{rank}.jsonl").open("a") as file:
                file.write(json.dumps([now["step"], *rows]) + "\n")

    def loss(objective: MaskedObjective, model: Any, batch: Any, step: int) -> Tensor:
        now.update(batch=batch, step=step)
        if step == stop and rank == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return made(objective, model, batch, step)

    def hooked(*parts: Any, **named: Any) -> Training:
        training = prepare(*parts, **named)
        training.unwrapped.register_forward_pre_hook(note, with_kwargs=True)
        return training

    MaskedObjective.loss, Training.prepare = loss, hooked  # type: ignore[method-assign]
    pretrain.draw_loss = lambda *_, **__: None  # the plot is not needed, and takes longer than the training


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def learn(folder: Path, config: pretrain.Config, workers: int, *, stop: int | None = None, resume: bool = False) -> None:
    torch.set_num_threads(1)
    notes = folder.with_name(f"{folder.name}_notes")
    notes.mkdir(exist_ok=True)
    record(notes, stop)
    data = replace(config.data, workers=workers)
    pretrain.run(replace(config, data=data, folder=str(folder), resume=resume))


def main(folder: Path, medium: str, whole: list[list[int]], rest: list[list[int]]) -> None:
    config = CONFIG
    if medium == "clips":
        (folder / "videos").mkdir()
        config = replace(CONFIG, data=clips(folder / "videos"), tokenizer=Tubes.Config(size=4, frames=2))
    log = folder / "log"
    begun = fork_ranks(2, partial(learn, folder / "begun", config, 1, stop=STOP), log)
    pids = [pid for p, w in whole for pid in fork_ranks(p, partial(learn, folder / f"whole_{p}_{w}", config, w), log)]
    well(begun, 143, log)
    for p, w in rest:
        shutil.copytree(folder / "begun", folder / f"rest_{p}_{w}")
        pids += fork_ranks(p, partial(learn, folder / f"rest_{p}_{w}", config, w, resume=True), log)
    well(pids, 0, log)


def well(pids: list[int], code: int, log: Path) -> None:
    codes = ends(pids, 120)
    assert [codes.get(pid) for pid in pids] == [code] * len(pids), log.read_text()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *json.loads(sys.argv[3]))
