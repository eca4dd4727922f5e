"""Evaluations are parts: they are chosen by name, have options, and are measured, logged, printed and compared."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from mmm import MaskedModel
from mmm.config.cli import parse
from mmm.config.serialize import from_dict, load, save, to_dict
from mmm.data import ImagesConfig, Problem
from mmm.evaluate.builtin import FewShotProbe, FrozenFeatures, MaskedLoss, OnlineKnn, ReconstructionGallery
from mmm.evaluate.compare_runs import compare, format_comparison, group_runs
from mmm.evaluate.evaluator import Column, Context, Evaluations, Evaluator, EvaluatorConfig, EvaluatorSet, evaluators
from mmm.evaluate.run_results import Record, record

Build = Callable[..., MaskedModel]
TILES = ImagesConfig(source="builtin:photographs", image_size=16, channels=1, mean=(0.5,), std=(0.25,), workers=0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The config of a task as the command line reads it."""

    data: ImagesConfig = TILES
    evaluate: EvaluatorSet = EvaluatorSet.of(MaskedLoss.Config(), ReconstructionGallery.Config(samples=4))


@pytest.fixture
def count() -> Iterator[type[Evaluator]]:
    """Registers an evaluation for one test, as a user may do."""

    @evaluators.register("count")
    class Count(Evaluator):
        @dataclass(frozen=True, kw_only=True)
        class Config(EvaluatorConfig):
            offset: int = 0

        columns: ClassVar[Mapping[str, Column]] = {"weights": Column("weights", "{:,.0f}")}

        def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
            context.problems.append(Problem(1, "one", "unreadable"))
            return {"weights": sum(weight.numel() for weight in model.parameters()) + self.config.offset, "kind": "all"}

    yield Count
    del evaluators.parts["count"]


@pytest.fixture
def context(build: Build) -> Context:
    model = build((16, 16), 1)
    return Context(
        data=TILES, masker=model.masker, device=torch.device("cpu"), title="run", untrained=lambda: build((16, 16), 1), steps=10
    )


# --- by name ----------------------------------------------------------------------------------------------------------------


def test_names_choose_evaluations_and_keep_what_was_chosen_of_them() -> None:
    chosen = parse(Config(), ["--evaluate", "features", "reconstruction", "--evaluate.features.k", "7"]).evaluate
    assert chosen == EvaluatorSet.of(FrozenFeatures.Config(k=7), ReconstructionGallery.Config(samples=4))
    assert chosen.names == ("features", "reconstruction")
    assert parse(Config(), []).evaluate == Config().evaluate
    assert parse(Config(), ["--evaluate"]).evaluate == EvaluatorSet.of()
    assert type(Config().evaluate.of()) is type(EvaluatorSet.of())  # `of` also works on an instance
    assert parse(Config(), ["--evaluate", "knn", "--evaluate.knn.every", "3"]).evaluate.knn == OnlineKnn.Config(every=3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--evaluate", "featurs"], "--evaluate: no evaluator is called 'featurs'.*did you mean 'features'"),
        (["--evaluate.features.k", "7"], "features is not chosen; to add it: --evaluate masked_loss reconstruction features"),
        (["--evaluate", "features", "--evaluate.features.j", "7"], "did you mean '--evaluate.features.k'"),
        (["--evaluate", "features", "--evaluate.features.k", "0"], "evaluate.features.k 0 is not a whole number of at least 1"),
        (["--evaluate", "knn", "--evaluate.knn.every", "0"], "evaluate.knn.every 0 is not a whole number of at least 1"),
    ],
)
def test_wrong_names_and_values_are_said(flags: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(Config(), flags)


def test_a_saved_set_loads_to_an_equal_one(tmp_path: Path) -> None:
    config = Config(evaluate=EvaluatorSet.of(FewShotProbe.Config(steps=7), MaskedLoss.Config(every=5)))
    save(config, tmp_path / "a.yaml")
    assert load(Config, tmp_path / "a.yaml") == config
    assert list(to_dict(config)["evaluate"]) == ["few_shot", "masked_loss"]
    assert from_dict(Config, {"evaluate": ["knn"]}).evaluate == EvaluatorSet.of(OnlineKnn.Config())
    assert pickle.loads(pickle.dumps(config.evaluate)) == config.evaluate
    with pytest.raises(ValueError, match="knn is named twice"):
        EvaluatorSet.of(OnlineKnn.Config(), OnlineKnn.Config(k=3))


def test_help_shows_the_options_of_those_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Config(), ["--help_all", "--evaluate", "knn"], doc="")
    said = capsys.readouterr().out
    assert "--evaluate knn  {" in said
    assert "--evaluate.knn.every" in said
    assert "--evaluate.masked_loss" not in said


# --- measured ---------------------------------------------------------------------------------------------------------------


def test_each_is_made_when_it_is_due(count: type[Evaluator], build: Build, context: Context) -> None:
    configs = EvaluatorSet.of(MaskedLoss.Config(samples=8), count.Config(every=4), ReconstructionGallery.Config(measured=4))
    model = build((16, 16), 1)
    evaluations = Evaluations(configs, model, [context], every=3)
    made = {step: [evaluator.config.name for evaluator, _ in evaluations.due(step, 10)] for step in range(1, 11)}
    assert {step: names for step, names in made.items() if names} == {
        3: ["masked_loss"], 4: ["count"], 6: ["masked_loss"], 8: ["count"], 9: ["masked_loss"], 10: ["masked_loss"],
    }  # fmt: skip
    assert evaluations.inputs == len(context.test)
    figures = evaluations.measure(evaluations.due(8, 10), model, 8, batch_size=4)
    assert figures == {"weights": sum(weight.numel() for weight in model.parameters())}
    assert [problem.name for problem in evaluations.take_problems()] == ["one"]
    assert evaluations.take_problems() == []
    results = list(evaluations.finish(model, 10))
    assert [result.name for result in results] == ["count", "reconstruction"]
    assert results[0].text == f"count: weights {figures['weights']:,}"
    assert results[1].figures == {"psnr": results[1].found["psnr"]["model"]}
    assert [result.name for result in evaluations.finish(model, 10, again=True)] == ["masked_loss", "count", "reconstruction"]


def test_the_masked_loss_is_the_models_own_on_the_same_masks(build: Build, context: Context) -> None:
    model = build((16, 16), 1)
    evaluations = Evaluations(EvaluatorSet.of(MaskedLoss.Config(samples=20)), model, [context])
    one = evaluations.measure(evaluations.due(10, 10), model, 10, batch_size=4)["held_out_loss"]
    context.batch_size = 7
    assert evaluations.measure(evaluations.due(10, 10), model, 10, batch_size=4)["held_out_loss"] == pytest.approx(one, rel=1e-6)
    assert model.training
    assert 0.1 < one < 10


def test_one_that_cannot_serve_is_left_out_or_refused(
    build: Build, context: Context, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build((16, 16), 1)
    model.decoder = None
    evaluations = Evaluations(EvaluatorSet.of(MaskedLoss.Config(), ReconstructionGallery.Config()), model, [context])
    assert evaluations.pairs == []
    assert "--evaluate reconstruction is left out: the model is an encoder without a decoder" in caplog.text
    monkeypatch.setattr(type(context.test), "labels", lambda self: None)
    with pytest.raises(ValueError, match="--evaluate knn: it needs labels, and the images of .* have none"):
        Evaluations(EvaluatorSet.of(OnlineKnn.Config()), model, [context])
    context.source = "second"
    assert Evaluations(EvaluatorSet.of(OnlineKnn.Config()), model, [context]).pairs == []
    assert "--evaluate knn_second is left out: it needs labels" in caplog.text


def test_one_that_fails_costs_only_itself(
    count: type[Evaluator], build: Build, context: Context, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Evaluator, model: MaskedModel, context: Context) -> dict[str, Any]:
        raise ValueError("no idea")

    monkeypatch.setattr(ReconstructionGallery, "run", fail)
    model = build((16, 16), 1)
    evaluations = Evaluations(EvaluatorSet.of(ReconstructionGallery.Config(), count.Config()), model, [context])
    assert [result.name for result in evaluations.finish(model, 3)] == ["count"]
    assert "the evaluation reconstruction failed: no idea" in caplog.text
    monkeypatch.setattr(ReconstructionGallery, "run", lambda self, model, context: {"values": torch.ones(2)})
    assert [result.name for result in evaluations.finish(model, 3)] == ["count"]
    assert "reconstruction failed: its result is not JSON (Object of type Tensor is not JSON serializable)" in caplog.text


# --- compared ---------------------------------------------------------------------------------------------------------------


def write_run(folder: Path, seed: int, weights: float, **choices: Any) -> Record:
    folder.mkdir()
    tree = {"train": {"batch_size": 4}, "seed": seed, **choices}
    (folder / "config.yaml").write_text(json.dumps(tree))
    lines = [{"step": 1, "loss": 2.0, "learning_rate": 0.1}, {"step": 2, "loss": 1.0, "held_out_loss": 0.5, "my_number": seed}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record(folder, "count", 2, {"weights": 3.0, "figures": {"weights": weights}})
    return Record.read(folder)


def test_the_numbers_of_ones_own_evaluation_are_compared(count: type[Evaluator], tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", 1, 12000.0, evaluate={"features": {"k": 20, "every": None}}),
        write_run(tmp_path / "b", 2, 14000.0, evaluate={"features": {"k": 10, "every": 5}}),
    ]
    found = compare(group_runs(runs), None)
    assert list(found["columns"]) == ["steps", "samples", "loss", "held_out_loss", "weights", "my_number", "seconds"]
    text = format_comparison(found)
    assert "12,000" in text
    assert "weights" in text
    assert "my_number" in text
    assert "they were evaluated differently: evaluate.features.k\n" in text + "\n"


def test_the_model_is_in_evaluation_mode_and_then_as_it_was(build: Any) -> None:
    """This also holds during a training, and if an evaluation fails."""
    seen: list[bool] = []

    class Look(Evaluator):
        @dataclass(frozen=True, kw_only=True)
        class Config(EvaluatorConfig):
            """Has no options."""

        def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
            seen.append(model.training)
            raise ValueError("it fails")

    model = build().train()
    evaluations = Evaluations.__new__(Evaluations)
    context = Context(data=None, masker=model.masker, device=torch.device("cpu"), title="", untrained=build)  # type: ignore[arg-type]
    for training in (True, False):
        model.train(training)
        with pytest.raises(ValueError, match="it fails"):
            evaluations._result(Look(Look.Config()), context, model, 1)
        assert model.training == training
    assert seen == [False, False]
