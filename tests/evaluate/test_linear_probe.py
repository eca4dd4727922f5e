"""Tests of the linear probe: metrics, optimizer, several rates at once, exact fits, protocol, and two processes.

Run as a script, this file starts two processes (`test_two_processes_equal_one`).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import reset_accelerate
from forked import PYTHONPATH
from probe_data import TEST, TRAIN, digits_data, write_config, write_digits
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score, top_k_accuracy_score

from mmm import MaskedModel
from mmm.classifier import Classifier, HeadConfig
from mmm.config.diff import differences, flatten
from mmm.config.serialize import load
from mmm.core.types import Shape
from mmm.data import ClipsConfig
from mmm.encoders import VisionTransformer
from mmm.evaluate.evaluator import EvaluatorSet
from mmm.evaluate.metrics import Tally, mean_of_views, ranks
from mmm.evaluate.probes.heads import Probes, make_probe_optimizer, probes_loss
from mmm.evaluate.probes.logistic_sweep import SweepConfig, fit_penalties
from mmm.evaluate.probes.run import format_probe
from mmm.evaluate.probes.setup import ProbeSetup, open_probe_setup
from mmm.evaluate.protocol import weights_fingerprint
from mmm.evaluate.run_results import Record
from mmm.pools import ClassPool, MeanPool
from mmm.train.config import TrainConfig
from mmm.train.distributed.setup import start
from mmm.train.schedule import set_learning_rate
from tasks import attentive_probe, finetune, linear_probe, pretrain

HEAD = HeadConfig(norm="batch", std=0.01)
TRAINING = TrainConfig(
    steps=6,
    batch_size=24,
    learning_rate=3.0,
    scale_learning_rate=None,
    warmup_steps=1,
    weight_decay=0.0,
    precision="fp32",
    threads=1,
    log_every=2,
)


# --- metrics ----------------------------------------------------------------------------------------------------------------


def test_metrics_agree_with_scikit_learn() -> None:
    scores, labels = torch.randn(3, 200, 8).double(), torch.randint(8, (200,))
    scores[1].scatter_add_(1, labels[:, None], torch.full((200, 1), 1.5).double())
    tally = Tally(3, 8)
    for part in (slice(0, 70), slice(70, 200)):
        tally.add(scores[:, part], labels[part])
    for number in range(3):
        found, own = tally.result(number), scores[number].numpy()
        assert found["top1"] == pytest.approx(accuracy_score(labels, own.argmax(1)))
        assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, own, k=5))
        assert found["per_class"] == pytest.approx(recall_score(labels, own.argmax(1), average=None))
        assert found["mean_per_class"] == pytest.approx(recall_score(labels, own.argmax(1), average="macro"))
        assert found["samples"] == 200
    assert tally.top1() == [tally.result(number)["top1"] for number in range(3)]


def test_counts_of_all_processes_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally(2, 3)
    tally.add(torch.tensor([[[2.0, 1, 0], [2, 1, 0]], [[0, 1, 2], [0, 1, 2]]]), torch.tensor([0, 1]))
    monkeypatch.setattr("mmm.evaluate.metrics.rank_and_world", lambda: (0, 2))
    monkeypatch.setattr("torch.distributed.all_reduce", lambda counts: counts.mul_(2))
    whole = tally.gather()
    assert whole.seen.tolist() == [2, 2, 0]
    assert whole.first.tolist() == [[2, 0, 0], [0, 0, 0]]
    assert whole.among.tolist() == [[2, 2, 0], [2, 2, 0]]
    assert whole.result(0)["per_class"] == [1.0, 0.0, None]


def test_what_is_no_number_is_never_right_and_ties_go_to_the_lower_class() -> None:
    nan = float("nan")
    scores = torch.tensor([[1.0, 1.0, 0.0], [nan, 0.0, 0.0], [0.0, nan, 1.0], [0.0, 0.0, 1.0]])
    assert ranks(scores, torch.tensor([0, 0, 2, 2])).tolist() == [0, 3, 3, 0]
    assert ranks(scores[:1], torch.tensor([1])).tolist() == [1]


def test_views_are_averaged_as_shares() -> None:
    logits = torch.randn(2, 6, 4) * 3
    found = mean_of_views(logits, 3)
    for sample in range(2):
        expected = sum(logits[1, 3 * sample + view].softmax(0) for view in range(3)) / 3
        assert torch.allclose(found[1, sample], expected)


# --- heads ------------------------------------------------------------------------------------------------------------------


def make_probes(rates: tuple[float, ...], **choices: Any) -> Probes:
    return Probes(len(rates), MeanPool.Config(), replace(HEAD, **choices), encoder=Shape(12, 1, 1), classes=5, seed=0)


def steps(probes: Probes, rates: tuple[float, ...], config: TrainConfig, count: int = 4) -> Iterator[list[torch.Tensor]]:
    """Trains on fixed batches; yields the gradients of the weights and biases before each step."""
    optimizer = make_probe_optimizer(probes, rates, config, "lars", 0.9)
    draw = torch.Generator().manual_seed(1)
    for step in range(count):
        values, labels = torch.randn(16, 12, generator=draw), torch.randint(5, (16,), generator=draw)
        set_learning_rate(optimizer, 0.5 / (step + 1))
        optimizer.zero_grad()
        probes_loss(probes, (values, labels), 0).backward()
        yield [weight.grad.clone() for weight in probes.parameters()]
        optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_against_a_plain_statement(decay: float) -> None:
    """Matrices have weight decay and a step of 0.001 |w| / |g|, vectors have neither, and both have a momentum of 0.9."""
    rates, probes = (1.0, 0.1), make_probes((1.0, 0.1))
    torch.nn.init.normal_(probes.heads[1].linear.weight)
    ours = [weight.detach().clone().double() for weight in probes.parameters()]
    speed = [torch.zeros_like(weight) for weight in ours]
    for step, gradients in enumerate(steps(probes, rates, replace(TRAINING, weight_decay=decay))):
        for i, gradient in enumerate(gradients):
            change = gradient.double()
            if ours[i].ndim > 1:
                change = change + decay * ours[i]
                size = gradient.double().norm() + decay * ours[i].norm()
                change = change * 0.001 * ours[i].norm() / size
            speed[i] = 0.9 * speed[i] + change
            ours[i] = ours[i] - rates[i // 2] * 0.5 / (step + 1) * speed[i]
    for weight, expected in zip(probes.parameters(), ours, strict=True):
        assert torch.allclose(weight.detach().double(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["lars", "adamw"])
def test_many_rates_at_once_equal_each_alone(kind: Any) -> None:
    rates = (0.3, 1.0, 3.0)
    draw = torch.randn(3, 16, 12), torch.randint(5, (3, 16))

    def trained(some: tuple[float, ...]) -> Probes:
        probes = make_probes(some)
        optimizer = make_probe_optimizer(probes, some, TRAINING, kind, 0.9)
        for values, labels in zip(*draw, strict=True):
            set_learning_rate(optimizer, 0.5)
            optimizer.zero_grad()
            probes_loss(probes, (values, labels), 0).backward()
            optimizer.step()
        return probes

    together = trained(rates)
    for number, rate in enumerate(rates):
        alone = trained((rate,)).heads[0].linear.weight
        assert torch.allclose(together.heads[number].linear.weight, alone, atol=1e-6)
    assert not torch.allclose(together.heads[0].linear.weight, together.heads[2].linear.weight, atol=1e-4)


# --- exact ------------------------------------------------------------------------------------------------------------------


def test_the_exact_probe_agrees_with_scikit_learn() -> None:
    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    train, test = (x[:600].float(), y[:600]), (x[600:1000].float(), y[600:1000])
    found = fit_penalties(*train, *test, 10, SweepConfig(penalties=(0.01,)), seed=0)
    spread, centre = torch.std_mean(train[0].double(), 0, correction=0)
    spread = spread.where(spread > 1e-6, 1.0)
    theirs = LogisticRegression(C=1 / (0.01 * 600), max_iter=2000, tol=1e-8).fit(((train[0] - centre) / spread).numpy(), y[:600])
    expected = theirs.predict_proba(((test[0] - centre) / spread).numpy())
    assert found["top1"] == pytest.approx(accuracy_score(y[600:1000], expected.argmax(1)), abs=1 / 400)
    assert found["top5"] == pytest.approx(top_k_accuracy_score(y[600:1000], expected, k=5), abs=1 / 400)


def test_the_test_part_does_not_choose_the_penalty() -> None:
    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    config = SweepConfig(penalties=(1e-3, 10.0, 0.1), iterations=60)
    found = fit_penalties(x[:300].float(), y[:300], x[300:400].float(), y[300:400], 10, config)
    other = fit_penalties(x[:300].float(), y[:300], x[300:400].float(), y[300:400].flip(0), 10, config)
    assert [tried["penalty"] for tried in found["tried"]] == [10.0, 0.1, 1e-3]
    assert found["tried"] == other["tried"]
    best = max(tried["held_back"]["top1"] for tried in found["tried"])
    assert found["tried"][found["chosen"]] == {"penalty": found["penalty"], "held_back": {"top1": best}}
    assert found["penalty"] != 10.0
    with pytest.raises(ValueError, match="exact.penalties"):
        SweepConfig(penalties=(0.0,))


# --- the task ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[linear_probe.Config]:
    folder = tmp_path_factory.mktemp("digits")
    data = digits_data(write_digits(folder / "data"))
    yield probe_config(folder, data)
    reset_accelerate()


def probe_config(folder: Path, data: Any) -> linear_probe.Config:
    return linear_probe.Config(
        model=write_config(folder / "untrained", data),
        data=data,
        pool=MeanPool.Config(),
        head=HEAD,
        train=TRAINING,
        rates=(0.05, 1.0),
        held_back=0.2,
        methods=("trained",),
    )


def test_the_task_scores_every_rate_and_says_how(setting: linear_probe.Config, tmp_path: Path, capsys: Any) -> None:
    training = replace(TRAINING, steps=20, evaluate_every=10, learning_rate=0.1)
    config = replace(setting, folder=str(tmp_path / "run"), methods=("trained", "exact"), train=training)
    config = replace(config, optimizer="adamw", rates=(1e-3, 1.0))  # LARS needs more steps than a test has
    found = linear_probe.run(config)
    trained, exact = found["trained"], found["exact"]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == found
    assert [tried["rate"] for tried in trained["tried"]] == [1e-3, 1.0]
    assert [tried["learning_rate"] for tried in trained["tried"]] == pytest.approx([1e-4, 0.1])
    held = [tried["held_back"]["top1"] for tried in trained["tried"]]
    assert trained["chosen"] == held.index(max(held))
    assert trained["top1"] == trained["tried"][trained["chosen"]]["test"]["top1"]
    assert (trained["samples"], exact["samples"]) == (10 * TEST, 10 * TEST)
    assert trained["chosen"] == 1
    assert trained["top1"] > 0.4  # of ten classes
    assert exact["top1"] > 0.4
    protocol = trained["protocol"]
    assert protocol["train"]["samples"] + protocol["validation"]["samples"] == 10 * TRAIN
    assert protocol["validation"]["samples"] == 24
    assert protocol["test"]["per_class"] == [TEST] * 10
    assert (protocol["pool"], protocol["precision"], protocol["step"]) == ({"name": "mean"}, "fp32", 0)
    assert [line["step"] for line in lines(tmp_path / "run") if "held_back_top1" in line] == [10, 20]
    assert protocol["schedule"]["train.steps"] == 20
    said = capsys.readouterr().out
    assert f"{trained['top1']:.2%}" in said
    assert "(chosen)" in said
    assert format_probe(found) in said


def test_protocols_name_what_differs(setting: linear_probe.Config, tmp_path: Path) -> None:
    for name, change in (("a", {}), ("b", {}), ("c", {"seed": 5, "pool": ClassPool.Config()})):
        linear_probe.run(replace(setting, folder=str(tmp_path / name), train=replace(TRAINING, steps=1), **change))
    found = [json.loads((tmp_path / name / "result.json").read_text())["trained"]["protocol"] for name in "abc"]
    one, same, other = map(flatten, found)
    assert differences(one, same) == []
    told = differences(one, other)
    assert "pool.name was mean, is class" in told
    assert "schedule.seed was 0, is 5" in told
    assert any(line.startswith("validation.fingerprint was") for line in told)
    assert not any(line.startswith(("test", "weights", "size")) for line in told)


def test_one_rate_is_trained_on_everything_and_wrong_values_are_said(setting: linear_probe.Config) -> None:
    with pytest.raises(ValueError, match="2 rates need held-back samples"):
        replace(setting, held_back=0.0)
    with pytest.raises(ValueError, match="rates"):
        replace(setting, rates=())
    with pytest.raises(ValueError, match="clips the gradients of all rates together"):
        replace(setting, train=replace(TRAINING, clip_norm=1.0))
    with pytest.raises(ValueError, match="give --data.mean 0.3"):
        linear_probe.run(replace(setting, data=replace(setting.data, mean=(0.5,))))
    with pytest.raises(ValueError, match="held_back 0.001 of 120 samples is 0"):
        linear_probe.run(replace(setting, held_back=0.001))


@pytest.mark.parametrize("task", [linear_probe, attentive_probe, finetune], ids=lambda task: task.__name__)
def test_a_run_s_data_is_the_default(task: Any, setting: linear_probe.Config, tmp_path: Path) -> None:
    """With another source, a probe took the size of the defaults; a packed run could not be probed by training."""
    packed = replace(setting.data, sides=(8, 12), pack=True, eval_split="test", holdout=0.3)
    saved = Path(write_config(tmp_path / "run", packed))
    for model in (saved, saved.parent):
        assert task.defaults({"model": [str(model)]}) == task.Config(data=replace(packed, pack=False))
    other = task.defaults({"model": [str(saved.parent)], "data.source": ["other"]}).data
    assert (other.image_size, other.channels, other.mean, other.holdout) == (8, 1, (0.3,), 0.3)
    assert (other.source, other.eval_split) == (None, None)
    assert task.defaults({"model": ["published.pth"]}) == task.Config()


def test_a_preset_s_data_is_used_with_the_source_of_the_run(
    setting: linear_probe.Config, tmp_path: Path, build: Callable[..., MaskedModel]
) -> None:
    """Without a source, the values of a preset were ignored, but config.yaml stated them."""
    model = write_config(tmp_path / "untrained", replace(setting.data, eval_split="test", holdout=0.3, flip=0.1))
    data = replace(setting.data, source=None, crop_scale=(0.5, 1.0), flip=0.25)
    config = replace(setting, model=model, data=data, train=replace(TRAINING, steps=1), folder=str(tmp_path / "run"))
    protocol = linear_probe.run(config)["trained"]["protocol"]
    assert (protocol["sampling"]["crop_scale"], protocol["sampling"]["flip"]) == ([0.5, 1.0], 0.25)
    saved = load(linear_probe.Config, tmp_path / "run" / "config.yaml").data
    assert saved == replace(data, source=setting.data.source, eval_split="test", holdout=0.3)
    with pytest.raises(ValueError, match="was trained on images; give videos"):
        linear_probe.run(replace(config, data=ClipsConfig()))
    build((8, 8), 1).save_pretrained(tmp_path / "published")
    with pytest.raises(ValueError, match="^--data.source is not set"):
        open_probe_setup(replace(config, model=str(tmp_path / "published")), start(config.train))


def test_scores_on_other_data_are_not_the_run_s_own(setting: linear_probe.Config, tmp_path: Path) -> None:
    """The card of the run showed the accuracy on another source as one on the run's data."""
    model = load(pretrain.Config, write_config(tmp_path / "untrained", setting.data))
    pretrain.run(replace(model, evaluate=EvaluatorSet.of(), folder=str(tmp_path / "pretrained")))
    config = replace(setting, model=str(tmp_path / "pretrained"), train=replace(TRAINING, steps=1))
    other = str(write_digits(tmp_path / "other"))
    changes: list[dict[str, Any]] = [
        {},
        {"data": replace(setting.data, source=other)},
        {"data": replace(setting.data, image_size=12)},
        {"test_split": "train"},
    ]
    for number, change in enumerate(changes):
        reset_accelerate()
        linear_probe.run(replace(config, folder=str(tmp_path / str(number)), **change))
    found = [json.loads(line) for line in (tmp_path / "pretrained" / "evaluations.jsonl").read_text().splitlines()]
    assert [line.get("changes") for line in found] == [None, {"source": other}, {"size": [12, 12]}, {"test_split": "train"}]
    assert Record.read(tmp_path / "pretrained").evaluations["linear_probe"]["run"] == str(tmp_path / "0")


def test_published_weights_with_another_normalisation_get_a_warning(
    setting: linear_probe.Config, tmp_path: Path, build: Callable[..., MaskedModel], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "encoder.pth"
    weights = build((8, 8), encoder=VisionTransformer.Config(size="tiny", depth=1)).encoder.state_dict()
    torch.save({"model": weights}, file)  # its format states no normalisation, so that ImageNet's is assumed
    data = replace(setting.data, channels=3, mean=(0.3,) * 3, std=(0.4,) * 3)
    open_probe_setup(replace(setting, model=str(file), data=data), start(setting.train))
    assert f"data.std (0.4, 0.4, 0.4) are not those of {file}" in caplog.text
    with pytest.raises(ValueError, match="is a model of 3 channels"):
        open_probe_setup(replace(setting, model=str(file)), start(setting.train))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_probe_goes_on(setting: linear_probe.Config, tmp_path: Path) -> None:
    config = replace(setting, train=replace(TRAINING, save_every=2))
    whole = linear_probe.run(replace(config, folder=str(tmp_path / "whole")))
    config = replace(config, folder=str(tmp_path / "again"))
    linear_probe.run(config)
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_00000006")  # as if killed after step 4
    again = linear_probe.run(replace(config, resume=True))
    first, second = (tmp_path / name / "checkpoints" / "step_00000006" / "model.safetensors" for name in ("whole", "again"))
    assert first.read_bytes() == second.read_bytes()
    assert again["trained"]["tried"] == whole["trained"]["tried"]
    assert [line["loss"] for line in lines(tmp_path / "again")] == [line["loss"] for line in lines(tmp_path / "whole")]
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        linear_probe.run(replace(config, resume=True, seed=1))


def test_encoding_is_not_waiting_for_data(setting: linear_probe.Config, tmp_path: Path, monkeypatch: Any) -> None:
    """Issue 13, point 27: a probe reported that it waited for data 99.8 % of its time, but this was the time of the encoder."""
    tokens = ProbeSetup.tokens
    monkeypatch.setattr(ProbeSetup, "tokens", lambda self, x: time.sleep(0.1) or tokens(self, x))
    linear_probe.run(replace(setting, folder=str(tmp_path / "run")))
    assert max(line["clock"]["data_wait"] for line in lines(tmp_path / "run")) < 0.5


def test_batch_norm_sees_the_whole_update(setting: linear_probe.Config, tmp_path: Path) -> None:
    """The size of micro-batches does not change the losses."""
    config = setting
    for name, size in (("whole", None), ("cut", 8)):
        linear_probe.run(replace(config, folder=str(tmp_path / name), train=replace(config.train, micro_batch_size=size)))
    whole, cut = ([line["loss"] for line in lines(tmp_path / name)] for name in ("whole", "cut"))
    assert cut == pytest.approx(whole, rel=1e-4)


def test_a_probe_becomes_a_classifier(build: Callable[..., MaskedModel]) -> None:
    model, x = build(), torch.randn(3, 3, 12, 16)
    probes = Probes(2, MeanPool.Config(), HEAD, encoder=model.encoder.shape, classes=4, seed=1).eval()
    classifier = Classifier(model.tokenizer, model.encoder, *probes.parts(1), frozen=True).eval()  # type: ignore[arg-type]
    assert torch.allclose(classifier(x), probes(probes.prepare(classifier.encode(x)))[1], atol=1e-6)


def test_a_fingerprint_knows_every_weight(build: Callable[..., MaskedModel]) -> None:
    encoder = build().encoder
    before = weights_fingerprint(encoder)
    assert weights_fingerprint(encoder) == before
    with torch.no_grad():
        encoder.blocks[1].mlp.fc2.bias[3] += 1e-6
    assert weights_fingerprint(encoder) != before


# --- two processes ----------------------------------------------------------------------------------------------------------


def two_probes(folder: Path) -> None:
    config = probe_config(folder, digits_data(folder / "data"))
    config = replace(config, train=replace(TRAINING, micro_batch_size=12), methods=("trained", "exact"))
    found = linear_probe.run(replace(config, folder=str(folder / "run")))
    (folder / f"found-{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps(found))


def fork_two(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    other = os.fork()
    os.environ |= {"RANK": str(int(other == 0)), "LOCAL_RANK": str(int(other == 0))}
    two_probes(folder)
    if other:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))


@pytest.mark.skipif(sys.platform == "win32", reason="starts its processes by fork")
def test_two_processes_equal_one(setting: linear_probe.Config, tmp_path: Path) -> None:
    """At equal micro_batch_size, the batch norm's statistics, the counts and the features are those of both processes."""
    for folder in ("one", "two"):
        write_digits(tmp_path / folder / "data")
        write_config(tmp_path / folder / "untrained", digits_data(tmp_path / folder / "data"))
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    subprocess.run([sys.executable, __file__, str(tmp_path / "two")], env=environment, check=True, timeout=280)
    two_probes(tmp_path / "one")
    one = json.loads((tmp_path / "one" / "found-alone.json").read_text())
    expected = [line["loss"] for line in lines(tmp_path / "one" / "run")]
    assert [line["loss"] for line in lines(tmp_path / "two" / "run")] == pytest.approx(expected, rel=1e-4)
    for rank in range(2):
        two = json.loads((tmp_path / "two" / f"found-{rank}.json").read_text())
        for method in ("trained", "exact"):
            assert two[method]["samples"] == one[method]["samples"] == 10 * TEST
            assert two[method]["top1"] == pytest.approx(one[method]["top1"], abs=1 / (10 * TEST) + 1e-9)
            assert two[method]["chosen"] == one[method]["chosen"]


if __name__ == "__main__":
    fork_two(Path(sys.argv[1]))
