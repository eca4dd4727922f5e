"""The exponential moving average of a run's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmm.layers.averages import follow


class EMA:
    """An average of a model's tensors over the updates, `average = decay * average + (1 - decay) * live`.

    Each process averages its own part of a sharded model.
    """

    def __init__(self, averages: Mapping[str, Tensor]) -> None:
        self.averages = {name: value.detach() for name, value in averages.items()}

    @classmethod
    def of(cls, model: nn.Module) -> EMA:
        """Starts from the current weights of the model, on its device."""
        return cls({name: value.detach().clone() for name, value in model.state_dict().items()})

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float, made: Tensor | None = None) -> None:
        """Updates each average with the model's tensor of the same name; integers (counters) are copied.

        Args:
            made: whether the update was made, a bool () on the device; if not, the averages of floats do not change. None: it was
                made.
        """
        live = model.state_dict()
        floats = [name for name, value in self.averages.items() if value.is_floating_point()]
        follow([self.averages[name] for name in floats], [live[name] for name in floats], decay, made)
        for name in self.averages.keys() - set(floats):
            self.averages[name].copy_(live[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Puts the averages into the model inside its `with` block, for an evaluation."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.averages)
        try:
            yield
        finally:
            model.load_state_dict(own)
