# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The exponential moving average of the weights. It is evaluated and shipped, because scores of single checkpoints
fluctuate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn


class WeightAverage:
    """Moving average of the trainable parameters: ``average <- d * average + (1 - d) * weight`` after every step.

    ``d = min(decay, (1 + n) / (10 + n))`` at step n, so that the initial weights are forgotten quickly. Frozen
    parameters and buffers are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: not wrapped in DistributedDataParallel.
            decay: upper bound of d, below 1; 0.999 averages over about 1,000 steps.
        """
        self._model = model
        self.decay = decay
        self.steps = 0
        self._average = {name: p.detach().clone() for name, p in self._trained()}

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._model.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after an optimiser step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = dict(self._trained())
        torch._foreach_lerp_([self._average[name] for name in weights], list(weights.values()), 1 - decay)

    def restart(self) -> None:
        """Reset the average to the model's weights, e.g. after loading them."""
        self.steps = 0
        self._average = {name: p.detach().clone() for name, p in self._trained()}

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """A context in which the model has the averaged weights."""
        weights = dict(self._trained())
        saved = {name: p.detach().clone() for name, p in weights.items()}
        for name, p in weights.items():
            p.copy_(self._average[name])
        try:
            yield
        finally:
            for name, p in weights.items():
                p.copy_(saved[name])

    def state_dict(self) -> dict[str, Tensor | int]:
        """The averaged parameters by name, and ``steps``."""
        return {**self._average, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Restore an average. Parameters that ``state`` lacks, or has in another shape, start from the model."""
        self.restart()
        self.steps = int(state.get("steps", 0))
        for name, value in self._average.items():
            stored = state.get(name)
            if isinstance(stored, Tensor) and stored.shape == value.shape:
                value.copy_(stored)


class UpdateAverage(HookBase):
    """Updates a :class:`WeightAverage` after every step of a trainer."""

    def __init__(self, average: WeightAverage) -> None:
        self._average = average

    def after_step(self) -> None:
        self._average.update()
