# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Contact sheets of the results of a video, to look at.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import Instances

from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.video.outputs import write_picture
from ausm_d2.visualization import contact_sheet, draw_masks

_SHEET_WIDTH, _SHEET_COLUMNS = 320, 6  # pixels of a frame, frames in a row


class Sheet:
    """Contact sheet of the results of one video."""

    def __init__(self, predictor: VideoPredictor, path: Path | None) -> None:
        """
        Args:
            path: of the picture; None: none is made.
        """
        self._path = path
        self._classes = predictor.class_names(predictor.label_set) if path else []
        self._pictures: list[np.ndarray] = []

    def add(self, frame: np.ndarray, instances: Instances) -> None:
        """A frame, uint8 (H, W, 3), and what was found in it."""
        if self._path is None:
            return
        size = _SHEET_WIDTH, round(_SHEET_WIDTH * frame.shape[0] / frame.shape[1])
        small = [cv2.resize(mask.astype(np.uint8), size) > 0 for mask in instances.pred_masks.cpu().numpy()]
        ids = instances.track_ids.tolist()
        rows = zip(ids, instances.pred_classes.tolist(), instances.scores.tolist(), strict=True)
        labels = [f"{i} {self._classes[c] if c < len(self._classes) else ''} {score:.2f}" for i, c, score in rows]
        self._pictures.append(draw_masks(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), small, ids, labels))

    def write(self) -> None:
        """Write the picture, if there is one."""
        if self._path is not None and self._pictures:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            rows = [self._pictures[at : at + _SHEET_COLUMNS] for at in range(0, len(self._pictures), _SHEET_COLUMNS)]
            write_picture(self._path, contact_sheet(rows))
