# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Training on the model's own masks: how a pass over a clip changes the history."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.training import forms
from ausm_d2.training.own_history import ClipInputs, history_after_passes
from ausm_d2.training.teacher_forcing import draw_switch_times, preprocess
from tests.tiny import clip, tiny_model


def whole_pass(logits: Tensor, in_use: Tensor, given: Tensor) -> Tensor:
    """M_{t-1} from the mask logits (B, T, N, H4, W4) of all frames: a row's own mask of the frame before, but where it
    began there, or was not there at all, what was given."""
    own = (logits > 0).float().roll(1, dims=1)
    followed = in_use & in_use.roll(1, dims=1)
    followed[:, 0] = False
    return torch.where(followed[..., None, None], own, given)


def test_a_pass_keeps_prompts_and_propagates_predictions() -> None:
    # Row 0 switches at frame 0, row 1 at frame 2, of four frames; frames are counted from 0.
    in_use = torch.tensor([[[0, 0], [1, 0], [1, 0], [1, 1]]], dtype=torch.bool)
    given = torch.full((1, 4, 2, 1, 1), 7.0) * in_use[..., None, None]
    logits = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]])[..., None, None]
    # M_{t-1}: nothing before the first frame; the given mask at s_i + 1; the row's own mask of the frame before.
    assert whole_pass(logits, in_use, given)[0, :, :, 0, 0].tolist() == [[0, 0], [7, 0], [1, 0], [0, 7]]


@pytest.mark.parametrize("begins", [[[1, 3], [2, 5]], [[0, 0], [1, 4]], [[4, 5], [5, 9]], [[9, 9], [9, 9]]])
def test_passes_that_reuse_settled_frames_equal_whole_passes(
    begins: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of two clips of six frames are in A from the frames ``begins`` on; 0: a given mask is M_0 of the paper."""
    model = tiny_model().eval()
    decode = Mock(side_effect=model.decode)
    monkeypatch.setattr(model, "decode", decode)
    images, _ = model.collate([clip(6, 2, seed=1), clip(6, 2, seed=2)])
    in_use = torch.arange(6)[None, :, None] >= torch.tensor(begins)[:, None]
    given = (torch.rand(2, 6, 2, images.shape[-2] // 4, images.shape[-1] // 4) > 0.5) * in_use[..., None, None].float()
    with torch.no_grad():
        features = model.encode(images.flatten(0, 1))
        x = features.x.unflatten(0, (2, 6))
        start = model.x_start[:, None, None].expand_as(x[:, :1])
        inputs = ClipInputs(
            x=x,
            mask_features=features.mask_features.unflatten(0, (2, 6)),
            levels=[level.unflatten(0, (2, 6)) for level in features.multi_scale],
            x_prev=torch.cat([start, x[:, :-1]], dim=1),
            ids=model.id_pool(torch.arange(2)[None].expand(2, -1)),
            in_use=in_use,
            label_sets=["synthvis", "synthvis"],
        )
        history = given
        for passes in range(1, 7):
            layers, _ = model.predict(**vars(inputs), history=history, intermediate=False)
            history = whole_pass(layers[-1].mask_logits[:, :2].unflatten(0, (2, 6)), in_use, given)
            decode.reset_mock()
            found = history_after_passes(model, inputs, given, passes)
            decoded = [call.kwargs["x"].shape[1] for call in decode.call_args_list]
            assert (found != history).float().mean() < 1e-4  # logits that are 0 but for rounding
            first = min(min(each) for each in begins)
            assert decoded == [5 - t for t in range(first, 5)][:passes]


def test_as_many_passes_as_frames_equal_the_roll_out() -> None:
    """After pass k frame k + 1 is final, so enough passes equal the stream on its own masks."""
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
