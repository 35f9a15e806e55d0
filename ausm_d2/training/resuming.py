# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Hooks of the trainer that make a training which was interrupted go on as if it had not been."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from ausm_d2.seeds import seed_generators

_WINDOW = 20  # iterations whose median Detectron2 writes to metrics.json

logger = logging.getLogger(__name__)


class StepSeeds(HookBase):
    """Seeds the default generators before every iteration, with the training's seed, the process and the iteration.

    So what an iteration draws (ID vectors, switch times, history noise, points of the loss, drop path) is the same
    whether the training was interrupted before it, evaluated before it, or neither. The seed is in every checkpoint.
    """

    def __init__(self, seed: int, *, given: bool) -> None:
        """
        Args:
            seed: of the training, the same in all processes.
            given: the config has it (SEED); else that of an interrupted training takes its place.
        """
        self.seed = seed
        self._given = given

    def before_step(self) -> None:
        seed_generators(self.seed, comm.get_rank(), self.trainer.iter)

    def state_dict(self) -> dict[str, int]:
        """The seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on with the seed of a checkpoint, unless the config has one."""
        if not self._given:
            self.seed = state["seed"]
        elif state["seed"] != self.seed:
            logger.warning(
                "SEED is %d, that of the interrupted training was %d: it does not go on as it would have",
                *(self.seed, state["seed"]),
            )


class RecentLosses(HookBase):
    """Keeps the last losses in every checkpoint: what is logged of them is a median over several iterations."""

    def __init__(self) -> None:
        self._loaded: dict[str, list[list[float]]] = {}

    def before_train(self) -> None:
        if self.trainer.start_iter >= self.trainer.max_iter:
            return
        for name, values in self._loaded.items():
            for value, iteration in values:
                self.trainer.storage.put_scalar(name, value, cur_iter=int(iteration))

    def state_dict(self) -> dict[str, list[list[float]]]:
        """The losses of the last iterations, by name: a value and its iteration each."""
        kept = {}
        for name, history in self.trainer.storage.histories().items():
            if "loss" in name and self.trainer.storage.smoothing_hints()[name]:
                kept[name] = [[float(value), int(iteration)] for value, iteration in history.values()[-_WINDOW:]]
        return kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """To be put back when the training begins."""
        self._loaded = dict(state)
