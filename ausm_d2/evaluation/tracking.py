# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""HOTA and track mAP of mask tracks, computed by the package trackeval.

Shape shorthand:
    T: frames of a video
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from trackeval.metrics import HOTA, TrackMAP

from ausm_d2.evaluation.tracks import Track


class TrackingScores:
    """Both measures per class, averaged over the classes with ground truth. Add all videos, then call ``results``.

    As in trackeval's YouTube-VIS evaluation, HOTA counts every predicted track, regardless of its score.
    """

    def __init__(self, category_ids: Iterable[int]) -> None:
        self._hota = HOTA()
        self._track_map = TrackMAP(
            {
                "USE_AREA_RANGES": False,
                "USE_TIME_RANGES": False,
                "IOU_THRESHOLDS": np.linspace(0.5, 0.95, 10),
                "MAX_DETECTIONS": 100,
                "PRINT_CONFIG": False,
            }
        )
        # intermediate results by category and video
        self._of_hota: dict[int, dict[str, Any]] = {category: {} for category in category_ids}
        self._of_track_map: dict[int, dict[str, Any]] = {category: {} for category in self._of_hota}

    def add(self, video: str, truth: Sequence[Track], results: Sequence[Track]) -> None:
        """Add a video by its name."""
        for category in self._of_hota:
            annotated = [track for track in truth if track.category_id == category]
            predicted = [track for track in results if track.category_id == category]
            predicted.sort(key=lambda track: -track.score)
            if annotated or predicted:
                data = _as_trackeval(annotated, predicted)
                with np.errstate(invalid="ignore"):  # 0 / 0 for two tracks without masks; the NaN has no effect
                    self._of_hota[category][video] = self._hota.eval_sequence(data)
                self._of_track_map[category][video] = self._track_map.eval_sequence(data)

    def results(self) -> dict[str, float]:
        """HOTA, DetA, AssA and mAP, in percent; empty if no class has ground truth."""
        hota = {
            category: self._hota.combine_sequences(of_videos)
            for category, of_videos in self._of_hota.items()
            if of_videos
        }
        hota = {category: result for category, result in hota.items() if (result["HOTA_TP"] + result["HOTA_FN"]).any()}
        if not hota:
            return {}
        means = self._hota.combine_classes_class_averaged(hota)
        track_map = {category: self._track_map.combine_sequences(self._of_track_map[category]) for category in hota}
        precision = self._track_map.combine_classes_class_averaged(track_map)["AP_all"]
        scores = {name: 100 * float(np.mean(means[name])) for name in ("HOTA", "DetA", "AssA")}
        return {**scores, "mAP": 100 * float(np.mean(precision))}


def _as_trackeval(annotated: Sequence[Track], predicted: Sequence[Track]) -> dict[str, Any]:
    """One class of one video, in trackeval's format."""
    sides = {"gt": annotated, "tracker": predicted}
    data: dict[str, Any] = {"num_timesteps": len((*annotated, *predicted)[0].masks), "similarity_scores": []}
    for side, tracks in sides.items():
        visible = np.array([[mask is not None for mask in track.masks] for track in tracks], bool)
        visible = visible.reshape(len(tracks), data["num_timesteps"])
        data[f"num_{side}_ids"] = len(tracks)
        data[f"num_{side}_dets"] = int(visible.sum())
        data[f"{side}_ids"] = [np.flatnonzero(frame) for frame in visible.T]
    for frame, (true_ids, predicted_ids) in enumerate(zip(data["gt_ids"], data["tracker_ids"], strict=True)):
        true_masks = [annotated[index].masks[frame] for index in true_ids]
        predicted_masks = [predicted[index].masks[frame] for index in predicted_ids]
        overlaps = coco_mask.iou(true_masks, predicted_masks, [0] * len(predicted_masks))
        data["similarity_scores"].append(np.reshape(overlaps, (len(true_masks), len(predicted_masks))))
    for side, tracks in {"gt": annotated, "dt": predicted}.items():
        data[f"{side}_tracks"] = [dict(enumerate(track.masks)) for track in tracks]
        data[f"{side}_track_ids"] = list(range(1, len(tracks) + 1))  # 0 means "not matched" in trackeval
    data["gt_track_iscrowd"] = [track.is_crowd for track in annotated]
    data["dt_track_scores"] = [track.score for track in predicted]
    data["iou_type"] = "mask"
    return data
