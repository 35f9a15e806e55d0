# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ausm_d2.kernels.choice import use_kernels
from ausm_d2.kernels.linear.cpu import is_faster
from ausm_d2.kernels.separable import SEPARABLE
from ausm_d2.modeling.proposals import CellPredictions, ProposalPyramid, Proposals, box_logits, coarse_masks


def small_proposals(num_det: int = 4) -> Proposals:
    torch.manual_seed(0)
    return Proposals(32, num_det=num_det).eval()


def test_a_mask_starts_as_the_box_of_its_cell() -> None:
    proposals = small_proposals(num_det=1)
    for conv in (proposals.heat, proposals.box):
        torch.nn.init.zeros_(conv.weight)
    torch.nn.init.constant_(proposals.box.bias, 0.0)  # one cell to every side of the centre
    x = torch.zeros(1, 32, 6, 8)
    made = proposals(x, x, (12, 16))
    x0, y0, x1, y1 = made.cells.boxes[0, 2, 3].tolist()
    assert (x0, y0, x1, y1) == (2.5, 1.5, 4.5, 3.5)
    inside = (made.prior[0, 0] > 0).nonzero()
    assert (inside.amax(0) - inside.amin(0) + 1).tolist() in ([3, 3], [3, 4], [4, 3], [4, 4])  # two cells of stride 8


def test_a_mask_is_its_box_and_the_weighted_prototypes() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[[1.0, 1.0, 5.0, 4.0], [2.0, 0.0, 3.0, 6.0]]])
    weights, prototypes = torch.randn(1, 2, 3), torch.randn(1, 3, 6, 8)
    cells = CellPredictions(*torch.zeros(3, 1), prototypes, torch.tensor([4.0]))
    made = coarse_masks(cells, boxes, weights, (12, 16)) - box_logits(boxes, cells.sharpness, (12, 16))
    by_hand = (weights[0, :, :, None, None] * prototypes[0]).sum(dim=1, keepdim=True)
    torch.testing.assert_close(made[0, :, None], F.interpolate(by_hand, scale_factor=2, mode="bilinear"))


def test_the_best_peaks_come_first_and_repeat_in_a_small_frame() -> None:
    proposals = small_proposals()
    x = torch.randn(2, 32, 5, 7)
    heat = proposals(x, x, (10, 14)).cells.heat
    content = proposals(x, x, (10, 14)).content
    assert content.shape == (2, 4, 32) and heat.shape == (2, 5, 7)
    tiny = proposals(x[..., :1, :2], x[..., :1, :2], (2, 4))
    torch.testing.assert_close(tiny.content[:, :2], tiny.content[:, 2:])


def test_what_is_added_to_a_finer_level_reaches_the_pyramid() -> None:
    pyramid = ProposalPyramid((8, 12), 32).eval()
    levels = [torch.randn(1, 8, 6, 8), torch.randn(1, 12, 3, 4)]
    before = pyramid(levels)
    assert before.shape == (1, 32, 6, 8)
    for i in range(2):
        changed = [each.clone() for each in levels]
        changed[i] += torch.randn_like(changed[i])
        assert not torch.allclose(pyramid(changed), before)


def test_kernels_and_layers_make_the_same_queries() -> None:
    pyramid, proposals = ProposalPyramid((8, 12), 32).eval(), small_proposals()
    levels = [torch.randn(2, 8, 6, 8), torch.randn(2, 12, 3, 4)]
    g = torch.randn(2, 32, 6, 8)
    ways = {"trained": ("auto", True), "plain": ("reference", False), "kernels": ("auto", False)}
    made = {}
    for name, (kernels, learning) in ways.items():
        with use_kernels(kernels), torch.set_grad_enabled(learning):
            made[name] = proposals(pyramid(levels), g, (12, 16))
    for name in ("plain", "kernels"):
        torch.testing.assert_close(made[name][:3], made["trained"][:3], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(made[name].cells, made["trained"].cells, rtol=1e-4, atol=1e-4)


def test_blocks_without_gradients_are_one_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, sizes = SEPARABLE.kernels[0], []
    x = torch.randn(1, 32, 6, 8)
    with torch.no_grad():
        block = small_proposals().blocks[0]
        if kernel.unavailable() is not None or not is_faster():
            pytest.skip("the kernel is not used on this processor")
        run = kernel.run
        monkeypatch.setattr(kernel, "run", lambda call: sizes.append(call.x.shape) or run(call))
        block(x)
    assert sizes == [x.shape]
