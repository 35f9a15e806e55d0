# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The ground truth of a batch of clips, padded to common sizes.

Shape shorthand:
    B: clips; T: frames of a clip; BT: B * T frames, flattened into one axis
    N: instances, padded to the largest number in any clip
    H_pad, W_pad: padded image size in pixels; H4, W4: at stride 4
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ausm_d2.data.items import TrainingClip
from ausm_d2.modeling.masks import masks_at_stride4
from ausm_d2.modeling.transfer import upload


@dataclass
class ClipTargets:
    """y_1..y_T of B clips."""

    masks: Tensor  # bool (B, T, N, H_pad, W_pad)
    classes: Tensor  # int64 (B, N), in the clip's label set
    valid: Tensor  # bool (B, N): False for padding
    labelled: Tensor  # bool (B, T): frames with labels
    exhaustive: Tensor  # bool (B): every object of the label set is labelled
    prompted: Tensor  # bool (B): train as prompted only, e.g. because only some objects are labelled
    # bool (B, N, H_pad, W_pad): prompt masks (from boxes, points, ..) for the first frame. Empty or None: true masks.
    given: Tensor | None = None

    @property
    def first(self) -> Tensor:
        """bool (B, N, H_pad, W_pad): prompts of the first frame: the given masks, where empty the true ones."""
        if self.given is None:
            return self.masks[:, 0]
        return torch.where(self.given.flatten(2).any(dim=-1)[..., None, None], self.given, self.masks[:, 0])

    @cached_property
    def visible(self) -> Tensor:
        """bool (B, T, N): the instance has a non-empty mask in the frame. Cached: it reads all masks."""
        return self.masks.flatten(3).any(dim=-1)

    @cached_property
    def at_stride4(self) -> Tensor:
        """(B, T, N, H4, W4) of 0 and 1. Cached: it reads all masks."""
        return masks_at_stride4(self.masks)

    @classmethod
    def from_items(cls, items: Sequence[TrainingClip], *, size: tuple[int, int], device: torch.device) -> ClipTargets:
        """
        Args:
            items: training items from the mapper, all with T frames.
            size: (H_pad, W_pad).
            device: device of the targets.
        """
        frames = items[0]["image"].shape[0]
        rows = max(1, *(len(item["classes"]) for item in items))  # at least one: many operations fail on empty tensors
        masks = torch.zeros((len(items), frames, rows, *size), dtype=torch.bool, device=device)
        classes = torch.zeros((len(items), rows), dtype=torch.int64, device=device)
        valid = torch.zeros((len(items), rows), dtype=torch.bool, device=device)
        given = None
        if any(item.get("given") is not None for item in items):
            given = torch.zeros((len(items), rows, *size), dtype=torch.bool, device=device)
        for b, item in enumerate(items):
            count, _, height, width = item["masks"].shape
            masks[b, :, :count, :height, :width] = upload(item["masks"], device).transpose(0, 1)
            classes[b, :count] = upload(item["classes"], device)
            valid[b, :count] = True
            drawn = item.get("given")
            if given is not None and drawn is not None:
                given[b, :count, :height, :width] = upload(drawn, device)
        return cls(
            masks=masks,
            classes=classes,
            valid=valid,
            given=given,
            labelled=upload(torch.stack([item["labelled"] for item in items]), device),
            exhaustive=upload(torch.tensor([item["exhaustive"] for item in items]), device),
            prompted=upload(torch.tensor([item["prompted"] for item in items]), device),
        )


@dataclass
class FrameTargets:
    """Targets of BT frames."""

    masks: Tensor  # bool (BT, N, H_pad, W_pad)
    classes: Tensor  # int64 (BT, N)
    visible: Tensor  # bool (BT, N)
    track: Tensor  # bool (BT, N): row i of A has a target
    detect: Tensor  # bool (BT, N): instance i is to be detected
    labelled: Tensor  # bool (BT)
    exhaustive: Tensor  # bool (BT)
