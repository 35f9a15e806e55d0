# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Non-finite steps: reported, saved, not taken."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ausm_d2.errors import UserError
from ausm_d2.training.finite import FiniteSteps, StepLeftOut
from tests.tiny import clip


class Model(nn.Module):
    """Its loss is the weight times a number that the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.factor = 1.0

    def forward(self, clips: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"loss_a": self.weight * self.factor, "loss_b": self.weight.sqrt()}


def step(model: Model, steps: FiniteSteps, iteration: int = 3) -> None:
    steps.trainer = SimpleNamespace(iter=iteration)
    model.zero_grad()
    sum(model([clip(2, 1, video_id="dog")]).values()).backward()
    steps.after_backward()


def test_a_loss_that_is_not_finite_names_iteration_clips_and_losses_and_saves_the_batch(tmp_path: Path) -> None:
    model = Model()
    steps = FiniteSteps(model, tmp_path, action="stop", gradients=True)
    step(model, steps)
    model.factor = float("nan")
    message = (
        "iteration 3: the loss is not finite (loss_a nan) of test video dog frames [0, 1]; the batch is in "
        f"{tmp_path}/non_finite_0000003_0.pt; SOLVER.NON_FINITE: skip leaves such steps out"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        step(model, steps)
    saved = torch.load(tmp_path / "non_finite_0000003_0.pt", weights_only=True)
    assert torch.equal(saved["batch"][0]["image"], clip(2, 1)["image"])
    assert saved["losses"]["loss_b"] == pytest.approx(2**0.5)


@pytest.mark.parametrize("gradients", [False, True])
def test_non_finite_gradients_of_a_finite_loss_are_found(tmp_path: Path, gradients: bool) -> None:
    model = Model()
    steps = FiniteSteps(model, tmp_path, action="skip", gradients=gradients)
    model.weight.data.zero_()  # the slope of the root
    if gradients:
        with pytest.raises(StepLeftOut):
            step(model, steps)
    else:
        step(model, steps)
    assert bool(list(tmp_path.iterdir())) == gradients


def test_non_finite_steps_are_skipped_up_to_ten_in_a_row(tmp_path: Path) -> None:
    model = Model()
    steps = FiniteSteps(model, tmp_path, action="skip", gradients=True)
    for iteration in range(18):
        model.factor = 1.0 if iteration == 8 else float("inf")
        if iteration == 8:
            step(model, steps, iteration)
        else:
            with pytest.raises(StepLeftOut):
                step(model, steps, iteration)
    with pytest.raises(UserError, match="10 times in a row: the training has diverged"):
        step(model, steps, 18)
    assert len(list(tmp_path.iterdir())) == 10, "not a disk full of batches"
