# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""configs/edge and the weights it ships: that they are those of the page, fit, and follow an object of a real video."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from detectron2.utils.file_io import PathManager

from ausm_d2.config import load_config
from ausm_d2.data.catalog.vos import load_records
from ausm_d2.streaming.predictor import VideoPredictor

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs" / "edge" / "ausm_edge.yaml")


def test_the_weights_are_those_of_the_page() -> None:
    weights = Path(PathManager.get_local_path(load_config(CONFIG).MODEL.WEIGHTS))
    assert weights.stat().st_size <= 25e6
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest in (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")


def test_an_object_of_a_real_video_is_followed(shared_data: Path) -> None:
    """The dog turns and walks: from the first mask, eight frames on, where a copied mask has lost it."""
    root = shared_data / "davis_dev"
    (record,) = load_records(root / "JPEGImages" / "480p", root / "Annotations" / "480p", ["dog"])
    assert record.masks is not None
    predictor = VideoPredictor(load_config(CONFIG, ["MODEL.DEVICE", "cpu"]))
    frames = range(0, 16, 2)
    given = [np.asarray(record.masks.read(frame)[1], bool) for frame in frames]
    with torch.no_grad():
        session = predictor.start(np.ascontiguousarray(record.frames[0][..., ::-1]), {1: given[0]})
        for frame in frames[1:]:
            result = session.step(np.ascontiguousarray(record.frames[frame][..., ::-1]))
    found, true = result.instances.pred_masks[0].numpy(), given[-1]
    overlap = (found & true).sum() / (found | true).sum()
    copied = (given[0] & true).sum() / (given[0] | true).sum()
    assert overlap > 0.6 > copied, (overlap, copied)
