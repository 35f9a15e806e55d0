# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The scores on real video, on videos with known answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from PIL import Image

from ausm_d2.data.catalog.vos import load_records
from ausm_d2.data.thinning import every_nth
from tests.data.disk import write_frame
from tests.tiny import tiny_cfg, tiny_model
from tools import real_video

SIZE = (24, 36)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six frames: an object of 6 x 6 pixels goes right by two pixels a frame and is gone in the last one."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "masks" / "clip").mkdir(parents=True)
    for t in range(6):
        write_frame(tmp_path / f"images/clip/{t:05d}.jpg")
        mask = np.zeros(SIZE, np.uint8)
        mask[4:10, 2 + 2 * t : 8 + 2 * t] = 0 if t == 5 else 1
        Image.fromarray(mask).save(tmp_path / f"masks/clip/{t:05d}.png")
    return tmp_path


def test_every_nth_frame_is_a_video_of_its_own(root: Path) -> None:
    (record,) = load_records(root / "images", root / "masks", ["clip"])
    some = every_nth(record, 2)
    assert some.frames.names == ["00000", "00002", "00004"] and some.length == 3
    assert some.masks is not None and np.array_equal(some.masks.read(2)[1], record.masks.read(4)[1])  # type: ignore[union-attr]
    assert some.labelled == [True] * 3 and dict(some.prompt_frames or {}) == {1: 0}


def test_scores_are_means_over_frames_then_objects_then_videos() -> None:
    scores, whole = real_video.Scores(), np.ones((10, 10), bool)
    half, dot, none = np.zeros((10, 10), bool), np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    half[:5], dot[0, 0] = True, True
    scores.add("a", 1, half, whole)
    scores.add("a", 1, whole, whole)
    scores.add("a", 2, none, dot)
    scores.add("b", 1, none, none)
    summary = scores.summary()
    assert summary["videos"] == {"a": 37.5, "b": 100.0} and summary["mean"] == 68.75
    assert summary["areas"] == {"<= 2 %": 0.0, "<= 100 %": 75.0}


def test_points_lie_in_the_thickest_places_of_an_object() -> None:
    mask = np.zeros((40, 90), bool)
    mask[10:21, 5:86] = True
    assert real_video.middles(mask, 1)[0][1] == 15.5
    points = real_video.middles(mask, 3)
    assert all(5 + 27 * i <= x <= 5 + 27 * (i + 1) + 1 and y == 15.5 for i, (x, y) in enumerate(points))


def test_the_track_with_the_best_score_is_judged_beside_the_one_that_fits_best() -> None:
    """Track 1 is the object, track 2 half of it and surer; track 2 is seen in the last frame only."""
    object_, half = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    object_[4:8], half[4:6] = True, True
    clip = real_video.Clip("clip", 3, lambda t: (np.zeros((*SIZE, 3), np.uint8), {7: object_}))

    def result(tracks: dict[int, tuple[np.ndarray, float]]) -> SimpleNamespace:
        masks, scores = zip(*tracks.values(), strict=True)
        instances = Instances(SIZE, pred_masks=torch.from_numpy(np.stack(masks)), scores=torch.tensor(scores))
        instances.track_ids = torch.tensor(list(tracks))
        return SimpleNamespace(instances=instances)

    seen = [result({1: (object_, 0.9)}), result({1: (object_, 0.6)}), result({1: (object_, 0.6), 2: (half, 0.7)})]
    found = real_video.found_by_itself(SimpleNamespace(stream=lambda frames: iter(seen)), clip)
    assert found == (pytest.approx(100.0), pytest.approx(25.0), 2)


def test_the_command_writes_what_it_prints(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": tiny_model().state_dict()}, root / "w.pth")
    config = root / "tiny.yaml"
    cfg = tiny_cfg("DATASETS.TEST", ("own",), "MODEL.AUSM.PROMPT_LABEL_SET", "object")
    cfg.DATASETS.DAVIS_STYLE = [["own", "images", "masks"]]
    config.write_text(cfg.dump())
    arguments = ["--config-file", config, "--weights", root / "w.pth", "--every", 2, "--json", root / "out.json"]
    arguments += ["--sheets", root / "sheets"]
    parts = ["prompted", "looks", "drawn", "unprompted", "references"]
    monkeypatch.setattr(sys, "argv", [str(each) for each in ("real_video", *arguments, "--parts", *parts)])
    real_video.main()
    result = json.loads((root / "out.json").read_text())["own"]
    sheets = {path.name: cv2.imread(str(path)) for path in (root / "sheets").iterdir()}
    assert {name: (sheet.shape[1] - 4) // 324 for name, sheet in sheets.items()} == {
        "own_clip_prompted.png": 2,  # of three frames; the first one is given
        "own_clip_unprompted.png": 3,
    }
    assert list(result) == parts
    # The object is at columns 2 to 8, then 6 to 12, then 10 to 16: of 6 columns 2 are shared, then none.
    copied = result["references"]["first mask copied"]
    assert copied["mean"] == pytest.approx(100 * (2 / 10 + 0) / 2) and list(copied["areas"]) == ["<= 8 %"]
    assert result["drawn"]["box itself"]["mean"] == 100.0
    assert set(result["unprompted"]) == {"mean", "surest", "tracks", "videos"}
    assert f"own references first mask copied mean: {copied['mean']:.1f}" in capsys.readouterr().out
