"""Complete CIFAR-10 experiment: a recipe's pretraining, then nearest neighbours, probes and fine-tuning on all labels, compared
with random weights, raw pixels and training from scratch with the settings of the fine-tuning.

    python -m benchmarks.evaluate.cifar10 --source CIFAR10_PARQUET --out FOLDER --epochs 100
    python -m benchmarks.evaluate.cifar10 --source CIFAR10_PARQUET --out FOLDER --minutes 7 --train.batch_size 1024   on a GPU

Every stage is a command that a user would type, with `--resume auto`: a measurement that was stopped continues, and completed
stages are not repeated. With --minutes, a short run measures the speed first, and the pretraining lasts as many whole epochs as
fit. Flags that this script does not define are passed to the recipe. The accuracy of nearest neighbours during pretraining is
recorded beside the final results; hours count only the time between the log lines of the processes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measure import REPOSITORY, machine, table
from mmm.data import open_data
from recipes.image_mae import CIFAR10

PACE = 60  # updates of the run that measures the speed


class Measurement:
    """Runs the stages, and keeps their results in one folder."""

    def __init__(self, options: argparse.Namespace, flags: list[str]) -> None:
        self.options, self.flags, self.folder = options, flags, options.out.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.images = len(open_data(replace(CIFAR10.data, source=options.source, cache=False), "train"))

    def command(self, *words: object) -> None:
        """Runs `python ...` from the repository's root, and appends its output to commands.log."""
        line = [str(word) for word in words]
        print("python", *line, flush=True)
        with (self.folder / "commands.log").open("a", encoding="utf-8") as log:
            done = subprocess.run([sys.executable, *line], cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            raise SystemExit(f"ended with {done.returncode}: see {self.folder / 'commands.log'}")

    def metrics(self, run: str) -> list[dict[str, Any]]:
        """Reads the lines of a run's metrics.jsonl."""
        return [json.loads(line) for line in (self.folder / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def pretrain(self, run: str, *flags: object) -> None:
        recipe = [f"recipes/{self.options.recipe}.py", "--preset", "cifar10", "--data.source", self.options.source]
        self.command(*recipe, *self.flags, "--folder", self.folder / run, *flags)

    def epochs(self) -> int:
        """Returns the length of the pretraining in epochs."""
        if self.options.epochs is not None:
            return int(self.options.epochs)
        if not (self.folder / "pace" / "metrics.jsonl").exists():
            short = ("--train.epochs", "none", "--train.steps", PACE, "--train.log_every", PACE // 6)
            self.pretrain("pace", *short, "--train.warmup_epochs", "none", "--train.warmup_steps", 1, "--evaluate", "masked_loss")
        rates = [line["clock"]["samples_per_second"] for line in self.metrics("pace") if "clock" in line]
        return max(1, int(60 * self.options.minutes * median(rates[2:]) / self.images))

    def task(self, name: str, *words: object) -> dict[str, Any]:
        """Returns the result.json of a task; runs the task first if there is none yet."""
        result = self.folder / name / "result.json"
        if not result.exists():
            self.command(*words, "--folder", self.folder / name, "--resume", "auto")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found

    def neighbours(self) -> dict[str, Any]:
        """Evaluates nearest neighbours and a linear classifier for trained and random weights and for raw pixels."""
        file = self.folder / "knn.json"
        if not file.exists():
            self.command("-m", "tasks", "knn", self.folder / "pretrain", "--out", file)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def run(self) -> dict[str, Any]:
        """Runs all stages."""
        epochs, run = self.epochs(), self.folder / "pretrain"
        every = max(1, epochs // self.options.looks) * max(1, self.images // self.batch_size())
        looks = ("--evaluate", "masked_loss", "knn", "reconstruction", "--train.evaluate_every", every)
        self.pretrain("pretrain", "--train.epochs", epochs, "--train.save_every", every, *looks, "--resume", "auto")
        found: dict[str, Any] = {
            "epochs": epochs,
            "curve": curve(self.metrics("pretrain"), self.images),
            "neighbours": self.neighbours(),
        }
        source = ("--data.source", self.options.source)
        probe = ("recipes/image_linear_probe.py", "--preset", "cifar10", *source, "--model", run)
        short = ("--train.epochs", self.options.probe_epochs)
        found["linear"] = self.task("linear", *probe, *short, "--train.warmup_epochs", 1)
        found["attentive"] = self.task("attentive", "-m", "tasks", "attentive_probe", run, *short)
        tuning = ("recipes/image_finetune.py", "--preset", "cifar10", *source, "--train.epochs", self.options.tune_epochs)
        tuning += ("--train.warmup_epochs", 1)
        found["finetuned"] = self.task("finetuned", *tuning, "--model", run)
        found["from_scratch"] = self.task("from_scratch", *tuning, *self.shape())
        return found

    def shape(self) -> list[str]:
        """Returns the flags of tokenizer and encoder, for a model that is trained from scratch."""
        pairs = zip(self.flags, self.flags[1:], strict=False)
        return [word for pair in pairs if pair[0].startswith(("--tokenizer.", "--encoder.")) for word in pair]

    def batch_size(self) -> int:
        """Returns the batch size from the flags, or else from the preset."""
        return (
            int(self.flags[self.flags.index("--train.batch_size") + 1])
            if "--train.batch_size" in self.flags
            else CIFAR10.train.batch_size
        )


def curve(lines: list[dict[str, Any]], images: int) -> list[dict[str, float]]:
    """Returns hours, epochs and nearest-neighbour accuracy at each evaluation."""
    points, seconds, samples = [], 0.0, 0.0
    for line in lines:
        if "clock" in line and "samples_per_second" in line["clock"]:
            passed = line["epoch"] * images - samples
            seconds, samples = seconds + passed / line["clock"]["samples_per_second"], samples + passed
        if "knn_top1" in line:
            points.append({"hours": seconds / 3600, "step": line["step"], "knn_top1": line["knn_top1"]})
    return points


def describe(found: dict[str, Any], options: argparse.Namespace, flags: list[str]) -> str:
    """Formats the tables in Markdown."""
    near, line = found["neighbours"]["neighbours"], found["neighbours"]["linear"]
    names = {"trained": "pretrained", "untrained": "random weights", "raw_pixels": "raw pixels"}
    rows = [[shown, *(f"{100 * part[name]['top1']:.1f}" for part in (near, line)), "", ""] for name, shown in names.items()]
    rows[0][3] = " / ".join(f"{100 * best(found[name]):.1f}" for name in ("linear", "attentive"))
    rows[0][4] = f"{100 * found['finetuned']['top1']:.1f}"
    rows[1][4] = f"{100 * found['from_scratch']['top1']:.1f}"
    head = ["weights", "20 neighbours, %", "linear, 200 labels per class, %", "linear / attentive probe, %", "fine-tuned, %"]
    words = " ".join(["--recipe", options.recipe, *flags])
    lines = [f"# CIFAR-10, {found['epochs']} epochs ({words})", ""]
    lines += [f"- {name}: {value}" for name, value in found["machine"].items()]
    points = [[f"{point['hours']:.2f}", f"{point['step']:,}", f"{100 * point['knn_top1']:.1f}"] for point in found["curve"]]
    return "\n".join(
        [*lines, "", table(head, rows), "", table(["hours", "update", "20 neighbours (of 2,000 images), %"], points), ""]
    )


def best(result: dict[str, Any]) -> float:
    """Returns the accuracy of the probe on trained weights."""
    return float(result["trained"]["top1"] if "trained" in result else result["top1"])


def main() -> None:
    """Runs the missing stages and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--source", required=True, help="CIFAR-10: a folder of parquet files, or uoft-cs/cifar10")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--epochs", type=int, help="length of the pretraining")
    length.add_argument("--minutes", type=float, help="length of the pretraining, by a measured speed")
    parser.add_argument("--recipe", default="image_mae")
    parser.add_argument("--looks", type=int, default=10, help="evaluations while pretraining")
    parser.add_argument("--probe_epochs", type=int, default=10)
    parser.add_argument("--tune_epochs", type=int, default=10)
    options, flags = parser.parse_known_args()
    found = Measurement(options, flags).run()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found["machine"] = machine(device)
    text = describe(found, options, flags)
    (options.out / "result.json").write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")
    (options.out / "result.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
