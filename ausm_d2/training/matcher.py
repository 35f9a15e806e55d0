# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Hungarian matching of the rows of V with the instances still to be detected, per frame (paper, Sec. 5).

Shape shorthand:
    BT: frames of all clips, flattened into one axis
    N_det: detection queries V
    N: instances, padded
    K: classes of the largest label set among the frames
    P: sampled points; R: pairs
    H_pad, W_pad: padded image size in pixels; H4, W4: mask size at stride 4
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor

from ausm_d2.modeling.transfer import Download, upload


class PointTargets:
    """Target masks of the instances to be detected, sampled at points that all decoder layers share."""

    def __init__(self, masks: Tensor, detect: Tensor, *, num_points: int) -> None:
        """
        Args:
            masks: bool (BT, N, H_pad, W_pad).
            detect: bool (BT, N): instances to be detected.
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
    """Matching by Mask2Former's cost ``class_weight * -p(class) + mask_weight * BCE + dice_weight * dice``."""

    def __init__(self, *, class_weight: float, mask_weight: float, dice_weight: float) -> None:
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight

    @torch.no_grad()
    def cost(self, class_logits: Tensor, mask_logits: Tensor, classes: Tensor, targets: PointTargets) -> Tensor:
        """
        Args:
            class_logits: (BT, N_det, K + 1).
            mask_logits: (BT, N_det, H4, W4).
            classes: int64 (BT, N).
            targets: of the same BT frames and N instances.

        Returns:
            float32 (BT, N_det, N).
        """
        # Sums over all points overflow in half precision.
        with torch.autocast(mask_logits.device.type, enabled=False):
            probability = class_logits.float().softmax(-1)
            cost_class = -probability.gather(2, classes[:, None].expand(-1, probability.shape[1], -1))
            logits = point_sample(mask_logits.float(), targets.points, align_corners=False)  # (BT, N_det, P)
            wanted = targets.values  # (BT, N, P)
            # BCE(x, 0) = softplus(x) and BCE(x, 1) = softplus(x) - x, so one matrix product covers all pairs.
            # softplus(x) = (x + |x|) / 2 - log(sigmoid(|x|)) is three times as fast on a CPU and accurate enough here.
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
        """Arguments as for :meth:`cost`.

        Returns:
            int64 (R) frames, (R) rows of V and (R) instances of the matched pairs.
        """
        cost = self.cost(class_logits, mask_logits, classes, targets)
        return Assignment(cost[None], targets.detect).solve()[0]


class Assignment:
    """Pairs of least total cost in every frame of every layer.

    The constructor starts an asynchronous copy of all costs to the CPU; more work can be queued on the device before
    :meth:`solve`.
    """

    def __init__(self, costs: Tensor, detect: Tensor) -> None:
        """
        Args:
            costs: (layers, BT, N_det, N).
            detect: bool (BT, N): instances to be detected.
        """
        self._device = costs.device
        # The solver needs finite costs. If the model diverged, the loss shows it.
        self._download = Download(costs.nan_to_num(1e6, 1e6, -1e6), detect)

    def solve(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """
        Returns:
            By layer: int64 (R) frames, (R) rows of V and (R) instances of the matched pairs.
        """
        from scipy.optimize import linear_sum_assignment  # takes a second to import; inference does not need it

        costs, wanted = (each.numpy() for each in self._download.wait())
        layers = []
        for cost in costs:
            pairs = [np.zeros((3, 0), np.int64)]
            for b in np.flatnonzero(wanted.any(axis=1)):
                columns = wanted[b].nonzero()[0]
                row, column = linear_sum_assignment(cost[b][:, columns])
                pairs.append(np.stack([np.full(len(row), b), row, columns[column]]))
            layers.append(np.concatenate(pairs, axis=1))
        # Every layer has the same number of pairs: one upload for all.
        return [(each[0], each[1], each[2]) for each in upload(torch.from_numpy(np.stack(layers)), self._device)]
