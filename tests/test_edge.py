# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""configs/edge and its shipped weights: documented checksum, loading, and tracking of an object in a real video."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.utils.file_io import PathManager

from ausm_d2.config import load_config
from ausm_d2.data.catalog.vos import load_records
from ausm_d2.data.video import VideoRecord
from ausm_d2.masks.drawn import box_mask, clicks_mask
from ausm_d2.streaming.predictor import VideoPredictor

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs" / "edge" / "ausm_edge.yaml")


def davis_dev(shared_data: Path, video: str) -> list[VideoRecord]:
    root = shared_data / "davis_dev"
    return load_records(root / "JPEGImages" / "480p", root / "Annotations" / "480p", [video])


def iou(found: np.ndarray, true: np.ndarray) -> float:
    return float((found & true).sum() / (found | true).sum())


def test_the_weights_have_the_documented_checksum() -> None:
    weights = Path(PathManager.get_local_path(load_config(CONFIG).MODEL.WEIGHTS))
    assert weights.stat().st_size <= 25e6
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest in (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")


def test_an_object_of_a_real_video_is_tracked(shared_data: Path) -> None:
    """The dog turns and walks: from the first mask, eight frames on, where a copied mask has lost it."""
    (record,) = davis_dev(shared_data, "dog")
    assert record.masks is not None
    predictor = VideoPredictor(load_config(CONFIG, ["MODEL.DEVICE", "cpu"]))
    frames = range(0, 16, 2)
    given = [np.asarray(record.masks.read(frame)[1], bool) for frame in frames]
    with torch.no_grad():
        session = predictor.start(np.ascontiguousarray(record.frames[0][..., ::-1]), {1: given[0]})
        for frame in frames[1:]:
            result = session.step(np.ascontiguousarray(record.frames[frame][..., ::-1]))
    found, true = result.instances.pred_masks[0].numpy(), given[-1]
    overlap, copied = iou(found, true), iou(given[0], true)
    assert overlap > 0.6 > copied, (overlap, copied)


def test_a_box_and_a_click_become_masks_when_the_frame_is_shown_again(shared_data: Path) -> None:
    (record,) = davis_dev(shared_data, "cows")
    assert record.masks is not None
    frame, true = np.ascontiguousarray(record.frames[0][..., ::-1]), np.asarray(record.masks.read(0)[1], bool)
    rows, columns = np.nonzero(true)
    box = box_mask(true.shape, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    predictor = VideoPredictor(load_config(CONFIG, ["MODEL.DEVICE", "cpu"]))
    click = clicks_mask(true.shape, [(float(np.median(columns)), float(np.median(rows)))])
    for drawn, least in ((box, 0.7), (click, 0.6)):
        found = predictor.start(frame, {1: drawn}).step(frame).instances.pred_masks[0].numpy()
        assert iou(found, true) > max(least, iou(drawn, true))


def test_a_small_faint_grey_object_is_kept_for_a_step(shared_data: Path) -> None:
    """The dog in a third of the frame, grey, contrast 0.35: about half a percent of it."""
    (record,) = davis_dev(shared_data, "dog")
    assert record.masks is not None
    pictures, masks = [], []
    for t in (10, 11):
        canvas, inside = np.full((480, 854, 3), 128, np.uint8), np.zeros((480, 854), bool)
        grey = cv2.cvtColor(cv2.resize(record.frames[t], (284, 160), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        canvas[160:320, 285:569] = (0.35 * grey[..., None] + 80).astype(np.uint8)
        small = cv2.resize(np.asarray(record.masks.read(t)[1], np.float32), (284, 160), interpolation=cv2.INTER_AREA)
        inside[160:320, 285:569] = small >= 0.5
        pictures.append(canvas)
        masks.append(inside)
    predictor = VideoPredictor(load_config(CONFIG, ["MODEL.DEVICE", "cpu"]))
    found = predictor.start(pictures[0], {1: masks[0]}).step(pictures[1]).instances.pred_masks[0].numpy()
    assert masks[1].mean() < 0.02 and iou(found, masks[1]) > 0.5


def test_detections_can_have_supercategories_as_classes() -> None:
    predictor = VideoPredictor(load_config(CONFIG, ["MODEL.DEVICE", "cpu"]))
    assert predictor.class_names("coco_super")[:2] == ["person", "vehicle"]
