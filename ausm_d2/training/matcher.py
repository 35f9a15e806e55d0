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
from detectron2.projects.point_rend.point_features import point_sample
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ausm_d2.modeling.transfer import Download, upload


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
            # BCE(x, 0) = softplus(x), BCE(x, 1) = softplus(x) - x: one product gives all pairs. And softplus(x) is
            # (x + |x|) / 2 - log(sigmoid(|x|)), three times as fast on a CPU and here, in sums over points, as good.
            magnitude = logits.abs()
            softplus = (logits.sum(-1) + magnitude.sum(-1)) / 2 - magnitude.sigmoid_().log_().sum(-1)
            cost_mask = (softplus[..., None] - logits @ wanted.transpose(1, 2)) / logits.shape[-1]
            p = logits.sigmoid_()
            overlap = 2 * (p @ wanted.transpose(1, 2))
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
        cost = self.cost(class_logits, mask_logits, classes, targets)
        return Assignment(cost[None], targets.detect).solve()[0]


class Assignment:
    """Pairs of least total cost, in every frame of every layer.

    The costs are copied to the CPU asynchronously: the device can compute other things until :meth:`solve` is called.
    """

    def __init__(self, costs: Tensor, detect: Tensor) -> None:
        """
        Args:
            costs: (layers, B, V, N).
            detect: bool (B, N): instances that take part.
        """
        self._device = costs.device
        # A diverged model has no finite costs; the solver needs one, and the loss itself shows the divergence.
        self._download = Download(costs.nan_to_num(1e6, 1e6, -1e6), detect)

    def solve(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """
        Returns:
            By layer, int64 (M) frames, (M) rows of V and (M) instances that belong together.
        """
        costs, wanted = (each.numpy() for each in self._download.wait())
        layers = []
        for cost in costs:
            pairs = [np.zeros((3, 0), np.int64)]
            for b in np.flatnonzero(wanted.any(axis=1)):
                columns = wanted[b].nonzero()[0]
                row, column = linear_sum_assignment(cost[b][:, columns])
                pairs.append(np.stack([np.full(len(row), b), row, columns[column]]))
            layers.append(np.concatenate(pairs, axis=1))
        # Every layer has the same number of pairs, so one copy takes all.
        return [(each[0], each[1], each[2]) for each in upload(torch.from_numpy(np.stack(layers)), self._device)]
