# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Detection in single frames, without history, for the frame-by-frame baseline.

Shape shorthand:
    H, W: frame size in pixels
    T: frames of the video
    R: detections of a frame
    K: classes
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from detectron2.evaluation import inference_context
from torch import Tensor

from ausm_d2.data.items import TestVideo, TrackEntry
from ausm_d2.masks.rle import Rle, encode
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.streaming.inference import prepared_for_inference
from ausm_d2.streaming.segmenter import best_tracks, shown_rows
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.stream import Stream


class SingleFrames:
    """A model as an :class:`ausm_d2.evaluation.references.Detector`, with its input sizes and thresholds."""

    def __init__(self, model: AUSMNetwork, settings: VideoSettings) -> None:
        self.model = model
        self.settings = settings

    def detect(self, frame: np.ndarray, item: TestVideo) -> tuple[list[Rle], Tensor]:
        """R masks and class probabilities (R, K) for a frame, uint8 (H, W, 3) RGB: a stream of one frame."""
        settings = replace(self.settings.for_item(item), min_age=1)
        with inference_context(self.model), prepared_for_inference(self.model, settings):
            stream = Stream(self.model, settings, label_set=item["label_set"], detect=True)
            shown = shown_rows(stream.step(frame))
            masks = (stream.logits(shown) > 0).cpu().numpy()
        kept = [row for row, mask in enumerate(masks) if mask.any()]
        return [encode(masks[row]) for row in kept], shown.probabilities[kept]

    def best_tracks(
        self, item: TestVideo, masks: dict[int, list[Rle | None]], scores: dict[int, Tensor]
    ) -> list[TrackEntry]:
        """The result entries of a test item, best first, from T masks and (K) class scores per track."""
        return best_tracks(masks, scores, self.settings.for_item(item))
