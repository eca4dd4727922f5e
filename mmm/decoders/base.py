"""What every decoder says of itself before it is built."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mmm.interfaces import Reads
from mmm.registry import PartConfig, Registry

decoders: Registry[nn.Module] = Registry("decoder")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(PartConfig):
    """What every decoder is told."""

    def reads(self, depth: int) -> Reads:
        """What it reads of an encoder of `depth` blocks. Here: the final norm's output."""
        return Reads(last=True)
