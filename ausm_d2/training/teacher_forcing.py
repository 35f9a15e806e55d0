# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Preprocess (paper, Sec. 5, Alg. 2): from ground truth to the history and the targets of every frame at once.

For every instance i a switch time s_i is drawn. The instance is to be detected in frames t <= s_i and tracked in frames
t > s_i; its masks of frames t >= s_i are in the history.

Shape shorthand:
    B: clips; T: frames of a clip; index t here is frame t + 1 of the paper
    N: instances (rows of A)
    H4, W4: mask size at stride 4
    R: B * T * N masks
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from ausm_d2.modeling.masks import masks_at_stride4
from ausm_d2.training.targets import ClipTargets, FrameTargets


@dataclass
class TeacherForcing:
    """Output of Preprocess for a batch."""

    switch: Tensor  # int64 (B, N): s_i; -1: before the first frame; T: never
    in_use: Tensor  # bool (B, T, N): row i is in A_{t-1}
    history: Tensor  # float (B, T, N, H4, W4): M_{t-1}, zero if the row is not in use or hidden
    track: Tensor  # bool (B, T, N): y_trk^i_t has a target (the empty mask where i is hidden)
    detect: Tensor  # bool (B, T, N): y_det^i_t has a target


def draw_switch_times(
    visible: Tensor, *, prompted: Tensor, prompt_index: str, generator: torch.Generator | None = None
) -> Tensor:
    """Draw s_i uniformly from the frames where i is visible; the first of them in a prompted clip
    (docs/deviations.md, 2).

    Args:
        visible: bool (B, T, N); frames without labels count as not visible.
        prompted: bool (B): prompted clips.
        prompt_index: "frame" or "zero"; with "zero" a prompted object that is visible in the first frame has s_i = -1.
        generator: on the device of ``visible``; None: PyTorch's default generator.

    Returns:
        int64 (B, N) in -1..T; T for an instance that is never visible.
    """
    frames = visible.shape[1]
    score = torch.rand(visible.shape, device=visible.device, generator=generator)
    uniform = score.masked_fill(~visible, -1.0).argmax(dim=1)
    first = visible.int().argmax(dim=1)
    if prompt_index == "zero":
        first = first.masked_fill(visible[:, 0], -1)
    switch = torch.where(prompted[:, None], first, uniform)
    return switch.masked_fill(~visible.any(dim=1), frames)


def preprocess(targets: ClipTargets, switch: Tensor, *, keep_hidden: bool = True) -> TeacherForcing:
    """Split the ground truth at the switch times.

    ``y_det^i_t = y^i_t`` for t <= s_i, ``y_trk^i_t = y^i_t`` for t > s_i, ``M^i_t = y^i_t`` for t >= s_i; a row stays
    in A once it is allocated, with an empty mask while its object is hidden (docs/deviations.md, 1).

    Args:
        targets: ground truth of the batch.
        switch: int64 (B, N), s_i in -1..T.
        keep_hidden: keep rows of hidden objects in A. False, the paper's letter: a row is in A_{t-1} only if its object
            is visible in frame t - 1.
    """
    frames = targets.masks.shape[1]
    time = torch.arange(frames, device=switch.device)[None, :, None]
    in_use = (time > switch[:, None]) & targets.valid[:, None]
    if not keep_hidden:
        in_use &= _frame_before(targets.visible)
    masks = targets.at_stride4
    # M_{t-1}. M_0 is empty, unless PROMPT_INDEX: zero puts the masks of the first frame there.
    history = _frame_before(masks)
    history[:, :2] = masks_at_stride4(targets.first)[:, None]  # prompt masks, if given
    history = history * in_use[..., None, None]
    labelled = targets.labelled[:, :, None]
    return TeacherForcing(
        switch=switch,
        in_use=in_use,
        history=history,
        track=in_use & labelled,
        detect=targets.visible & (time <= switch[:, None]) & labelled & targets.valid[:, None],
    )


def _frame_before(values: Tensor) -> Tensor:
    """Shift (B, T, ..) by one frame. The first frame keeps its own value, as ``PROMPT_INDEX: zero`` needs."""
    return torch.cat([values[:, :1], values[:, :-1]], dim=1)


def frame_targets(targets: ClipTargets, forcing: TeacherForcing) -> FrameTargets:
    """The targets of all frames of the clips."""
    frames = targets.masks.shape[1]
    return FrameTargets(
        masks=targets.masks.flatten(0, 1),
        classes=targets.classes.repeat_interleave(frames, dim=0),
        visible=targets.visible.flatten(0, 1),
        track=forcing.track.flatten(0, 1),
        detect=forcing.detect.flatten(0, 1),
        labelled=targets.labelled.flatten(),
        exhaustive=targets.exhaustive.repeat_interleave(frames),
    )


@dataclass
class HistoryNoise:
    """Perturbs M_{t-1} to resemble predictions (docs/deviations.md, 10). Probabilities are per row and frame."""

    morphology: float  # erode or dilate by one cell
    shift: float
    max_shift: int  # cells of stride 4
    drop: float  # replace the mask by an empty one
    swap: float  # exchange the masks of two rows

    @classmethod
    def from_config(cls, cfg: CfgNode) -> HistoryNoise | None:
        """From ``TRAIN.HISTORY_NOISE``; None if it is disabled."""
        noise = cfg.MODEL.AUSM.TRAIN.HISTORY_NOISE
        if not noise.ENABLED:
            return None
        return cls(noise.MORPHOLOGY, noise.SHIFT, noise.MAX_SHIFT, noise.DROP, noise.SWAP)

    def __call__(self, history: Tensor, in_use: Tensor) -> Tensor:
        """(B, T, N, H4, W4) masks in {0, 1}, bool (B, T, N) rows in use -> masks of the same shape."""
        shape, device = history.shape, history.device
        if not in_use.any():
            return history
        masks = history.flatten(0, 2)  # (R, H4, W4)

        def chosen(probability: float) -> Tensor:
            return torch.rand(len(masks), device=device) < probability

        morph, dilate = chosen(self.morphology), chosen(0.5)
        grown = F.max_pool2d(masks[:, None], 3, 1, 1)[:, 0]
        shrunk = -F.max_pool2d(-masks[:, None], 3, 1, 1)[:, 0]
        # What is small does not vanish: erosion leaves a quarter of a mask at least, or the mask as it is.
        area = masks.flatten(1).sum(dim=1)
        shrunk = torch.where((4 * shrunk.flatten(1).sum(dim=1) >= area)[:, None, None], shrunk, masks)
        masks = torch.where(morph[:, None, None], torch.where(dilate[:, None, None], grown, shrunk), masks)

        # A shift of whole cells, by gathering rows and columns; what enters at the border is empty.
        offset = torch.randint(-self.max_shift, self.max_shift + 1, (2, len(masks), 1), device=device)
        # .. nor is it moved off itself: a shift is half as far at most as a square of that area is wide.
        reach = (area.sqrt() / 2).floor()[None, :, None].to(offset.dtype)
        offset = torch.maximum(torch.minimum(offset, reach), -reach) * chosen(self.shift)[None, :, None]
        height, width = shape[-2:]
        rows = torch.arange(height, device=device) - offset[0]
        columns = torch.arange(width, device=device) - offset[1]
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        masks = masks.gather(1, rows.clamp(0, height - 1)[:, :, None].expand(-1, -1, width))
        masks = masks.gather(2, columns.clamp(0, width - 1)[:, None].expand(-1, height, -1)) * inside

        masks = masks * ~chosen(self.drop)[:, None, None]
        masks = masks.view(shape)
        if self.swap > 0 and shape[2] > 1:
            # The partner is the next row; a pair is exchanged as a whole and only where both are in use.
            first = (torch.rand(in_use.shape, device=device) < self.swap) & in_use & in_use.roll(-1, dims=2)
            first[:, :, 1:] &= ~first[:, :, :-1]
            first[:, :, -1] &= ~first[:, :, 0]
            order = torch.arange(shape[2], device=device).expand(in_use.shape).clone()
            order = torch.where(first, (order + 1) % shape[2], order)
            second = first.roll(1, dims=2)
            order = torch.where(second, (torch.arange(shape[2], device=device) - 1) % shape[2], order)
            masks = masks.gather(2, order[..., None, None].expand(shape))
        return masks * in_use[..., None, None]
