# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What a session says of one frame.

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
    """What there is in one frame. All tensors are on the model's device."""

    frame_index: int  # from 0
    instances: Instances
    """Of N objects: ``pred_masks`` bool (N, H, W), which may overlap; ``scores`` (N): the mean probability, since the
    track began, of its class, or, where the user gave the object, of being there; ``pred_classes`` int64 (N);
    ``track_ids`` int64 (N). Unprompted work lists the objects in sight, prompted work all that are followed."""
    id_map: Tensor
    """int32 (H, W): track id of every pixel, 0 for background. Where masks overlap, the surest has the pixel: the
    largest logit. A mask given at this frame is surer than any prediction; of two the one listed first has it."""

    def to_supervision(self) -> Any:
        """The objects in sight as ``supervision.Detections``: boxes, masks, scores, classes and ids.

        Raises:
            UserError: supervision is not installed.
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
