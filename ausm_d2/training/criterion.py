# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The loss: L_trk by fixed pairing, L_det by Hungarian matching, summed over all frames at once (paper, Sec. 5).

Both use Mask2Former's losses after every decoder layer: cross-entropy, point-sampled BCE and dice.

Shape shorthand:
    BT: frames of all clips, flattened into one axis
    N: instances; row i of A belongs to instance i
    N_det: detection queries V; Q: N + N_det
    K: classes of the largest label set among the frames
    H_pad, W_pad: padded image size in pixels; H4, W4: at stride 4
    R: (frame, row) pairs that have a target
    P: sampled points
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness, point_sample
from detectron2.utils.comm import get_world_size
from torch import Tensor

from ausm_d2.modeling.masks import mask_boxes, masks_at_stride4
from ausm_d2.modeling.pixel_decoder import Predictions
from ausm_d2.modeling.proposals import CellPredictions
from ausm_d2.training.matcher import Assignment, HungarianMatcher, PointTargets
from ausm_d2.training.proposal_loss import cell_losses
from ausm_d2.training.targets import FrameTargets


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """(R, P) logits and targets -> (R): ``1 - (2 sum p y + 1) / (sum p + sum y + 1)``."""
    p = logits.sigmoid()
    return 1 - (2 * (p * targets).sum(-1) + 1) / (p.sum(-1) + targets.sum(-1) + 1)


def points_around(masks: Tensor, count: int) -> Tensor:
    """Draw points uniformly from the enlarged box of each mask, so that small objects are always sampled.

    Each side of the box moves out by half its extent, at least 8 pixels, and is clipped at the frame. The box of an
    empty mask is the whole frame.

    Args:
        masks: bool (R, H_pad, W_pad).
        count: P.

    Returns:
        (R, P, 2), x and y in [0, 1], relative to the frame.
    """
    size = torch.tensor([masks.shape[2], masks.shape[1]], device=masks.device)
    boxes = mask_boxes(masks)
    start, end = boxes[:, :2], boxes[:, 2:]
    end = torch.where(end == 0, size, end)  # an empty mask
    margin = ((end - start) / 2).clamp(min=8)
    start, end = (start - margin).clamp(min=0) / size, torch.minimum(end + margin, size) / size
    return start[:, None] + torch.rand(len(masks), count, 2, device=masks.device) * (end - start)[:, None]


def _weighted_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(R, K + 1) logits, (R) classes and (R) weights -> weighted sum of the cross-entropies, and sum of the weights."""
    loss = F.cross_entropy(logits.float(), target, reduction="none")
    # Mask rows of weight 0 instead of multiplying: the class may be outside their label set, where the loss is inf.
    return torch.where(weight > 0, loss * weight, 0.0).sum(), weight.sum()


def _partly_labelled(targets: FrameTargets) -> tuple[Tensor, Tensor] | None:
    """Indices of the labelled frames whose labels are not exhaustive, and the masks (frames, N, H4 * W4) of their
    tracked objects, zero in other rows. None if there are no such frames."""
    frames = (targets.labelled & ~targets.exhaustive).nonzero()[:, 0]
    if not len(frames):
        return None
    tracked = masks_at_stride4(targets.masks[frames]) * targets.track[frames][..., None, None]
    return frames, tracked.flatten(2)


def average_over_processes(values: Tensor) -> Tensor:
    """The mean of ``values`` over all processes."""
    if get_world_size() > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values / get_world_size()


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
        box_point_ratio: float,
        deep_supervision: bool = True,
        duplicate_iou: float = 0.5,
    ) -> None:
        """
        Args:
            matcher: assigns instances to rows of V.
            class_weight, mask_weight, dice_weight: weights of the three losses.
            no_object_weight: weight of the background class for rows of V (rows of A: 1).
            num_points: P, points per mask.
            oversample_ratio, importance_sample_ratio: PointRend's sampling of uncertain points.
            box_point_ratio: fraction of the P points drawn around the object (docs/deviations.md, 9); 0: Mask2Former.
            deep_supervision: supervise every decoder layer, not only the last.
            duplicate_iou: if labels are not exhaustive, an unmatched detection counts as background only if its IoU
                with a tracked object exceeds this (docs/deviations.md, 6).
        """
        self.matcher = matcher
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.no_object_weight = no_object_weight
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.box_point_ratio = box_point_ratio
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
            "box_point_ratio": loss.BOX_POINT_RATIO,
        }

    def __call__(self, layers: Sequence[Predictions], targets: FrameTargets) -> dict[str, Tensor]:
        """
        Args:
            layers: predictions of every decoder layer for BT frames with Q rows; the last is the result.
            targets: ground truth of the BT frames.

        Returns:
            Weighted losses by name; names of intermediate layers end in ``_<layer>``.
        """
        return self.grouped([(layers, targets)])

    def grouped(self, groups: Sequence[tuple[Sequence[Predictions], FrameTargets]]) -> dict[str, Tensor]:
        """The losses over several groups of frames; each group has its own image size.

        Losses are summed over all frames of all groups. Mask losses are divided by the number of target masks,
        cross-entropies by the sum of the row weights, each averaged over processes. The gradients, averaged over
        processes, thus equal those of one process with the whole batch.

        Args:
            groups: (layers, targets) as for :meth:`__call__`.
        """
        masks = torch.stack([targets.track.sum() + targets.detect.sum() for _, targets in groups]).sum()
        sums = torch.stack([self._sums(layers, targets) for layers, targets in groups]).sum(dim=0)
        shared = average_over_processes(torch.cat([sums[..., 1].detach().flatten(), masks.float()[None]]))
        weights, num_masks = shared[:-1].view(sums.shape[:2]).clamp(min=1e-6), shared[-1].clamp(min=1)
        losses: dict[str, Tensor] = {}
        for i, (layer, by_part) in enumerate(zip(sums, weights, strict=True)):
            suffix = f"_{i}" if i + 1 < len(sums) else ""
            for part, (ce, _, bce, dice), weight in zip(("trk", "det"), layer, by_part, strict=True):
                losses[f"loss_{part}_ce{suffix}"] = self.class_weight * ce / weight
                losses[f"loss_{part}_mask{suffix}"] = self.mask_weight * bce / num_masks
                losses[f"loss_{part}_dice{suffix}"] = self.dice_weight * dice / num_masks
        cells = [(layers[-1].cells, targets) for layers, targets in groups]
        return losses if cells[0][0] is None else losses | self.of_cells(cast(Any, cells))

    @staticmethod
    def of_cells(groups: Sequence[tuple[CellPredictions, FrameTargets]]) -> dict[str, Tensor]:
        """The losses of the cells that V is made of, divided by the number of objects to be detected."""
        *sums, count = cell_losses(groups)
        share = average_over_processes(count[None])[0].clamp(min=1)
        return {f"loss_{name}": each / share for name, each in zip(("heat", "box", "coarse"), sums, strict=True)}

    def _sums(self, layers: Sequence[Predictions], targets: FrameTargets) -> Tensor:
        """(layers, 2, 4): for L_trk and L_det the sums of cross-entropy, of its weights, of BCE and of dice."""
        # All device syncs except that of the matching costs come first, before the loss has queued work.
        tracked = targets.track.nonzero(as_tuple=True)
        partial = _partly_labelled(targets)
        points = PointTargets(targets.masks, targets.detect, num_points=self.num_points)
        # Sums over thousands of points overflow in half precision.
        with torch.autocast(targets.masks.device.type, enabled=False):
            used = layers if self.deep_supervision else layers[-1:]
            num_trk = targets.track.shape[1]
            det = [Predictions(layer.class_logits[:, num_trk:], layer.mask_logits[:, num_trk:]) for layer in used]
            costs = torch.stack([self.matcher.cost(*layer[:2], targets.classes, points) for layer in det])
            assignment = Assignment(costs, targets.detect)
            # The tracking losses run on the device while the costs are copied and the assignment is solved on the CPU.
            tracking = [self._tracking(layer, targets, tracked) for layer in used]
            detection = [
                self._detection(layer, targets, pairs, partial)
                for layer, pairs in zip(det, assignment.solve(), strict=True)
            ]
        return torch.stack([torch.stack(tracking), torch.stack(detection)], dim=1)

    def _tracking(self, layer: Predictions, targets: FrameTargets, tracked: tuple[Tensor, ...]) -> Tensor:
        """(4) sums of L_trk. Row i of A belongs to instance i; while hidden its target is background and an empty mask.

        Args:
            tracked: (R) frames and (R) rows with a target.
        """
        background, num_trk = layer.class_logits.shape[-1] - 1, targets.track.shape[1]
        wanted = torch.where(targets.visible, targets.classes, background)
        ce = _weighted_cross_entropy(
            layer.class_logits[:, :num_trk].flatten(0, 1), wanted.flatten(), targets.track.flatten().float()
        )
        return torch.stack([*ce, *self._mask_losses(layer.mask_logits[tracked], targets.masks[tracked])])

    def _detection(
        self,
        layer: Predictions,
        targets: FrameTargets,
        pairs: tuple[Tensor, Tensor, Tensor],
        partial: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """(4) sums of L_det. The target of a row of V is the instance assigned to it, or background.

        Args:
            layer: predictions of the rows of V only.
            pairs: (R) frames, (R) rows of V and (R) instances.
            partial: from :func:`_partly_labelled`.
        """
        frame, row, instance = pairs
        background = layer.class_logits.shape[-1] - 1
        wanted = torch.full(layer.class_logits.shape[:2], background, device=layer.class_logits.device)
        weight = self._background_weight(layer.mask_logits, targets, partial)
        wanted[frame, row] = targets.classes[frame, instance]
        weight[frame, row] = 1.0
        ce = _weighted_cross_entropy(layer.class_logits.flatten(0, 1), wanted.flatten(), weight.flatten())
        return torch.stack([*ce, *self._mask_losses(layer.mask_logits[frame, row], targets.masks[frame, instance])])

    def _background_weight(
        self, det_masks: Tensor, targets: FrameTargets, partial: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """(BT, N_det) weights of the background class for unmatched detections."""
        counted = (targets.labelled & targets.exhaustive)[:, None].float()
        weight = (counted * self.no_object_weight).repeat(1, det_masks.shape[1])
        if partial is not None:
            frames, tracked = partial
            found = (det_masks[frames].detach() > 0).float().flatten(2)
            overlap = found @ tracked.transpose(1, 2)
            union = found.sum(-1)[..., None] + tracked.sum(-1)[:, None] - overlap
            duplicate = (overlap > self.duplicate_iou * union).any(dim=-1)
            weight[frames] = duplicate.float() * self.no_object_weight
        return weight

    def _mask_losses(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """(R, H4, W4) logits and bool (R, H_pad, W_pad) targets -> sums over R of BCE and dice at sampled points."""
        if not len(logits):
            nothing = logits.float().sum()
            return nothing, nothing
        logits, target = logits[:, None].float(), masks[:, None].float()
        with torch.no_grad():
            near = int(self.num_points * self.box_point_ratio)
            where = get_uncertain_point_coords_with_randomness(
                logits,
                lambda values: -values.abs(),
                self.num_points - near,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )
            if near:
                where = torch.cat([where, points_around(masks, near)], dim=1)
            wanted = point_sample(target, where, align_corners=False)[:, 0]
        sampled = point_sample(logits, where, align_corners=False)[:, 0]
        bce = F.binary_cross_entropy_with_logits(sampled, wanted, reduction="none").mean(-1)
        return bce.sum(), dice_loss(sampled, wanted).sum()
