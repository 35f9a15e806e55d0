# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Detection queries V computed from the frame instead of learned (docs/deviations.md, 22).

Every cell predicts whether it is the centre of an object, as in CenterNet (arXiv 1904.07850) and TTFNet (arXiv
1909.00700), and a coarse mask: a weighted sum of prototypes, as in YOLACT (arXiv 1904.02689), within a box. The best
peaks become the rows of V, as in two-stage Deformable DETR (arXiv 2010.04159): the cell gives content and position, and
its coarse mask is added to the mask logits of the row.

Shape shorthand:
    BT: frames; no information passes between them
    D: channels; C_i: channels of the backbone's level i
    h, w: feature size at stride 8; H4, W4: mask size at stride 4
    N_det: detection queries V; P: prototypes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm_d2.kernels.choice import KernelLayer
from ausm_d2.modeling.convolution import conv_norm, convolve, separable_block
from ausm_d2.modeling.norm import GroupNorm, LayerNorm
from ausm_d2.modeling.position import sine_tokens
from ausm_d2.modeling.resize import resize_to

_PROTOTYPES = 32


class CellPredictions(NamedTuple):
    """Predictions of every cell of stride 8, for the loss (training/proposal_loss.py)."""

    heat: Tensor  # float32 (BT, h, w): logits of "the centre of an object to be detected"
    boxes: Tensor  # float32 (BT, h, w, 4): x0, y0, x1, y1 of that object, in cells
    weights: Tensor  # (BT, h, w, P): of the prototypes, for the mask of that object
    prototypes: Tensor  # (BT, P, h, w)
    sharpness: Tensor  # float32 (BT), of :func:`box_logits`


class Queries(NamedTuple):
    """The rows of V of BT frames."""

    content: Tensor  # (BT, N_det, D)
    position: Tensor  # (BT, N_det, D)
    prior: Tensor  # float32 (BT, N_det, H4, W4): coarse masks, added to the mask logits
    objectness: Tensor  # float32 (BT, N_det): probability that the cell is the centre of an object to be detected
    cells: CellPredictions


class _Block(KernelLayer):
    """Depthwise 3 x 3 and pointwise convolution, each with a group norm, and a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        groups = math.gcd(32, dim)
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = GroupNorm(groups, dim)
        self.pointwise = nn.Conv2d(dim, dim, 1)
        self.norm2 = GroupNorm(groups, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(BT, D, h, w) -> (BT, D, h, w)."""
        return separable_block(x, self.depthwise, self.norm1, self.pointwise, self.norm2, kernels=self.kernels)


class _Projection(KernelLayer):
    """Pointwise convolution and group norm."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, 1, bias=False)
        self.norm = GroupNorm(math.gcd(32, dim), dim)

    def forward(self, x: Tensor, *, add: Tensor | None = None, relu: bool = False) -> Tensor:
        """(BT, C_i, h, w) -> (BT, D, h, w); with sum and ReLU as in :func:`conv_norm`."""
        return conv_norm(x, self.conv, self.norm, add=add, relu=relu, kernels=self.kernels)


class ProposalPyramid(nn.Module):
    """The history-free part of the proposals: a feature pyramid over the backbone's levels, with its own weights."""

    def __init__(self, in_channels: Sequence[int], dim: int, *, blocks: int = 2) -> None:
        """
        Args:
            in_channels: C_i, finest level (stride 8) first.
            dim: D.
            blocks: blocks at every level but the finest.
        """
        super().__init__()
        self.projections = nn.ModuleList(_Projection(channels, dim) for channels in in_channels)
        self.blocks = nn.ModuleList(nn.Sequential(*(_Block(dim) for _ in range(blocks))) for _ in in_channels[1:])

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Backbone levels (BT, C_i, h_i, w_i), finest first -> (BT, D, h, w)."""
        x: Tensor | None = None
        blocks = [None, *self.blocks]
        for projection, block, level in reversed(list(zip(self.projections, blocks, levels, strict=True))):
            coarser = None if x is None else resize_to(x, level)
            x = projection(level, add=coarser, relu=coarser is not None and block is not None)
            x = x if block is None else block(x)
        assert x is not None
        return x


class Proposals(KernelLayer):
    """Computes the rows of V from the frame's pyramid and from G_t, which shows what is tracked already."""

    def __init__(self, dim: int, *, num_det: int, blocks: int = 3) -> None:
        """
        Args:
            dim: D.
            num_det: N_det.
            blocks: blocks at stride 8.
        """
        super().__init__()
        self.num_det = num_det
        self.history = _Projection(dim, dim)
        self.blocks = nn.Sequential(*(_Block(dim) for _ in range(blocks)))
        self.heat = nn.Conv2d(dim, 1, 3, padding=1)
        self.box = nn.Conv2d(dim, 4, 3, padding=1)
        self.content = nn.Conv2d(dim, dim, 1)
        self.content_norm = LayerNorm(dim)
        self.size = nn.Linear(2, dim)  # position of a query: log width and height of its box
        self.prototypes = nn.Conv2d(dim, _PROTOTYPES, 1)
        self.weights = nn.Conv2d(dim, _PROTOTYPES, 1)
        self.sharpness = nn.Parameter(torch.tensor(4.0))
        # At first few cells are centres, boxes are 2 e cells wide and coarse masks are filled boxes.
        for conv, bias in ((self.heat, -4.0), (self.box, 1.0), (self.weights, 0.0)):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.constant_(conv.bias, bias)
        nn.init.zeros_(self.size.weight)
        nn.init.zeros_(self.size.bias)

    def forward(self, pyramid: Tensor, g: Tensor, mask_size: tuple[int, int]) -> Queries:
        """
        Args:
            pyramid: (BT, D, h, w), from :class:`ProposalPyramid`.
            g: (BT, D, h, w) G_t.
            mask_size: (H4, W4).
        """
        x = self._features(pyramid, g)
        cells = self._cells(x)
        best = _best_peaks(cells.heat, self.num_det)
        boxes = _take(cells.boxes.flatten(1, 2).detach(), best)
        chosen = _take(x.flatten(2).transpose(1, 2), best)
        content = self.content_norm(F.linear(chosen, self.content.weight[:, :, 0, 0], self.content.bias))
        height, width = x.shape[-2:]
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        row, column = centre[..., 1].floor().clamp(0, height - 1), centre[..., 0].floor().clamp(0, width - 1)
        sines = sine_tokens(height, width, x.shape[1], device=x.device, dtype=x.dtype)
        extent = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0.1).log()
        position = sines[(row * width + column).long()] + self.size(extent.to(self.size.weight.dtype))
        masks = coarse_masks(cells, boxes, _take(cells.weights.flatten(1, 2), best), mask_size)
        objectness = cells.heat.flatten(1).gather(1, best).sigmoid()
        return Queries(content, position.to(content.dtype), masks, objectness, cells)

    def cells(self, pyramid: Tensor, g: Tensor) -> CellPredictions:
        """The predictions of all cells; arguments as for :meth:`forward`."""
        return self._cells(self._features(pyramid, g))

    def _features(self, pyramid: Tensor, g: Tensor) -> Tensor:
        return self.blocks(self.history(g, add=pyramid, relu=True))

    def _cells(self, x: Tensor) -> CellPredictions:
        weight = torch.cat([self.heat.weight, self.box.weight])
        both = F.conv2d(x, weight, self._biases(), padding=1).float()
        heat = both[:, 0]
        sides = both[:, 1:].clamp(-4.0, 6.0).exp()  # from the centre of the cell to the left, top, right, bottom
        height, width = heat.shape[-2:]
        y = torch.arange(height, device=x.device, dtype=torch.float32)[:, None] + 0.5
        x_ = torch.arange(width, device=x.device, dtype=torch.float32)[None] + 0.5
        left, top, right, bottom = sides.unbind(1)
        boxes = torch.stack([x_ - left, y - top, x_ + right, y + bottom], dim=-1)
        weights = convolve(x, self.weights, kernels=self.kernels).permute(0, 2, 3, 1)
        prototypes = convolve(x, self.prototypes, kernels=self.kernels)
        return CellPredictions(heat, boxes, weights, prototypes, self.sharpness.float().expand(len(x)))

    def _biases(self) -> Tensor:
        assert self.heat.bias is not None and self.box.bias is not None
        return torch.cat([self.heat.bias, self.box.bias])


def coarse_masks(cells: CellPredictions, boxes: Tensor, weights: Tensor, mask_size: tuple[int, int]) -> Tensor:
    """Mask logits of objects, for the start of the rows of V and for the loss.

    Args:
        cells: predictions of BT frames.
        boxes: float32 (BT, R, 4), as in ``cells``.
        weights: (BT, R, P), of the same cells.
        mask_size: (H4, W4).

    Returns:
        float32 (BT, R, H4, W4).
    """
    masks = torch.einsum("brp,bphw->brhw", weights, cells.prototypes).float()
    masks = F.interpolate(masks, size=mask_size, mode="bilinear", align_corners=False)
    return masks + box_logits(boxes, cells.sharpness, mask_size)


def box_logits(boxes: Tensor, sharpness: Tensor, mask_size: tuple[int, int]) -> Tensor:
    """Mask logits of filled boxes: 0 at the sides of the box, falling outwards, and steeply from half a radius beyond
    them, so that the mask does not spread to similar objects.

    Args:
        boxes: (BT, R, 4) in cells.
        sharpness: (BT), factors.
        mask_size: (H4, W4).

    Returns:
        (BT, R, H4, W4).
    """
    centre, radius = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    along = []
    for axis, size in enumerate((mask_size[1], mask_size[0])):
        place = (torch.arange(size, device=boxes.device, dtype=torch.float32) + 0.5) / 2
        middle, half = centre[..., axis, None], radius[..., axis, None].clamp(min=0.3)
        distance = ((place - middle) / half).abs()
        slope = (1 - distance).clamp(-2.0, 0.5) - 3 * (distance - 1.5).clamp(min=0.0)
        along.append(sharpness[:, None, None] * slope)
    return torch.minimum(along[0][..., None, :], along[1][..., :, None])  # that of the larger distance


def _best_peaks(heat: Tensor, count: int) -> Tensor:
    """int64 (BT, count) cells, best first, local maxima (3 x 3) before others; repeated if there are fewer."""
    with torch.no_grad():
        peak = F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] == heat
        flat = torch.where(peak, heat, heat - 100).flatten(1)
        best = flat.topk(min(count, flat.shape[1]), dim=1).indices
        if best.shape[1] < count:
            best = best[:, torch.arange(count, device=best.device) % best.shape[1]]
    return best


def _take(values: Tensor, cells: Tensor) -> Tensor:
    """(BT, h * w, C) values and (BT, N_det) cells -> (BT, N_det, C)."""
    return values.gather(1, cells[..., None].expand(-1, -1, values.shape[-1]))
