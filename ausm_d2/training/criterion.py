# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The loss: L_trk by fixed pairing, L_det by Hungarian matching, summed over all frames at once (paper, Sec. 5).

Both are Mask2Former's: cross-entropy, point-sampled BCE and dice, after every decoder layer.

Shape shorthand:
    B: frames (clips * frames)
    N: instances; row i of A belongs to instance i
    V: detection queries
    K: classes
    H, W: image size; H4, W4: at stride 4
    R: (frame, row) pairs that have a target mask
    P: sampled points
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness, point_sample
from detectron2.utils.comm import get_world_size
from torch import Tensor

from ..modeling.history import masks_at_stride4
from ..modeling.pixel_decoder import Predictions
from .matcher import HungarianMatcher, PointTargets
from .targets import FrameTargets


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """(R, P) logits and targets -> (R): ``1 - (2 sum p y + 1) / (sum p + sum y + 1)``."""
    p = logits.sigmoid()
    return 1 - (2 * (p * targets).sum(-1) + 1) / (p.sum(-1) + targets.sum(-1) + 1)


def _weighted_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean of the cross-entropies of (R, K + 1) logits under (R) weights; 0 where no row counts."""
    loss = F.cross_entropy(logits.float(), target, reduction="none")
    # Rows of weight 0 leave the sum altogether: their target may be a class their label set does not have.
    loss = torch.where(weight > 0, loss * weight, 0.0)
    return loss.sum() / weight.sum().clamp(min=1e-6)


class SetCriterion:
    """L_trk + L_det of every decoder layer."""

    @configurable
    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        deep_supervision: bool,
        duplicate_iou: float = 0.5,
    ) -> None:
        """
        Args:
            matcher: pairs V with instances.
            class_weight, mask_weight, dice_weight: weights of the three losses.
            no_object_weight: weight of the background class for rows of V (rows of A: 1).
            num_points: P, points per mask.
            oversample_ratio, importance_sample_ratio: PointRend's sampling of uncertain points.
            deep_supervision: False: only the last layer.
            duplicate_iou: where labels are not exhaustive, an unmatched detection is background only if it overlaps a
                tracked object by more than this (docs/deviations.md, 6).
        """
        self.matcher = matcher
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.no_object_weight = no_object_weight
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.deep_supervision = deep_supervision
        self.duplicate_iou = duplicate_iou

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        loss = cfg.MODEL.MASK_FORMER
        weights = {
            "class_weight": loss.CLASS_WEIGHT,
            "mask_weight": loss.MASK_WEIGHT,
            "dice_weight": loss.DICE_WEIGHT,
        }
        return {
            **weights,
            "matcher": HungarianMatcher(**weights),
            "no_object_weight": loss.NO_OBJECT_WEIGHT,
            "num_points": loss.TRAIN_NUM_POINTS,
            "oversample_ratio": loss.OVERSAMPLE_RATIO,
            "importance_sample_ratio": loss.IMPORTANCE_SAMPLE_RATIO,
            "deep_supervision": loss.DEEP_SUPERVISION,
        }

    def __call__(self, layers: Sequence[Predictions], targets: FrameTargets) -> dict[str, Tensor]:
        """
        Args:
            layers: predictions of every decoder layer for B frames, Q = N + V rows each; the last is the result.
            targets: what they should be.

        Returns:
            Weighted losses by name; those of intermediate layers end in their number.
        """
        points = PointTargets(targets.masks, targets.detect, num_points=self.num_points)
        num_masks = (targets.track.sum() + targets.detect.sum()).float()
        if get_world_size() > 1:
            torch.distributed.all_reduce(num_masks)
        num_masks = (num_masks / get_world_size()).clamp(min=1)

        losses = {}
        # Sums over thousands of points do not fit into half precision.
        with torch.autocast(targets.masks.device.type, enabled=False):
            for i, layer in enumerate(layers):
                last = i == len(layers) - 1
                if last or self.deep_supervision:
                    suffix = "" if last else f"_{i}"
                    in_full = Predictions(layer.class_logits.float(), layer.mask_logits.float())
                    for name, value in self._layer(in_full, targets, points, num_masks).items():
                        losses[name + suffix] = value
        return losses

    def _layer(
        self, predictions: Predictions, targets: FrameTargets, points: PointTargets, num_masks: Tensor
    ) -> dict[str, Tensor]:
        num_trk = targets.track.shape[1]
        class_logits, mask_logits = predictions
        det_classes, det_masks = class_logits[:, num_trk:], mask_logits[:, num_trk:]
        frame, row, instance = self.matcher(det_classes, det_masks, targets.classes, points)

        background = class_logits.shape[-1] - 1
        # L_trk: row i of A is instance i; background where it is hidden.
        wanted = torch.where(targets.visible, targets.classes, background)
        loss_trk_ce = _weighted_cross_entropy(
            class_logits[:, :num_trk].flatten(0, 1), wanted.flatten(), targets.track.flatten().float()
        )
        # L_det
        wanted = torch.full(det_classes.shape[:2], background, device=det_classes.device)
        weight = self._background_weight(det_masks, targets)
        wanted[frame, row] = targets.classes[frame, instance]
        weight[frame, row] = 1.0
        loss_det_ce = _weighted_cross_entropy(det_classes.flatten(0, 1), wanted.flatten(), weight.flatten())

        trk_frame, trk_row = targets.track.nonzero(as_tuple=True)
        pred = torch.cat([mask_logits[trk_frame, trk_row], det_masks[frame, row]])
        mask = torch.cat([targets.masks[trk_frame, trk_row], targets.masks[frame, instance]])
        bce, dice = self._mask_losses(pred, mask)
        split = len(trk_frame)
        return {
            "loss_trk_ce": self.class_weight * loss_trk_ce,
            "loss_trk_mask": self.mask_weight * bce[:split].sum() / num_masks,
            "loss_trk_dice": self.dice_weight * dice[:split].sum() / num_masks,
            "loss_det_ce": self.class_weight * loss_det_ce,
            "loss_det_mask": self.mask_weight * bce[split:].sum() / num_masks,
            "loss_det_dice": self.dice_weight * dice[split:].sum() / num_masks,
        }

    def _background_weight(self, det_masks: Tensor, targets: FrameTargets) -> Tensor:
        """Weights (B, V) of detections should they stay unmatched."""
        counted = targets.labelled & targets.exhaustive
        weight = counted[:, None].float().expand(det_masks.shape[:2]) * self.no_object_weight
        partial = targets.labelled & ~targets.exhaustive
        if partial.any():
            tracked = masks_at_stride4(targets.masks[partial]) * targets.track[partial][..., None, None]
            found = (det_masks[partial].detach() > 0).float().flatten(2)
            tracked = tracked.flatten(2)
            overlap = found @ tracked.transpose(1, 2)
            union = found.sum(-1)[..., None] + tracked.sum(-1)[:, None] - overlap
            duplicate = (overlap > self.duplicate_iou * union).any(dim=-1)
            weight = weight.clone()
            weight[partial] = duplicate.float() * self.no_object_weight
        return weight

    def _mask_losses(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """(R, H4, W4) logits and bool (R, H, W) targets -> BCE (R) and dice (R) at uncertain points."""
        if not len(logits):
            nothing = logits.flatten(1).sum(-1)
            return nothing, nothing
        logits, target = logits[:, None].float(), masks[:, None].float()
        with torch.no_grad():
            where = get_uncertain_point_coords_with_randomness(
                logits,
                lambda values: -values.abs(),
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )
            wanted = point_sample(target, where, align_corners=False)[:, 0]
        sampled = point_sample(logits, where, align_corners=False)[:, 0]
        bce = F.binary_cross_entropy_with_logits(sampled, wanted, reduction="none").mean(-1)
        return bce, dice_loss(sampled, wanted)
