"""Parts that are found by name."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mmm.core.checks
import mmm.core.registry
from mmm.classifier import HeadConfig
from mmm.core.checks import nearest
from mmm.core.registry import REGISTRIES, PartConfig, Registry
from mmm.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import RandomMasker
from mmm.targets import PixelTarget, Target, TargetConfig, targets
from mmm.tokenizers import Patches


@pytest.fixture
def bells() -> Iterator[Registry[Any]]:
    """Returns a registry with one part and deletes it after the test, because other tests iterate over all registries."""
    registry: Registry[Any] = Registry("bell")

    @registry.register("door")
    class DoorBell:
        @dataclass(frozen=True, kw_only=True)
        class Config(PartConfig):
            volume: int = 3

        def __init__(self, config: Config, *, volts: int) -> None:
            self.config, self.volts = config, volts

    yield registry
    del REGISTRIES["bell"]


def test_registering_names_the_part_and_its_config(bells: Registry[Any]) -> None:
    config = bells["door"].Config()
    assert (config.name, config.kind) == ("door", "bell")
    assert REGISTRIES["bell"] is bells
    assert list(bells.parts) == ["door"]
    assert (PartConfig.name, PartConfig.kind) == ("", "")


def test_build_takes_choices_from_the_config_and_the_rest_from_the_caller(bells: Registry[Any]) -> None:
    bell = bells.build(bells["door"].Config(volume=9), volts=230)
    assert (bell.config.volume, bell.volts) == (9, 230)


def test_an_unknown_name_is_answered_with_all_and_the_nearest(bells: Registry[Any]) -> None:
    with pytest.raises(ValueError, match=r"^no bell is called 'dooor'; choose from door; did you mean 'door'\?$"):
        bells["dooor"]
    with pytest.raises(ValueError, match=r"^no bell is called 'xyz'; choose from door; to use your own, give the file"):
        bells["xyz"]


def test_a_name_is_given_once(bells: Registry[Any]) -> None:
    door = bells["door"]
    with pytest.raises(ValueError, match="two parts are registered as bell 'door'"):
        bells.register("door")(type("Other", (door,), {"Config": type("Config", (door.Config,), {})}))
    assert bells["door"] is door


def test_a_missing_method_is_named() -> None:
    class Half(Target):
        @dataclass(frozen=True, kw_only=True)
        class Config(TargetConfig):
            pass

        def teach(self, x: Any, patches: Any, grid: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(ValueError, match=r"Half lacks the methods loss; see docs/adding_a_part\.md"):
        targets.register("half")(Half)
    assert "half" not in targets.parts


def test_a_kind_is_opened_once(bells: Registry[Any]) -> None:
    with pytest.raises(AssertionError, match="two registries"):
        Registry("bell")


def test_a_part_needs_a_config_of_its_own(bells: Registry[Any]) -> None:
    """An inherited config would get the second name, and the first part would lose its name."""
    heir = type("Heir", (bells["door"],), {})
    plain = type("Plain", (), {"Config": type("Config", (PartConfig,), {})})  # not a dataclass
    for part in (heir, plain, type("Bare", (), {})):
        with pytest.raises(ValueError, match=r"of its own, a frozen kw_only dataclass"):
            bells.register("new")(part)
    assert bells["door"].Config.name == "door"
    assert "new" not in bells.parts


def test_a_part_can_be_chosen_by_its_name_alone(bells: Registry[Any]) -> None:
    class Needy:
        @dataclass(frozen=True, kw_only=True)
        class Config(PartConfig):
            volume: int

    with pytest.raises(ValueError, match=r"Needy\.Config\.volume needs a default"):
        bells.register("needy")(Needy)


def test_no_field_is_called_name(bells: Registry[Any]) -> None:
    class Named:
        @dataclass(frozen=True, kw_only=True)
        class Config(PartConfig):
            name: str = "x"  # type: ignore[misc]

    with pytest.raises(ValueError, match="`name` is reserved for the part's name"):
        bells.register("named")(Named)


def test_nearest() -> None:
    assert nearest("blok", ["random", "block"]) == "; did you mean 'block'?"
    assert nearest("zzz", ["random", "block"]) == ""


def test_the_registry_needs_the_standard_library_only() -> None:
    nodes = [
        node for module in (mmm.core.registry, mmm.core.checks) for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
    ]
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in named - {"mmm.core.checks"}} <= sys.stdlib_module_names


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a bool for a choice": (
        lambda: PixelTarget.Config(standardise=False),
        "target.standardise False is not patch, channel or none",
    ),
    "a true for a choice": (lambda: VisionTransformer.Config(qkv_bias=True), "encoder.qkv_bias True is not all, qv or none"),
    "a misspelt choice": (lambda: VisionTransformer.Config(positions="sincos"), "encoder.positions 'sincos' is not sine_cosine, "),
    "the nearest choice": (lambda: VisionTransformer.Config(size="bass"), "did you mean 'base'"),
    "a choice of none": (lambda: SelfAttentionDecoder.Config(fusion="foo"), "decoder.fusion 'foo' is not none, linear"),
    "a number below its range": (lambda: PixelTarget.Config(epsilon=-1), "target.epsilon -1 is not a number of at least 0"),
    "not a number": (lambda: PixelTarget.Config(epsilon=float("nan")), "target.epsilon nan is not a number of at least 0"),
    "a text for a number": (
        lambda: VisionTransformer.Config(width="24"),
        "encoder.width '24' is not a whole number of at",
    ),
    "a fraction for a count": (lambda: Patches.Config(size=4.5), "tokenizer.size 4.5 is not a whole number of at least 1"),
    "a bool for a number": (lambda: RandomMasker.Config(ratio=True), "masker.ratio True is not a number between 0 and 1"),
    "a number for a bool": (lambda: RandomMasker.Config(blank=1), "masker.blank 1 is not true or false"),
    "a list for a tuple": (
        lambda: CrossAttentionDecoder.Config(fusion_blocks=[1]),
        "decoder.fusion_blocks .1. is not a",
    ),
    "a wrong item": (lambda: CrossAttentionDecoder.Config(fusion_blocks=(1, "2")), "decoder.fusion_blocks"),
    "a head's norm": (lambda: HeadConfig(norm=True), "head.norm True is not none, layer or batch"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_value_that_its_field_does_not_allow_is_refused_from_python_too(mistake: str) -> None:
    make, words = WRONG[mistake]
    with pytest.raises(ValueError, match=words):
        make()


def test_a_whole_number_is_a_number_and_none_where_it_may_be() -> None:
    assert VisionTransformer.Config(mlp_ratio=4, width=None).mlp_ratio == 4


def test_a_config_cannot_skip_the_checks() -> None:
    registry: Registry[object] = Registry("skipping")
    try:
        with pytest.raises(ValueError, match="call it `validate`"):

            @registry.register("one")
            class Part:
                @dataclass(frozen=True, kw_only=True)
                class Config(PartConfig):
                    def __post_init__(self) -> None:
                        pass
    finally:
        del REGISTRIES["skipping"]


def test_a_registry_lists_its_names(bells: Registry[Any]) -> None:
    assert list(bells) == ["door"]
    assert "door" in bells
    assert "gong" not in bells
