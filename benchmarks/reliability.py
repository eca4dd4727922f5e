"""What a run survives, tried out: real trainings that are killed, stopped, damaged and restored.

    python -m benchmarks.reliability kills --count 20        SIGKILL at random moments, half of them inside a save
    python -m benchmarks.reliability restore --count 40      a resume from every step of a run of 40
    python -m benchmarks.reliability damage --count 100      every damage to every file of a checkpoint, so many seeds
    python -m benchmarks.reliability signals --count 20      SIGTERM, SIGINT or SIGUSR1 to any process at random moments
    python -m benchmarks.reliability ranks                   one of two processes is killed, stopped, or raises

Prints one JSON object with the figures and every shortfall, and ends with 1 where there is one. Every training is the pretrain task
on the built-in photographs in a fork of this process, which imports once and computes nothing itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmm.data import ImagesConfig
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.tokenizers import Patches
from mmm.train import checkpoint
from mmm.train.config import TrainConfig
from tasks import pretrain

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LIMIT = 300.0  # seconds for one training; this machine may be shared
CONFIG = pretrain.Config(
    data=ImagesConfig(
        source="builtin:photographs", eval_split="test", image_size=16, channels=1, mean=(0.5,), std=(0.18,), workers=0
    ),
    tokenizer=Patches.Config(size=4),
    encoder=VisionTransformer.Config(width=24, depth=2, heads=2, drop_path=0.2),
    decoder=SelfAttentionDecoder.Config(width=16, depth=1, heads=2),
    train=TrainConfig(
        steps=40,
        batch_size=8,
        micro_batch_size=4,
        learning_rate=1e-3,
        ema=0.9,
        log_every=5,
        save_every=4,
        keep_last=2,
        precision="fp32",
        threads=1,
        timeout=20,
    ),
    held_out=8,
    evaluate=(),
)


@dataclass
class Started:
    """A training in processes of its own: their numbers, rank 0 first. Its output is in `log`."""

    pids: list[int]
    log: Path
    codes: dict[int, int]

    def wait(self, seconds: float = LIMIT) -> list[int]:
        """The exit codes; negative: the signal. Whoever lives after so many seconds is killed, and counts as -9."""
        end = time.monotonic() + seconds
        while len(self.codes) < len(self.pids):
            for pid in self.pids:
                with suppress(ChildProcessError):
                    if pid not in self.codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                        self.codes[pid] = os.waitstatus_to_exitcode(found[1])
            if time.monotonic() > end:
                self.kill(*(pid for pid in self.pids if pid not in self.codes))
            time.sleep(0.005)
        return [self.codes[pid] for pid in self.pids]

    def kill(self, *pids: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal to these, or to all."""
        for pid in pids or self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def start(config: pretrain.Config, folder: Path, processes: int = 1, sabotage: Callable[[int], None] | None = None) -> Started:
    """Starts the training, or goes on with it where the folder holds it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = replace(config, folder=str(folder), resume=(folder / "config.yaml").exists())
    log = folder.with_suffix(".log")
    pids = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in environment.items()} if processes > 1 else {}
            _train(config, log, rank, sabotage)
        pids.append(pid)
    return Started(pids, log, {})


def _train(config: pretrain.Config, log: Path, rank: int, sabotage: Callable[[int], None] | None) -> None:
    """In the child: never returns."""
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if sabotage is not None:
            sabotage(rank)
        pretrain.run(config)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def whole(config: pretrain.Config, folder: Path, processes: int = 1) -> dict[str, Any]:
    """The training that nothing disturbs, and what it left."""
    run = start(config, folder, processes)
    codes = run.wait()
    assert codes == [0] * processes, run.log.read_text()
    return result(folder, config)


def result(folder: Path, config: pretrain.Config) -> dict[str, Any]:
    """Bytes of the last checkpoint's tensors, and the lines of metrics without what the clock says."""
    last = folder / "checkpoints" / f"step_{config.train.steps:08d}"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    bare = [{name: value for name, value in line.items() if name != "clock"} for line in lines]
    return {"metrics": bare} | {path.name: path.read_bytes() for path in sorted(last.glob("*.safetensors"))}


def finish(config: pretrain.Config, folder: Path, expected: dict[str, Any], processes: int = 1) -> str | None:
    """Goes on to the end; gives what is wrong with it."""
    run = start(config, folder, processes)
    if any(run.wait()):
        return f"{folder.name} did not end: {run.log.read_text()[-400:]}"
    found = result(folder, config)
    wrong = [name for name in expected if found.get(name) != expected[name]]
    return f"{folder.name} differs in {', '.join(wrong)}" if wrong else None


def kills(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Kills at random moments, several for each run; every second waits for a save to begin."""
    wrong, done, inside = [], 0, 0
    for setting, (processes, workers) in enumerate(((1, 0), (2, 0), (1, 2), (2, 2))):
        config = replace(CONFIG, data=replace(CONFIG.data, workers=workers))
        began = time.monotonic()
        expected = whole(config, work / f"whole_{setting}", processes)
        seconds, here = time.monotonic() - began, 0
        while here < count // 4:
            folder = work / f"killed_{setting}_{here}"
            for _ in range(min(3, count // 4 - here)):
                run = start(config, folder, processes)
                _wait_for_a_moment(run, folder, draw, seconds, save=here % 2 == 1)
                run.kill()
                if -signal.SIGKILL in run.wait():
                    here += 1
                    inside += any((folder / "checkpoints").glob("*.tmp"))
            wrong += filter(None, [finish(config, folder, expected, processes)])
        done += here
    return {"kills": done, "inside a save": inside, "wrong": wrong}


def _wait_for_a_moment(run: Started, folder: Path, draw: random.Random, seconds: float, *, save: bool) -> None:
    end = time.monotonic() + draw.uniform(0, seconds)
    while time.monotonic() < end:
        time.sleep(0.001)
    while save and not any((folder / "checkpoints").glob("*.tmp")):
        if all(_gone(pid) for pid in run.pids):
            return
        time.sleep(0.0005)
    time.sleep(draw.uniform(0, 0.01) if save else 0)


def _gone(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def restore(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Goes on from the checkpoint of every step."""
    config = replace(CONFIG, train=replace(CONFIG.train, save_every=1, keep_last=None))
    expected = whole(config, work / "whole")
    steps = sorted(draw.sample(range(1, 41), min(count, 40)))
    wrong = []
    for step in steps:
        folder = work / f"from_{step}"
        shutil.copytree(work / "whole", folder, ignore=shutil.ignore_patterns("step_*"))
        name = f"step_{step:08d}"
        shutil.copytree(work / "whole" / "checkpoints" / name, folder / "checkpoints" / name)
        wrong += filter(None, [finish(config, folder, expected)])
    return {"restored from": steps, "wrong": wrong}


def damage(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Is everything that changes what is read found, and the checkpoint before used?"""
    folder, tried, wrong = work / "checkpoints", 0, []
    for step in (1, 2):
        tensors = {name: {"weight": torch.randn(50 * step)} for name in ("model", "optimizer", "ema")}
        checkpoint.write(folder, step, tensors, {"begun": step / 3}, None)
    last = folder / "step_00000002"
    for file in sorted(last.iterdir()):
        content = file.read_bytes()
        for _ in range(count):
            for kind, harmed in _harms(content, (folder / "step_00000001" / file.name).read_bytes(), draw).items():
                file.unlink() if harmed is None else file.write_bytes(harmed)
                tried += 1
                same = harmed is not None and (harmed == content or _reads_the_same(file.name, harmed, content))
                if (checkpoint.damage(last) is None) != same:
                    wrong.append(f"{kind} of {file.name}")
                file.write_bytes(content)
    return {"damages": tried, "wrong": wrong}


def _reads_the_same(name: str, harmed: bytes, content: bytes) -> bool:
    """A changed white space in the manifest, which nothing reads."""
    with suppress(ValueError):
        return name == checkpoint.MANIFEST and json.loads(harmed) == json.loads(content)
    return False


def _harms(content: bytes, other: bytes, draw: random.Random) -> dict[str, bytes | None]:
    place, size = draw.randrange(len(content)), len(content)
    flipped = bytearray(content)
    flipped[place] ^= 1 << draw.randrange(8)
    zeroed = content[:place] + bytes(size - place)
    return {
        "flip": bytes(flipped),
        "truncation": content[:place],
        "zeros": zeroed,
        "removal": None,
        "growth": content + content[:1],
        "swap": other,
    }


def signals(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """All processes end with 143 within the stated time, and the run is exact."""
    config = replace(CONFIG, train=replace(CONFIG.train, steps=400, save_every=1000, log_every=7))
    wrong, longest, caught = [], 0.0, 0
    for processes in (1, 2):
        began = time.monotonic()
        expected = whole(config, work / f"whole_{processes}", processes)
        seconds, folder, here = time.monotonic() - began, work / f"stopped_{processes}", 0
        while here < count // 2:
            run = start(config, folder, processes)
            if not _wait_for_metrics(run, folder, draw.uniform(0, seconds / 8)):
                wrong += filter(None, [finish(config, folder, expected, processes)])
                shutil.rmtree(folder)
                continue
            sent = time.monotonic()
            for _ in range(draw.randint(1, 2)):
                run.kill(*draw.choice([[pid] for pid in run.pids] + [run.pids]), number=draw.choice(SIGNALS))
            codes = run.wait()
            here, longest = here + 1, max(longest, time.monotonic() - sent)
            saved = checkpoint.newest(folder / "checkpoints")
            if codes != [143] * processes or saved is None:
                wrong.append(f"{folder.name}: exit codes {codes}, newest {saved}: {run.log.read_text()[-400:]}")
        wrong += filter(None, [finish(config, folder, expected, processes)])
        caught += here
    return {"signals": caught, "longest seconds to the end": round(longest, 2), "wrong": wrong}


def _wait_for_metrics(run: Started, folder: Path, more: float) -> bool:
    """Until this start has made a few updates; whether it still trains."""
    path = folder / "metrics.jsonl"
    before = len(path.read_text().splitlines()) if path.exists() else 0
    while not path.exists() or len(path.read_text().splitlines()) <= before:
        if all(_gone(pid) for pid in run.pids):
            return False
        time.sleep(0.002)
    time.sleep(more)
    return not all(_gone(pid) for pid in run.pids)


def ranks(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """One of two goes, at a random step: the other ends too, and the run is resumed exactly."""
    expected = whole(CONFIG, work / "whole", 2)
    wrong, seconds = [], {}
    for kind in ("killed", "stopped", "raising"):
        for rank in (0, 1):
            folder, step = work / f"{kind}_{rank}", draw.randint(5, 35)
            run = start(CONFIG, folder, 2, _saboteur(kind, rank, step, folder.with_suffix(".at")))
            while not folder.with_suffix(".at").exists():
                time.sleep(0.005)
            began = time.monotonic()
            allowed = 10 + (CONFIG.train.timeout if kind == "stopped" else 0)
            other = Started([run.pids[1 - rank]], run.log, {})
            (code,) = other.wait(allowed)
            seconds[folder.name] = round(time.monotonic() - began, 2)
            if code in (0, -signal.SIGKILL):
                wrong.append(f"{folder.name}: the other process ended with {code} after {seconds[folder.name]} s")
            run.kill(run.pids[rank])
            Started([run.pids[rank]], run.log, {}).wait()
            wrong += filter(None, [finish(CONFIG, folder, expected, 2)])
    return {"seconds until the other ends": seconds, "wrong": wrong}


def _saboteur(kind: str, rank: int, step: int, mark: Path) -> Callable[[int], None]:
    """Makes a process harm itself when it computes a certain step."""

    def sabotage(here: int) -> None:
        if here != rank:
            return
        made = pretrain.masked_loss

        def harmful(*parts: Any) -> Any:
            loss_of = made(*parts)

            def loss(model: Any, batch: Any, now: int) -> Any:
                if now == step:
                    mark.touch()
                    if kind == "raising":
                        raise RuntimeError(f"rank {rank} raises in step {step}")
                    os.kill(os.getpid(), signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
                return loss_of(model, batch, now)

            return loss

        pretrain.masked_loss = harmful

    return sabotage


GOALS = {"kills": kills, "restore": restore, "damage": damage, "signals": signals, "ranks": ranks}


def main() -> None:
    """Tries one goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goal", choices=GOALS)
    parser.add_argument("--count", type=int, default=8, help="how many; ranks has its own")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        found = GOALS[given.goal](Path(work), given.count, random.Random(given.seed))
    print(json.dumps({"goal": given.goal, "seed": given.seed, **found, "seconds": round(time.monotonic() - began)}, indent=2))
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
