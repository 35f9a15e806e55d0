# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from ausm_d2.training.resuming import RecentLosses, StepSeeds


def drawn(hook: StepSeeds, iteration: int) -> tuple[float, float, float]:
    hook.trainer = SimpleNamespace(iter=iteration)
    hook.before_step()
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_what_an_iteration_draws_depends_on_seed_process_and_iteration_only(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = StepSeeds(5, given=True)
    first = drawn(hook, 17)
    torch.rand(3), np.random.rand(3), random.random()
    assert drawn(hook, 17) == first
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    others = [drawn(hook, 17), drawn(hook, 18), drawn(StepSeeds(6, given=True), 17), first]
    assert all(len({draws[i] for draws in others}) == 4 for i in range(3))


def test_a_resumed_training_has_the_seed_of_the_checkpoint_unless_the_config_gives_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = StepSeeds(5, given=False).state_dict()
    drawn_anew, given = StepSeeds(8, given=False), StepSeeds(9, given=True)
    with caplog.at_level(logging.WARNING):
        drawn_anew.load_state_dict(state)
        given.load_state_dict(state)
    assert (drawn_anew.seed, given.seed) == (5, 9)
    assert caplog.messages == ["SEED is 9, that of the interrupted training was 5: it does not go on as it would have"]


def test_medians_of_losses_are_continued() -> None:
    def trainer(storage: EventStorage, start: int) -> Any:
        return SimpleNamespace(storage=storage, start_iter=start, max_iter=30)

    def put(storage: EventStorage, iterations: range) -> None:
        for storage.iter in iterations:
            storage.put_scalars(total_loss=np.float64(storage.iter**2 % 7), time=0.1)
            storage.put_scalar("lr", 0.1, smoothing_hint=False)

    whole, before, after = EventStorage(0), EventStorage(0), EventStorage(17)
    put(whole, range(24))
    put(before, range(17))
    saving, loading = RecentLosses(), RecentLosses()
    saving.trainer, loading.trainer = trainer(before, 0), trainer(after, 17)
    loading.load_state_dict(saving.state_dict())
    assert saving.state_dict().keys() == {"total_loss"}
    loading.before_train()
    put(after, range(17, 24))
    assert after.latest_with_smoothing_hint(20)["total_loss"] == whole.latest_with_smoothing_hint(20)["total_loss"]
