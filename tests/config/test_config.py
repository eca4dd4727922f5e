"""The command line, and saving and loading of configs, with small parts that are defined here."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

import mmm.config.cli
import mmm.config.help
import mmm.config.overrides
from mmm.config.cli import main, parse
from mmm.config.serialize import from_dict, load, save, to_dict
from mmm.core.checks import in_words
from mmm.core.registry import REGISTRIES, PartConfig, Registry

lamps: Registry[Any] = Registry("lamp")
stands: Registry[Any] = Registry("stand")


@dataclass(frozen=True, kw_only=True)
class LampConfig(PartConfig):
    watts: int = 7
    """Power, in watts."""
    dimmer: float | None = None
    """Share of the power; none: cannot be dimmed."""

    def validate(self) -> None:
        if self.watts <= 0:
            raise ValueError(f"lamp.watts {self.watts} must be above 0")


@lamps.register("desk")
class DeskLamp:
    @dataclass(frozen=True, kw_only=True)
    class Config(LampConfig):
        colour: Literal["white", "warm", "none"] = "white"
        """Colour of the light."""


@lamps.register("floor")
class FloorLamp:
    @dataclass(frozen=True, kw_only=True)
    class Config(LampConfig):
        watts: int = 40
        """Power, in watts."""
        height: float = 1.6
        """In metres."""


@stands.register("bare")
class BareStand:
    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        pass


@stands.register("lit")
class LitStand:
    """A part that holds a part."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        lamp: LampConfig = FloorLamp.Config()


del REGISTRIES["lamp"], REGISTRIES["stand"]  # other tests iterate over all registries


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (lamps, stands):
        monkeypatch.setitem(REGISTRIES, registry.kind, registry)
        monkeypatch.setattr(registry, "parts", dict(registry.parts))
    for name in ("RANK", "MMM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mmm.config.cli, "GRACE", 0.0)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: str | None = None
    """Where the data is."""
    image_size: int | tuple[int, int] = 224
    """One number, or height and width."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean of each channel."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    batch_size: int
    """Samples for one update."""
    steps: int | None = None
    """Updates to make."""
    learning_rate: float = 1e-3
    """The peak."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""
    compile: bool = False
    """Compile the model."""
    fused: bool = True
    """Fuse the update."""
    cache: Path | None = None
    """A folder."""


@dataclass(frozen=True, kw_only=True)
class Config:
    data: DataConfig = DataConfig()
    lamp: LampConfig = DeskLamp.Config()
    stand: PartConfig = BareStand.Config()
    train: TrainConfig
    evaluate: tuple[Literal["features", "pictures"], ...] = ()
    """Evaluations at the end of the run."""
    run: str | None = None
    """The run's folder."""


DEFAULT = Config(train=TrainConfig(batch_size=8), lamp=DeskLamp.Config(watts=11))
PRESETS = {
    "paper": replace(DEFAULT, run="paper"),
    "small": replace(DEFAULT, run="small"),
    "demo": replace(DEFAULT, run="demo", data=DataConfig(source="builtin:bulbs")),
}
FULL = Config(
    data=DataConfig(source="ünï: #1", image_size=(3, 4), mean=(1e-6, -0.0, 1e20)),
    lamp=FloorLamp.Config(watts=9, dimmer=0.25),
    stand=LitStand.Config(lamp=DeskLamp.Config(colour="none")),
    train=TrainConfig(batch_size=4, steps=None, compile=True, fused=False, cache=Path("a b/c")),
    evaluate=("pictures", "features"),
    run="1e5",
)


def echo(config: Config) -> dict[str, Any]:
    """A task that returns its config."""
    return {"config": config}


def call(*argv: str, run: Callable[[Any], dict[str, Any]] = echo, presets: Any = PRESETS) -> Any:
    """Makes the call in the last line of a recipe."""
    return main(run, presets=presets, doc="A recipe.\n\nWhat to expect.", argv=argv, prog="recipes/lamp.py")


def refused(capsys: pytest.CaptureFixture[str], *argv: str, run: Callable[[Any], Any] = echo, presets: Any = PRESETS) -> str:
    """Returns the one line in which these flags are refused."""
    with pytest.raises(SystemExit) as ended:
        call(*argv, run=run, presets=presets)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.endswith("\n")
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    return said.removeprefix("error: ").rstrip("\n")


# flags


def test_without_flags_the_config_is_the_given_one() -> None:
    assert parse(DEFAULT, []) == DEFAULT


@pytest.mark.parametrize(
    ("flags", "get", "value"),
    [
        ("--train.steps 5", lambda c: c.train.steps, 5),
        ("--train.steps=5", lambda c: c.train.steps, 5),
        ("--train.steps 5 --train.steps 6", lambda c: c.train.steps, 6),
        ("--train.steps none", lambda c: c.train.steps, None),
        ("--train.steps None", lambda c: c.train.steps, None),
        ("--train.batch_size 4", lambda c: c.train.batch_size, 4),
        ("--train.batch-size 4", lambda c: c.train.batch_size, 4),
        ("--train.learning_rate 1e-4", lambda c: c.train.learning_rate, 1e-4),
        ("--train.betas 0.9 0.95", lambda c: c.train.betas, (0.9, 0.95)),
        ("--train.compile", lambda c: c.train.compile, True),
        ("--train.compile True", lambda c: c.train.compile, True),
        ("--train.compile=false", lambda c: c.train.compile, False),
        ("--train.fused False", lambda c: c.train.fused, False),
        ("--train.no-fused", lambda c: c.train.fused, False),
        ("--train.no_fused --train.fused", lambda c: c.train.fused, True),
        ("--train.cache /a/b", lambda c: c.train.cache, Path("/a/b")),
        ("--train.cache none", lambda c: c.train.cache, None),
        ("--data.image_size 32", lambda c: c.data.image_size, 32),
        ("--data.image-size 32 48", lambda c: c.data.image_size, (32, 48)),
        ("--data.mean 0.1", lambda c: c.data.mean, (0.1,)),
        ('--data.mean "0.1 0.2"', lambda c: c.data.mean, (0.1, 0.2)),
        ("--data.mean -0.1 -1e-3 2", lambda c: c.data.mean, (-0.1, -1e-3, 2.0)),
        ("--evaluate", lambda c: c.evaluate, ()),
        ("--evaluate pictures features", lambda c: c.evaluate, ("pictures", "features")),
        ("--lamp.dimmer 1", lambda c: c.lamp.dimmer, 1.0),
        ("--lamp.colour none", lambda c: c.lamp.colour, "none"),  # the choice "none", not None
        ("--run 5", lambda c: c.run, "5"),
        ("--run=--x", lambda c: c.run, "--x"),
        ("--data.source a=b", lambda c: c.data.source, "a=b"),
    ],
)
def test_flags_set_values_of_their_type(flags: str, get: Callable[[Config], Any], value: Any) -> None:
    got = get(parse(DEFAULT, shlex.split(flags)))
    assert got == value
    assert type(got) is type(value)


def test_choosing_the_same_part_keeps_the_recipe_s_values() -> None:
    assert parse(DEFAULT, ["--lamp.name", "desk"]).lamp == DeskLamp.Config(watts=11)
    assert parse(DEFAULT, ["--lamp.colour", "warm"]).lamp == DeskLamp.Config(watts=11, colour="warm")


@pytest.mark.parametrize(
    "flags",
    [
        "--lamp.name floor --lamp.height 2",
        "--lamp.height 2 --lamp.name=floor",
        "--lamp.name desk --lamp.name floor --lamp.height=2",
    ],
)
def test_choosing_another_part_brings_its_defaults_and_flags(flags: str) -> None:
    config = parse(DEFAULT, flags.split())
    assert config.lamp == FloorLamp.Config(height=2.0)
    assert replace(config, lamp=DEFAULT.lamp) == DEFAULT


def test_of_two_names_the_last_counts_and_the_first_does_nothing() -> None:
    assert parse(DEFAULT, ["--lamp.name", "floor", "--lamp.name", "desk"]) == DEFAULT


def test_parts_inside_parts_are_chosen_too() -> None:
    config = parse(DEFAULT, ["--stand.lamp.colour=warm", "--stand.lamp.name=desk", "--stand.name=lit"])
    assert config.stand == LitStand.Config(lamp=DeskLamp.Config(colour="warm"))


def test_parts_inside_a_nested_config_are_chosen_too() -> None:
    config = parse(Room(), ["--house.lamp.name=floor", "--house.lamp.watts=3"])
    assert config == Room(house=House(lamp=FloorLamp.Config(watts=3)))


@dataclass(frozen=True, kw_only=True)
class House:
    lamp: LampConfig = DeskLamp.Config()


@dataclass(frozen=True, kw_only=True)
class Room:
    house: House = House()


# errors are one line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--lamp.name desc", "--lamp.name: no lamp is called 'desc'; choose from desk, floor; did you mean 'desk'?"),
        ("--lamp.name zzz", "--lamp.name: no lamp is called 'zzz'; choose from desk, floor; to use your own, give the file"),
        ("--lamp.name", "--lamp.name takes one value"),
        ("--lamp.wats 3", "there is no flag --lamp.wats; did you mean '--lamp.watts'?"),
        ("--trian.steps 3", "there is no flag --trian.steps; did you mean '--train.steps'?"),
        ("--steps 3", "there is no flag --steps; did you mean '--train.steps'?"),
        ("--step 3", "there is no flag --step; did you mean '--train.steps'?"),
        ("--zzzzzzz", "there is no flag --zzzzzzz; --help_all lists all"),
        ("--lamp floor", "there is no flag --lamp; did you mean '--lamp.name'?"),
        ("--train 3", "there is no flag --train"),
        ("--train.no_steps", "there is no flag --train.no_steps; did you mean '--train.steps'?"),
        ("--train.no_fused True", "there is no flag --train.no_fused"),
        ("--lamp.height 3", "there is no flag --lamp.height for lamp desk; floor has it: --lamp.name floor"),
        ("--preset smal", "--preset: no preset is called 'smal'; choose from paper, small, demo; did you mean 'small'?"),
        ("--preset", "--preset takes one value"),
        ("--preset small --config x.yaml", "--preset and --config both say what to start from"),
        ("--config missing.yaml", "missing.yaml: No such file or directory"),
        ("--use missing.py", "missing.py: No such file or directory"),
        ("--use a.py b.py", "--use takes one value, not a.py b.py; write --use a.py --use b.py"),
        ("--use a.py runs/b", "--use takes one value, not a.py runs/b; write runs/b --use a.py"),
        ("--use missing.txt", "--use missing.txt: not a Python file"),
        ("train.steps 3", "'train.steps' belongs to no flag"),
        ("--train.steps", "--train.steps needs a value: a whole number or none"),
        ("--train.steps x", "--train.steps: 'x' is not a whole number or none"),
        ("--train.steps 1.5", "--train.steps: '1.5' is not a whole number or none"),
        ("--train.steps 1 2", "--train.steps: '1 2' is not a whole number or none"),
        ("--train.batch_size none", "--train.batch_size: 'none' is not a whole number"),
        ("--train.compile maybe", "--train.compile: 'maybe' is not true or false"),
        ("--train.betas 0.9", "--train.betas: '0.9' is not 2 values (a number, a number)"),
        ("--train.betas 0.9 x", "--train.betas: '0.9 x' is not 2 values (a number, a number)"),
        ("--data.image_size 1 2 3", "--data.image_size: '1 2 3' is not a whole number or 2 values"),
        ("--lamp.colour wite", "--lamp.colour: 'wite' is not white, warm or none; did you mean 'white'?"),
        ("--evaluate features x", "--evaluate: 'features x' is not a list, each features or pictures"),
        ("--lamp.watts 0", "lamp.watts 0 must be above 0"),  # the part's own check
    ],
)
def test_what_is_wrong_is_one_line_with_the_nearest_choice(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, *flags.split())


def test_alternatives_in_words() -> None:
    assert in_words(bool | Literal["auto"]) == "true or false or auto"
    assert in_words(Literal["worker", "device"] | None) == "worker or device or none"


def test_a_single_default_has_no_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(presets=DEFAULT) == {"config": DEFAULT}
    assert capsys.readouterr().out == ""
    assert "there is no flag --preset" in refused(capsys, "--preset", "demo", presets=DEFAULT)


def test_a_type_gives_its_own_defaults_or_asks_for_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--house.lamp.watts", "3", presets=Room)["config"] == Room(house=House(lamp=DeskLamp.Config(watts=3)))
    assert refused(capsys, presets=Config) == "train is missing; start from a saved config: --config FILE"
    save(FULL, tmp_path / "a.yaml")
    assert call(f"--config={tmp_path / 'a.yaml'}", presets=Config)["config"] == FULL


def test_flags_are_refused_from_one_process_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        call("--lamp.name", "desc")
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "")


# help


def help_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        call(*argv)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_shows_the_chosen_parts_flags_with_their_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(capsys, "--help")
    for text in ("What to expect.", "{paper, small, demo}", "--lamp.name desk  {desk, floor}", "--use FILE", "--config FILE"):
        assert text in shown
    for text in ("--lamp.colour", "Colour of the light.", "--train.steps", "Updates to make.", "builtin:bulbs", "recipes/lamp.py"):
        assert text in shown
    assert "--lamp.height" not in shown
    other = help_of(capsys, "-h", "--lamp.name", "floor")
    assert "--lamp.height" in other
    assert "In metres." in other
    assert "--lamp.colour" not in other


def test_each_flag_in_the_help_is_read_and_each_that_is_read_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    shown = set(re.findall(r"^  --([a-z_.]+)", help_of(capsys, "--help_all").split("\nFlags:", 1)[1], re.MULTILINE))
    for flag in shown:
        error = refused(capsys, f"--{flag}", "x", "y", "z")
        assert f"--{flag}:" in error
    read = {path for path, _, value in mmm.config.overrides.walk(DEFAULT) if not hasattr(value, "__dataclass_fields__")}
    assert read == shown


def test_help_of_a_large_config_shows_the_most_used_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mmm.config.help, "FEW", 3)
    shown = help_of(capsys, "--help")
    assert "  --train.steps none\n" in shown
    assert "  --train.cache" not in shown
    assert "--help_all lists all 15" in shown
    assert "  --train.cache none\n" in help_of(capsys, "--help_all")


def test_examples_in_the_help_keep_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(echo, presets=DEFAULT, doc="A recipe.\n\n    python a.py      one\n    python b.py --c  two\n", argv=["-h"], prog="a")
    assert "\n    python a.py      one\n    python b.py --c  two\n" in capsys.readouterr().out


def test_help_whose_reader_stops_reading_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader closes the pipe, as `head` does in `--help | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as ended:
            call("--help")
        assert ended.value.code == 1
        output.flush()  # as the interpreter does at its end


def test_only_one_process_shows_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    assert help_of(capsys, "--help") == ""


# presets


@pytest.mark.parametrize(
    ("flags", "taken"),
    [
        ("", "demo"),
        ("--train.steps 3", "demo"),
        ("--data.source /x", "paper"),
        ("--data.source=/x", "paper"),
        ("--preset small", "small"),
        ("--preset small --preset paper", "paper"),
        ("--preset small --data.source /x", "small"),
        ("--data.source /x --preset demo", "demo"),
    ],
)
def test_which_preset_runs(flags: str, taken: str) -> None:
    assert call(*flags.split())["config"].run == taken


def test_the_demonstration_says_so_and_how_to_run_the_real_thing(capsys: pytest.CaptureFixture[str]) -> None:
    call("--train.steps", "3")
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    for text in ("demonstration", "builtin:bulbs", "python recipes/lamp.py --data.source", "preset paper"):
        assert text in said


@pytest.mark.parametrize("flags", ["--preset demo", "--data.source /x", "--preset small"])
def test_nothing_is_said_where_the_user_chose(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    call(*flags.split())
    assert capsys.readouterr() == ("", "")


def test_one_process_speaks_of_the_demonstration(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    assert call()["config"].run == "demo"
    assert capsys.readouterr() == ("", "")


def test_presets_without_a_demonstration_start_with_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(presets={"paper": DEFAULT, "small": PRESETS["small"]}) == {"config": DEFAULT}
    assert capsys.readouterr().out == ""


# files


@pytest.mark.parametrize("config", [DEFAULT, FULL, *PRESETS.values()])
def test_a_saved_config_loads_equal_and_saves_to_the_same_bytes(config: Config, tmp_path: Path) -> None:
    save(config, tmp_path / "a.yaml")
    again = load(Config, tmp_path / "a.yaml")
    save(again, tmp_path / "b.yaml")
    assert again == config
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()
    assert from_dict(Config, to_dict(config)) == config


def test_what_a_saved_config_looks_like(tmp_path: Path) -> None:
    save(DEFAULT, tmp_path / "a.yaml")
    text = (tmp_path / "a.yaml").read_text()
    assert "lamp:\n  name: desk\n  watts: 11\n  dimmer: null\n  colour: white\nstand:\n  name: bare\n" in text
    assert "  mean: [0.5, 0.5, 0.5]\n" in text
    assert "run: null\n" in text
    assert yaml.safe_load(text) == to_dict(DEFAULT)


def test_equal_configs_have_equal_files(tmp_path: Path) -> None:
    """An int where a float is expected is equal to the float, so both must be saved as the same text."""
    save(replace(DEFAULT, train=TrainConfig(batch_size=8, learning_rate=1)), tmp_path / "a.yaml")
    save(replace(DEFAULT, train=TrainConfig(batch_size=8, learning_rate=1.0)), tmp_path / "b.yaml")
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()


@pytest.mark.parametrize("run", ["none", 5, ("a",)])
def test_what_would_not_load_is_not_saved(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="equal object|run:"):
        save(replace(DEFAULT, run=run), tmp_path / "a.yaml")
    assert not (tmp_path / "a.yaml").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {batch_size: 4, stepz: 3}", "train.stepz is not known; did you mean 'steps'?"),
        ("trian: {}\ntrain: {batch_size: 4}", "trian is not known; did you mean 'train'?"),
        ("train: {steps: 3}", "train.batch_size is missing"),
        ("lamp: {name: desk}", "train is missing"),
        ("train: 3", "train: expected names and values, not 3"),
        ("", "expected names and values, not None"),
        ("- 3", "expected names and values"),
        ("train: {batch_size: 4.5}", "train.batch_size: 4.5 is not a whole number"),
        ("train: {batch_size: true}", "train.batch_size: True is not a whole number"),
        ("train: {batch_size: 4, compile: 1}", "train.compile: 1 is not true or false"),
        ("run: 2024\ntrain: {batch_size: 4}", "run: 2024 is not a text or none"),
        ("lamp: {watts: 3}\ntrain: {batch_size: 4}", "lamp.name is missing"),
        ("lamp: 3\ntrain: {batch_size: 4}", "lamp: expected names and values, not 3"),
        ("lamp: {name: desc}\ntrain: {batch_size: 4}", "lamp.name: no lamp is called 'desc'"),
        ("lamp: {name: [1]}\ntrain: {batch_size: 4}", "lamp.name: no lamp is called '[1]'"),
        ("lamp: {name: desk, height: 3}\ntrain: {batch_size: 4}", "lamp.height is not known"),
        ("lamp: {name: desk, watts: 0}\ntrain: {batch_size: 4}", "lamp.watts 0 must be above 0"),
        ("a: [", "is not YAML"),
        ("a: !!python/object:os.system {}", "is not YAML"),
    ],
)
def test_a_bad_file_is_refused_by_name(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    error = refused(capsys, "--config", str(tmp_path / "bad.yaml"))
    assert error.startswith(str(tmp_path / "bad.yaml"))
    assert said in error


def test_a_file_by_hand_may_be_short(tmp_path: Path) -> None:
    """Missing values get the type's defaults; YAML reads 1e-6 as text, and None too."""
    (tmp_path / "a.yaml").write_text("train: {batch_size: 4, learning_rate: 1e-6, steps: None}\nevaluate: features")
    config = load(Config, tmp_path / "a.yaml")
    assert config == Config(train=TrainConfig(batch_size=4, learning_rate=1e-6), evaluate=("features",))


@pytest.mark.parametrize("first", [True, False])
def test_flags_win_over_a_file_wherever_they_stand(first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(FULL, tmp_path / "a.yaml")
    file, flags = ["--config", str(tmp_path / "a.yaml")], ["--train.steps", "3", "--data.source", "none"]
    config = call(*(file + flags if first else flags + file))["config"]
    assert config == replace(FULL, train=replace(FULL.train, steps=3), data=replace(FULL.data, source=None))
    assert capsys.readouterr() == ("", "")  # no preset applies, so no message names one


def test_parts_are_swapped_after_a_file(tmp_path: Path) -> None:
    save(FULL, tmp_path / "a.yaml")
    same, other = (
        call("--config", str(tmp_path / "a.yaml"), "--lamp.name", name, "--lamp.watts", "2")["config"] for name in ("floor", "desk")
    )
    assert same.lamp == FloorLamp.Config(watts=2, dimmer=0.25)
    assert other.lamp == DeskLamp.Config(watts=2)


def test_a_file_from_a_preset_with_flags_repeats_it(tmp_path: Path) -> None:
    config = call("--preset", "small", "--lamp.name", "floor", "--train.compile")["config"]
    save(config, tmp_path / "config.yaml")
    assert call("--config", str(tmp_path / "config.yaml"))["config"] == config


# the user's own parts

OWN = '''
from __future__ import annotations
from dataclasses import dataclass
from mmm.core.registry import REGISTRIES, PartConfig

LampConfig = REGISTRIES["lamp"]["desk"].Config.__base__

@REGISTRIES["lamp"].register("{name}")
class Lamp:
    @dataclass(frozen=True, kw_only=True)
    class Config({base}):
        oil: float | None = 0.5
        """Litres."""
'''


def test_a_part_in_the_user_s_own_file_is_used_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("oil", "gas"):
        (tmp_path / f"{name}.py").write_text(OWN.format(name=name, base="LampConfig"))
    flags = ["--lamp.name", "gas", "--use", str(tmp_path / "oil.py"), f"--use={tmp_path / 'gas.py'}", "--lamp.oil", "2"]
    for _ in range(2):  # a second call in the same process does not register again
        config = call(*flags)["config"]
        assert (config.lamp.name, config.lamp.oil) == ("gas", 2.0)
    assert "Litres." in help_of(capsys, *flags, "--help")
    save(config, tmp_path / "a.yaml")
    assert call("--config", str(tmp_path / "a.yaml"))["config"] == config


def test_a_part_s_config_extends_its_kind_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd.py").write_text(OWN.format(name="odd", base="PartConfig"))
    error = refused(capsys, "--use", str(tmp_path / "odd.py"), "--lamp.name", "odd")
    assert error == "--lamp.name: the Config of 'odd' must extend LampConfig"


def test_an_error_in_the_user_s_own_file_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            call("--use", str(tmp_path / "broken.py"))


def test_a_syntax_error_in_the_user_s_own_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("x = 1\ndef wrong(:\n")
    error = refused(capsys, "--use", str(tmp_path / "broken.py"))
    assert error == f"--use {tmp_path / 'broken.py'}: invalid syntax ({tmp_path / 'broken.py'}, line 2)"


def test_a_config_never_imports_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(f"use: {tmp_path / 'oil.py'}\ntrain: {{batch_size: 4}}")
    assert "use is not known" in refused(capsys, "--config", str(tmp_path / "a.yaml"))


# the run


def failing(error: BaseException) -> Callable[[Any], dict[str, Any]]:
    def run(config: Any) -> dict[str, Any]:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("data.image_size 225 is not\n  a multiple of 16"), "data.image_size 225 is not a multiple of 16"),
        (FileNotFoundError(2, "No such file or directory", "/data/x"), "/data/x: No such file or directory"),
        (PermissionError(13, "Permission denied", "/data/x"), "/data/x: Permission denied"),
    ],
)
def test_a_task_s_refusal_is_one_line(error: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "--preset", "small", run=failing(error)) == said


def test_what_another_rank_alone_found_is_said_by_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit) as ended:
        call("--preset", "small", run=failing(ValueError("bad")))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error on rank 3: bad\n"


@pytest.mark.parametrize("error", [RuntimeError("ours"), KeyError("ours"), OSError("without a file")])
def test_our_own_errors_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="ours|without a file"):
        call("--preset", "small", run=failing(error))


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMM_DEBUG", "1")
    with pytest.raises(ValueError, match="bad"):
        call("--preset", "small", run=failing(ValueError("bad")))
    with pytest.raises(ValueError, match="no lamp is called"):
        call("--lamp.name", "desc")


def test_an_interruption_ends_with_its_own_code() -> None:
    with pytest.raises(SystemExit) as ended:
        call("--preset", "small", run=failing(KeyboardInterrupt()))
    assert ended.value.code == 130
