# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The result of a session for one frame.

Shape shorthand:
    H, W: size of the frames in pixels, as given
    N: objects
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import masks_to_boxes

from ausm_d2.errors import UserError


@dataclass
class FrameResult:
    """The objects of one frame. All tensors are on the model's device."""

    frame_index: int  # from 0
    instances: Instances
    """N objects: ``pred_masks`` bool (N, H, W), may overlap; ``scores`` (N): mean probability of the track's class or,
    for a prompted object, of foreground, since the track began; ``pred_classes`` int64 (N); ``track_ids`` int64 (N).
    Prompted objects are always listed, others only while they are visible."""
    id_map: Tensor
    """int32 (H, W): track id of every pixel, 0 for background. Where masks overlap, the largest logit has the pixel. A
    mask prompted at this frame goes before predictions; of two such masks, the one listed first."""

    def to_supervision(self) -> Any:
        """The visible objects as ``supervision.Detections``: boxes, masks, scores, classes and ids.

        Raises:
            UserError: if supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise UserError("supervision is not installed; pip install 'ausm_d2[supervision]'") from None
        found = self.instances.to("cpu")
        found = found[found.pred_masks.flatten(1).any(dim=1)]
        return supervision.Detections(
            xyxy=masks_to_boxes(found.pred_masks).numpy().reshape(-1, 4),
            mask=found.pred_masks.numpy(),
            confidence=found.scores.numpy(),
            class_id=found.pred_classes.numpy(),
            tracker_id=found.track_ids.numpy(),
        )
