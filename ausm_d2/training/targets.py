# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The ground truth of a batch of clips, padded to common sizes.

Shape shorthand:
    B: clips
    T: frames of a clip
    N: instances, padded to the most any clip has
    H, W: padded image size in pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ausm_d2.data.items import TrainingClip
from ausm_d2.modeling.transfer import upload


@dataclass
class ClipTargets:
    """y_1..y_T of B clips."""

    masks: Tensor  # bool (B, T, N, H, W)
    classes: Tensor  # int64 (B, N), in the clip's label set
    valid: Tensor  # bool (B, N): False for padding
    labelled: Tensor  # bool (B, T): frames that carry labels
    exhaustive: Tensor  # bool (B): every object of the label set is labelled
    prompted: Tensor  # bool (B): prompted work only, as where one object among others is labelled
    # bool (B, N, H, W): masks that are given in place of those of the first frame; where empty, and if None, those are
    given: Tensor | None = None

    @property
    def first(self) -> Tensor:
        """bool (B, N, H, W): what may be given in the first frame: drawn masks where there are any, else true ones."""
        if self.given is None:
            return self.masks[:, 0]
        return torch.where(self.given.flatten(2).any(dim=-1)[..., None, None], self.given, self.masks[:, 0])

    @cached_property
    def visible(self) -> Tensor:
        """bool (B, T, N): the instance has a mask in that frame. Computed once: it reads all masks."""
        return self.masks.flatten(3).any(dim=-1)

    @classmethod
    def from_items(cls, items: Sequence[TrainingClip], *, size: tuple[int, int], device: torch.device) -> ClipTargets:
        """
        Args:
            items: training items as the mapper makes them; all of one T.
            size: (H, W) of the padded images.
            device: where the targets go.
        """
        frames = items[0]["image"].shape[0]
        rows = max(1, *(len(item["classes"]) for item in items))  # one at least: empty tensors trouble many operations
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
    """Targets of B frames: clips and time flattened into one axis."""

    masks: Tensor  # bool (B, N, H, W)
    classes: Tensor  # int64 (B, N)
    visible: Tensor  # bool (B, N)
    track: Tensor  # bool (B, N): row i of A is supervised
    detect: Tensor  # bool (B, N): instance i is to be detected
    labelled: Tensor  # bool (B)
    exhaustive: Tensor  # bool (B)
