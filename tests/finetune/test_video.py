# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ausm_d2.errors import UserError
from ausm_d2.finetune.video import read_video
from ausm_d2.masks.rle import decode
from tests.data.disk import square, write_labels
from tests.finetune.own import write_picture, write_video


def test_the_last_frames_of_a_video_are_held_out(tmp_path: Path) -> None:
    labels = read_video(*write_video(tmp_path, 6), names={1: "cup", 2: "spoon"}, held_out=0.34)
    assert labels.classes == ["cup", "spoon"] and labels.train.style == "YTVIS_STYLE" and labels.notes == []
    [train], held = labels.train.table["videos"], labels.held.table["images"]
    assert train["file_names"] == [f"{t:05d}.jpg" for t in range(4)] and train["length"] == 4
    assert labels.held.style == "COCO_STYLE" and [each["file_name"] for each in held] == ["00004.jpg", "00005.jpg"]
    assert [(each["image_id"], each["category_id"]) for each in labels.held.table["annotations"]] == [
        *((held[0]["id"], 1), (held[1]["id"], 1), (held[0]["id"], 2), (held[1]["id"], 2))
    ]
    cup, spoon = labels.train.table["annotations"]
    assert (cup["category_id"], spoon["category_id"]) == (1, 2) and spoon["segmentations"][0] is None
    np.testing.assert_array_equal(decode(spoon["segmentations"][2]), square(2, offset=10))
    assert labels.train.objects == {"cup": 1, "spoon": 1} and labels.held.objects == {"cup": 2, "spoon": 2}


def test_objects_without_names_are_of_one_class(tmp_path: Path) -> None:
    labels = read_video(*write_video(tmp_path))
    assert labels.classes == ["object"] and labels.train.objects == {"object": 2}


def test_frames_without_a_mask_file_are_left_out(tmp_path: Path) -> None:
    frames, masks = write_video(tmp_path, 6)
    for t in (1, 3, 5):
        (masks / f"{t:05d}.png").unlink()
    labels = read_video(frames, masks)
    assert labels.train.pictures == 2 and labels.held.pictures == 1
    assert labels.notes == ["3 frames without a mask file are left out"]


def test_a_video_of_one_labelled_frame_is_trained_on(tmp_path: Path) -> None:
    labels = read_video(*write_video(tmp_path, 1))
    assert labels.train.pictures == 1 and labels.held is None and "nothing is scored" in labels.notes[0]


def test_what_is_wrong_with_a_video_is_said(tmp_path: Path) -> None:
    frames, masks = write_video(tmp_path, 4)
    with pytest.raises(UserError, match=r"--names: for the objects \[1\]; .*masks holds \[1, 2\]"):
        read_video(frames, masks, names={1: "cup"})
    with pytest.raises(UserError, match=r"--masks: '.*nowhere', expected a folder of pictures$"):
        read_video(frames, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--video: .*ffmpeg -i FILE"):
        read_video(masks / "00001.png", masks)
    write_labels(masks / "00002.png", np.zeros((10, 10), np.uint8))
    with pytest.raises(UserError, match=r"masks/00002.png: is 10 x 10"):
        read_video(frames, masks)


def test_a_class_that_comes_late_is_not_lost_unsaid(tmp_path: Path) -> None:
    frames, masks = write_video(tmp_path, 4)
    for t in range(3):
        write_labels(masks / f"{t:05d}.png", np.where(square(t), 1, 0))
    with pytest.raises(UserError, match="spoon: in none of the first 3 of 4 labelled frames"):
        read_video(frames, masks, names={1: "cup", 2: "spoon"})
    for t in range(4):
        write_labels(masks / f"{t:05d}.png", np.zeros((24, 36), np.uint8))
    with pytest.raises(UserError, match="no mask holds an object"):
        read_video(frames, masks)


def test_a_frame_of_another_size_is_said(tmp_path: Path) -> None:
    frames, masks = write_video(tmp_path, 3)
    (frames / "00001.jpg").unlink()
    write_picture(frames / "00001.png", 1)
    assert read_video(frames, masks).train.pictures == 2
    from PIL import Image

    Image.new("RGB", (10, 10)).save(frames / "00001.png")
    with pytest.raises(UserError, match="is 10 x 10"):
        read_video(frames, masks)
