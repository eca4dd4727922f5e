"""Every name in a file of weights is accounted for: used, or named in the refusal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

LISTED = 8  # names of one kind that an error lists before it only counts them


def refuse_mismatch(found: Mapping[str, Tensor], wanted: Shapes, source: str) -> None:
    """Compares weights with what they are to fill.

    Args:
        found: by name.
        wanted: shapes by the same names.
        source: where `found` comes from, in words, for the error.

    Raises:
        ValueError: one line that names what is missing, what is extra and what has another shape.
    """
    problems = [
        ("lacks {}", [name for name in wanted if name not in found]),
        ("has {}, for which there is no place", [name for name in found if name not in wanted]),
        ("{}", [_difference(name, found[name], wanted[name]) for name in wanted if name in found]),
    ]
    said = [text.format(listed(names)) for text, names in problems if any(names)]
    if said:
        raise ValueError(f"{source} does not fit: it {'; '.join(said)}")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are; empty ones do not count."""
    present = [name for name in names if name]
    more = f" and {len(present) - LISTED} more" if len(present) > LISTED else ""
    return ", ".join(present[:LISTED]) + more


def _difference(name: str, value: Tensor, shape: tuple[int, ...]) -> str:
    """What is wrong with a tensor, or nothing."""
    return "" if tuple(value.shape) == shape else f"has {name} as {tuple(value.shape)} instead of {shape}"
