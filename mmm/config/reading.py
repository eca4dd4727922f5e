"""YAML that somebody else may have written: plain values, and no more of them than the file shows."""

from __future__ import annotations

from typing import Any

import yaml


class _Plain(yaml.SafeLoader):
    """Without aliases: a dozen lines of them name a billion values, which every message and copy would write out."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*{self.peek_event().anchor}) are not read; write the value out")
        return super().compose_node(parent, index)


def read_yaml(text: str) -> Any:
    """Nested dicts, lists and scalars.

    Raises:
        yaml.YAMLError: where the text is no YAML, names a type of Python's, repeats values by aliases, or is nested too deeply.
    """
    loader = _Plain(text)
    try:
        return loader.get_single_data()
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    finally:
        loader.dispose()
