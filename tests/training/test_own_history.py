# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Training on one's own masks: what a pass over a clip makes of the history."""

from __future__ import annotations

import pytest
import torch

from ausm_d2.errors import UserError
from ausm_d2.modeling.pixel_decoder import Predictions
from ausm_d2.training import forms
from ausm_d2.training.own_history import history_of_pass
from ausm_d2.training.teacher_forcing import TeacherForcing, draw_switch_times, preprocess
from tests.tiny import clip, tiny_model


def test_a_pass_keeps_what_was_given_and_hands_on_what_was_predicted() -> None:
    # Row 0 switches at frame 0, row 1 at frame 2, of four frames; frames are counted from 0.
    in_use = torch.tensor([[[0, 0], [1, 0], [1, 0], [1, 1]]], dtype=torch.bool)
    given = torch.full((1, 4, 2, 1, 1), 7.0) * in_use[..., None, None]
    forcing = TeacherForcing(torch.tensor([[0, 2]]), in_use, given, in_use, ~in_use)
    logits = torch.tensor([[1.0, 1.0, -9.0], [1.0, -1.0, -9.0], [-1.0, 1.0, -9.0], [1.0, 1.0, -9.0]])
    history = history_of_pass(Predictions(torch.zeros(4, 3, 2), logits[:, :, None, None]), forcing)
    # M_{t-1}: nothing before the first frame; the given mask at s_i + 1; the row's own mask of the frame before.
    assert history[0, :, :, 0, 0].tolist() == [[0, 0], [7, 0], [1, 0], [0, 7]]
    assert torch.equal(forcing.history, given)


def test_as_many_passes_as_frames_are_the_roll_out() -> None:
    """Pass k settles frame k + 1 for good, so that enough of them are the stream on its own masks."""
    model = tiny_model("MODEL.AUSM.TRAIN.OWN_PASSES", 3).eval()
    images, targets = model.collate([clip(5, 2, seed=1)])
    prompted = torch.ones(1, dtype=torch.bool)
    switch = draw_switch_times(targets.visible, prompted=prompted, prompt_index="frame")
    forcing = preprocess(targets, switch)
    ids = model.id_pool(torch.arange(2)[None])
    with torch.no_grad():
        own = {"targets": targets, "prompted": prompted, "criterion": model.criterion}
        rolled = forms.rollout(model, images, ids, forcing, ["synthvis"], **own).layers[-1]
        errors = [
            (forms.parallel(model, images, ids, forcing, ["synthvis"], own_passes=k).layers[-1].mask_logits
             - rolled.mask_logits)[:, :2].abs().amax(dim=(1, 2, 3))
            for k in range(5)
        ]  # fmt: skip
    assert errors[4].max() < 1e-3
    assert errors[0].max() > 1e-2
    for k in range(5):  # frame s + 1 + k depends on k masks of one's own
        assert errors[k][: k + 2].max() < 1e-3


def test_passes_need_the_parallel_form() -> None:
    with pytest.raises(UserError, match=r"MODEL\.AUSM\.TRAIN\.OWN_PASSES: 1"):
        tiny_model("MODEL.AUSM.TRAIN.OWN_PASSES", 1, "MODEL.AUSM.TRAIN.MODE", "rollout")
    losses = tiny_model("MODEL.AUSM.TRAIN.OWN_PASSES", 2)([clip(3, 2)])
    assert all(torch.isfinite(value) for value in losses.values())
