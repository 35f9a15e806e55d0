# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Hungarian matching of the rows of V with the instances still to be detected (paper, Sec. 5), frame by frame.

Shape shorthand:
    B: frames (clips * frames)
    V: detection queries
    N: instances, padded
    P: sampled points
    H4, W4: mask size at stride 4
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import point_sample
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class PointTargets:
    """Target masks of the instances to be detected, sampled once at points that all decoder layers share."""

    def __init__(self, masks: Tensor, detect: Tensor, *, num_points: int) -> None:
        """
        Args:
            masks: bool (B, N, H, W).
            detect: bool (B, N): instances that take part.
            num_points: P.
        """
        self.detect = detect
        self.points = torch.rand(len(masks), num_points, 2, device=masks.device)
        frame, row = detect.nonzero(as_tuple=True)
        self.values = torch.zeros(*detect.shape, num_points, device=masks.device)
        if len(frame):
            chosen = masks[frame, row][:, None].float()
            self.values[frame, row] = point_sample(chosen, self.points[frame], align_corners=False)[:, 0]


class HungarianMatcher:
    """The cost of Mask2Former: ``class_weight * -p(class) + mask_weight * BCE + dice_weight * dice``."""

    def __init__(self, *, class_weight: float, mask_weight: float, dice_weight: float) -> None:
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight

    @torch.no_grad()
    def cost(self, class_logits: Tensor, mask_logits: Tensor, classes: Tensor, targets: PointTargets) -> Tensor:
        """
        Args:
            class_logits: (B, V, K + 1).
            mask_logits: (B, V, H4, W4).
            classes: int64 (B, N).
            targets: of the same B frames and N instances.

        Returns:
            float32 (B, V, N).
        """
        with torch.autocast(
            mask_logits.device.type, enabled=False
        ):  # sums over all points do not fit into half precision
            probability = class_logits.float().softmax(-1)
            cost_class = -probability.gather(2, classes[:, None].expand(-1, probability.shape[1], -1))
            logits = point_sample(mask_logits.float(), targets.points, align_corners=False)  # (B, V, P)
            wanted = targets.values  # (B, N, P)
            # BCE(x, 1) = softplus(-x), BCE(x, 0) = softplus(-x) + x: one product gives all pairs.
            cost_mask = (F.softplus(logits).sum(-1)[..., None] - logits @ wanted.transpose(1, 2)) / logits.shape[-1]
            p = logits.sigmoid()
            overlap = 2 * p @ wanted.transpose(1, 2)
            total = p.sum(-1)[..., None] + wanted.sum(-1)[:, None]
            cost_dice = 1 - (overlap + 1) / (total + 1)
            return self.class_weight * cost_class + self.mask_weight * cost_mask + self.dice_weight * cost_dice

    @torch.no_grad()
    def __call__(
        self, class_logits: Tensor, mask_logits: Tensor, classes: Tensor, targets: PointTargets
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Arguments as :meth:`cost`.

        Returns:
            int64 (M) frames, (M) rows of V and (M) instances that belong together.
        """
        return self.assign(self.cost(class_logits, mask_logits, classes, targets), targets.detect)

    @staticmethod
    def assign(cost: Tensor, detect: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solve every frame on the CPU, after a single transfer.

        Args:
            cost: (B, V, N).
            detect: bool (B, N).
        """
        device = cost.device
        # A diverged model has no finite costs; the solver needs one, and the loss itself shows the divergence.
        costs = cost.nan_to_num(1e6, 1e6, -1e6).cpu().numpy()
        wanted = detect.cpu().numpy()
        frames, rows, instances = [], [], []
        for b in np.flatnonzero(wanted.any(axis=1)):
            columns = wanted[b].nonzero()[0]
            row, column = linear_sum_assignment(costs[b][:, columns])
            frames += [int(b)] * len(row)
            rows += row.tolist()
            instances += columns[column].tolist()
        out = torch.tensor([frames, rows, instances], dtype=torch.int64).to(device)
        return out[0], out[1], out[2]
