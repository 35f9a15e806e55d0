# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""An auxiliary semantic segmentation loss on X_t, for frame encoders trained from random weights.

Not in the paper, whose frame encoder is pre-trained on COCO (docs/deviations.md, 18). Used in training only.

Shape shorthand:
    BT: frames of all clips, flattened into one axis
    N: instances
    D: channels
    h, w: feature size at stride 8; H4, W4: mask size at stride 4
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ausm_d2.config import label_sets
from ausm_d2.modeling.masks import masks_at_stride4
from ausm_d2.modeling.transfer import upload
from ausm_d2.training.targets import FrameTargets

_BACKGROUND = 0.3  # weight of the background, relative to 1 for the objects


class FrameClassifier(nn.Module):
    """One linear per-pixel classifier of X_t per label set, and its cross-entropy. All objects have the same weight,
    whatever their area."""

    @configurable
    def __init__(self, dim: int, *, label_sets: dict[str, int], weight: float) -> None:
        """
        Args:
            dim: D.
            label_sets: number of classes by label set.
            weight: weight of the loss.
        """
        super().__init__()
        self.weight = weight
        self.class_embed = nn.ModuleDict({name: nn.Conv2d(dim, classes + 1, 1) for name, classes in label_sets.items()})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        ausm = cfg.MODEL.AUSM
        return {"dim": ausm.HIDDEN_DIM, "label_sets": label_sets(cfg), "weight": ausm.TRAIN.FRAME_CLASS_WEIGHT}

    def forward(self, x: Tensor, targets: FrameTargets, label_sets: Sequence[str]) -> dict[str, Tensor]:
        """
        Args:
            x: (BT, D, h, w) X_t.
            targets: of the BT frames.
            label_sets: label set of each frame.

        Returns:
            ``{"loss_frame_ce": weighted loss}``.
        """
        masks = masks_at_stride4(targets.masks) * targets.labelled[:, None, None, None]
        total, objects = x.new_zeros(()), masks.flatten(2).any(-1).sum().clamp(min=1)
        for name in sorted(set(label_sets)):
            # Indices, not a mask: indexing by a mask is a device sync.
            rows = upload(torch.tensor([i for i, each in enumerate(label_sets) if each == name]), x.device)
            logits = F.interpolate(self.class_embed[name](x[rows]), masks.shape[-2:], mode="bilinear")
            loss = -logits.float().log_softmax(dim=1)  # (frames, K + 1, H4, W4), of every class at every pixel
            cover = masks[rows]
            classes = targets.classes[rows]
            of_class = loss.gather(1, classes[..., None, None].expand_as(cover))
            area = cover.sum((-2, -1))
            total = total + ((of_class * cover).sum((-2, -1)) / area.clamp(min=1)).sum() / objects
            known = (targets.labelled & targets.exhaustive)[rows]
            empty = (1 - cover.amax(dim=1)) * known[:, None, None]
            total = total + _BACKGROUND * (loss[:, -1] * empty).sum() / (
                empty.sum().clamp(min=1) * len(set(label_sets))
            )
        return {"loss_frame_ce": self.weight * total}
