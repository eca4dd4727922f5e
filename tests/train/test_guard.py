"""A skipped update changes no weights or state, the rest of the run stays the same, and its samples are recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_loop import CONFIG, Bend, Net, assert_same, ids, lines, loss_of, loss_with_bad_gradient, state, table, train

from mmm.train import loop
from mmm.train.ema import EMA
from mmm.train.loop import nan_if_nonfinite, step_if_finite
from mmm.train.metrics import MetricsAccumulator, NonFiniteError, PartialMetrics

FLAT = replace(CONFIG, log_every=4, save_every=4)


def skipped(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def copy(training):
    return {name: value.clone() for name, value in state(training).items() if name != "calls" and not name.endswith("/calls")}


@pytest.mark.parametrize("clip_norm", [0.5, None])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nothing_moves_in_an_update_that_is_left_out(tmp_path, clip_norm, what):
    seen = []

    def loss(model, batch, step):
        value = loss_of(model, batch, step)
        return value if step != 5 else value * float("inf") if what == "loss" else Bend.apply(value)

    train(tmp_path, replace(FLAT, clip_norm=clip_norm), loss=loss, between=lambda training: seen.append(copy(training)))
    assert_same(seen[4], seen[5])
    assert len([name for name in seen[5] if not torch.equal(seen[5][name], seen[6][name])]) > 10
    assert skipped(tmp_path) == [{"step": 5, "what": what, "samples": ids(5)}]
    assert [line.get("skipped") for line in lines(tmp_path)] == [None, 1, None]


def test_the_first_update_of_all(tmp_path):
    """The optimizer has no state yet."""

    def loss(model, batch, step):
        return loss_of(model, batch, step) * (float("nan") if step == 0 else 1)

    seen = []
    training = train(tmp_path, FLAT, loss=loss, between=lambda training: seen.append(copy(training)))
    assert all(value.isfinite().all() for value in state(training).values())
    assert not any(value.any() for name, value in seen[0].items() if "exp_avg" in name or name.endswith("step"))


def test_a_bad_sample_is_named_and_the_rest_goes_on(tmp_path):
    data = table()
    data[3] = float("inf")
    training = train(tmp_path, replace(FLAT, micro_batch_size=2), data=data)
    expected = [(step, ids(step).index(3) // 2 * 2) for step in range(12) if 3 in ids(step)]
    assert skipped(tmp_path) == [{"step": step, "what": "loss", "samples": ids(step)[at : at + 2]} for step, at in expected]
    assert all(value.isfinite().all() for value in state(training).values())
    assert all(line["loss"] is not None for line in lines(tmp_path))


def test_too_many_in_a_row_stop_the_run_also_over_a_resume(tmp_path):
    def loss(model, batch, step):
        return loss_of(model, batch, step) * (float("nan") if step >= 6 else 1)

    config = replace(FLAT, max_skipped=4)
    with pytest.raises(NonFiniteError, match=r"loss of step 10 is .* more than train.max_skipped 4 in a row"):
        train(tmp_path, config, loss=loss)
    assert [one["step"] for one in skipped(tmp_path)] == [6, 7, 8, 9, 10]
    with pytest.raises(NonFiniteError, match="step 10"):  # resumes from step 8; two of the skipped updates came before it
        train(tmp_path, config, loss=loss, resume=True)
    assert [one["step"] for one in skipped(tmp_path)] == [6, 7, 8, 9, 10]
    train(tmp_path, config, resume=True)
    assert [one["step"] for one in skipped(tmp_path)] == [6, 7]


def test_gradients_that_no_scale_of_fp16_makes_finite_stop_the_run():
    """The scaler needs a few skipped updates to find its scale, at most 16 from 65,536 to 1."""
    accelerator = SimpleNamespace(gather=lambda losses: losses, scaler=object(), is_main_process=True)

    def sync(norms, partial):
        metrics = MetricsAccumulator(accelerator, None, ids, 2, partial)
        metrics.norms = [torch.tensor(norm) for norm in norms]
        metrics.losses = [torch.zeros(1) for _ in norms]
        return [skipped.step for skipped in metrics.sync(len(norms))]

    inf, partial = float("inf"), PartialMetrics()
    assert sync([inf] * 15 + [1.0] + [inf] * 16 + [1.0], partial) == []
    assert partial.skipped == 0
    assert sync([inf] * 10, partial) == []
    partial = PartialMetrics(**partial.plain())  # in a checkpoint
    assert sync([inf] * 8, partial) == [6, 7]
    with pytest.raises(NonFiniteError, match=r"gradient of step 0 is not finite.* more than train.max_skipped 2 in a row"):
        sync([inf], partial)


def test_the_guard_changes_no_bit_of_a_run_without_such_numbers(tmp_path, monkeypatch):
    guarded = train(tmp_path / "a", FLAT)
    monkeypatch.setattr(loop, "nan_if_nonfinite", lambda loss: loss)
    monkeypatch.setattr(loop, "step_if_finite", lambda norm, optimizer, scaler: optimizer.step())
    update = EMA.update
    monkeypatch.setattr(EMA, "update", lambda self, model, decay, made: update(self, model, decay))
    assert_same(state(guarded), state(train(tmp_path / "b", FLAT)))
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_a_resume_drops_what_it_will_write_again(tmp_path):
    whole = train(tmp_path / "whole", FLAT, loss=loss_with_bad_gradient)
    train(tmp_path / "parts", FLAT, loss=loss_with_bad_gradient, until=7)
    (tmp_path / "parts" / "skipped.jsonl").open("a").write('{"step": 6, "what": "loss", "samples": []}\n')
    assert_same(state(whole), state(train(tmp_path / "parts", FLAT, loss=loss_with_bad_gradient, resume=True)))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    assert skipped(tmp_path / "whole") == skipped(tmp_path / "parts") == [{"step": 2, "what": "gradient", "samples": ids(2)}]


def test_a_loss_that_has_a_finite_gradient_is_left_out_too():
    x = torch.zeros(2, requires_grad=True)
    nan_if_nonfinite(x.sum() + float("inf")).backward()
    assert x.grad.isnan().all()


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, "fused"])
def test_any_optimizer(make):
    model = Net(0.0)
    rates = {"lr": 0.1} | ({"momentum": 0.9} if make is torch.optim.SGD else {})
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **rates) if make == "fused" else make(model.parameters(), **rates)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, float("nan"))
    step_if_finite(torch.tensor(float("nan")), optimizer, None)
    assert_same(before, model.state_dict())
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    step_if_finite(torch.tensor(1.0), optimizer, None)
    assert not torch.equal(before["layers.0.weight"], model.state_dict()["layers.0.weight"])
