# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The inputs and outputs of the network's modules (paper, Sec. 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ausm_d2.training import forms
from ausm_d2.training.teacher_forcing import TeacherForcing
from tests.tiny import tiny_model


def test_e_is_the_features_of_the_frame_before_plus_the_marked_history() -> None:
    """E_t = X_{t-1} + S_t for every frame: X_0 is the learned vector, S_t made of M_{t-1} and A_{t-1}."""
    model = tiny_model().eval()
    frames, rows, height, width = 4, 3, 64, 96
    images = torch.randn(1, frames, 3, height, width)
    in_use = torch.tensor([[False, False, False], [True, False, False], [True, True, False], [True, True, False]])
    history = (torch.rand(1, frames, rows, height // 4, width // 4) < 0.3).float() * in_use[..., None, None]
    nothing = torch.zeros(1, frames, rows, dtype=torch.bool)
    forcing = TeacherForcing(torch.zeros(1, rows, dtype=torch.int64), in_use[None], history, nothing, nothing)
    ids = model.id_pool(torch.arange(rows)[None])
    seen: list[Tensor] = []
    model.compressor.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        output = forms.parallel(model, images, ids, forcing, ["synthvis"])
        forms.iterative(model, images, ids, forcing, ["synthvis"])
    at_once, steps = seen[0], torch.cat(seen[1:], dim=1)
    torch.testing.assert_close(at_once, steps, rtol=1e-4, atol=1e-4)

    for t in range(frames):
        for y, x in ((0, 0), (3, 5), (7, 11)):
            before = output.x[0, t - 1, :, y, x] if t else model.x_start
            cover = history[0, t, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean(dim=(1, 2))
            marked = (cover[:, None] * ids[0]).sum(dim=0) / (model.marker.eps + cover.sum())
            torch.testing.assert_close(at_once[0, t, :, y, x], before + marked, rtol=1e-4, atol=1e-5)
