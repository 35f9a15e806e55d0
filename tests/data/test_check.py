# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The check command on valid and on broken data sets."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ausm_d2.data import check
from ausm_d2.data.catalog import register_ytvis_style
from ausm_d2.data.check import check_dataset, report
from ausm_d2.errors import UserError, cli
from ausm_d2.masks.rle import encode
from tests.data.disk import SIZE, square, write_davis, write_frame, write_json, write_labels, write_ytvis, ytvis_data


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["check", *arguments])
    with pytest.raises(SystemExit) as left:
        cli(check.main)
    return int(left.value.code or 0)


def test_good_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_davis(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert run(monkeypatch, "davis_2017_train", "davis_2017_val", "--preview", str(tmp_path / "out")) == 0
    out = capsys.readouterr().out
    assert "davis_2017_train: 1 videos, 3 frames (3 with labels), 2 instances, 5 masks, 1 of 1 classes" in out
    assert "  object: 2" in out and "davis_2017_val: no problems" in out
    sheet = np.asarray(Image.open(tmp_path / "out/davis_2017_train.png"))
    assert sheet.shape[2] == 3 and sheet.std() > 5


def test_every_problem_is_listed_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ytvis_data()
    json_file, images = write_ytvis(tmp_path, data)
    data["annotations"][0]["category_id"] = 41
    data["annotations"][1]["segmentations"][0] = encode(np.zeros(SIZE, bool))
    data["annotations"][1]["segmentations"][2] = {"size": [5, 5], "counts": [25]}
    data["annotations"][2]["segmentations"][1] = [[100.0, 100.0, 130.0, 100.0, 130.0, 130.0]]
    write_json(tmp_path / "labels.json", data)
    (tmp_path / "images/clip1/00000.jpg").unlink()
    (tmp_path / "images/clip1/00001.jpg").write_bytes(b"\xff\xd8\xff")
    write_frame(tmp_path / "images/clip1/00002.jpg", size=(30, 40))
    config = tmp_path / "config.yaml"
    config.write_text(f"DATASETS:\n  YTVIS_STYLE: [['own_val', '{json_file}', '{images}']]\n")
    assert run(monkeypatch, "own_val", "--config-file", str(config)) == 1
    lines = capsys.readouterr().out.splitlines()
    problems = [line for line in lines if line.startswith("problem: ")]
    expected = [
        r"labels.json: annotations[0] (video 10).category_id: 41 found, one of [1, 2] expected",
        r"labels.json: annotations[1] (video 10).segmentations[2]: size [5, 5], expected [24, 36]",
        "video clip0, frame 00000, instance 2: empty mask",
        "clip1/00000.jpg: the picture cannot be read: No such file",
        "clip1/00001.jpg: the picture cannot be decoded",
        "video clip1, frame 00001, instance 3: polygon outside of the frame of 24 x 36",
        "video clip1, frame 00002: is 30 x 40 (height x width), 24 x 36 expected",
    ]
    assert len(problems) == len(expected)
    for text, line in zip(expected, problems, strict=True):
        assert text in line
    assert lines[-1] == "own_val: 7 problems"


def test_broken_masks_and_prompts_of_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_davis(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    masks = tmp_path / "DAVIS/Annotations/480p/val_clip"
    write_labels(masks / "00000.png", square(0)[:10] * 1)
    (masks / "00002.png").write_bytes(b"no picture")
    found = check_dataset("davis_2017_val")
    assert found.videos == 1 and found.frames == 3
    assert any("00000.png: is 10 x 36 (height x width), its frame is 24 x 36" in text for text in found.problems)
    assert any("00002.png: the mask cannot be decoded" in text for text in found.problems)


def test_a_missing_data_set_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name, text in (("mose_val", "no folder found; looked for"), ("mose", "data set 'mose' is not known")):
        found = check_dataset(name)
        assert found.videos == 0 and len(found.problems) == 1 and text in found.problems[0]
        assert f"{name}: 1 problem" in report(name, found)


def test_some_videos_and_several_processes(tmp_path: Path) -> None:
    data = ytvis_data()
    data["videos"] += [{**data["videos"][0], "id": 20 + i} for i in range(6)]
    register_ytvis_style("own_val", *write_ytvis(tmp_path, data))
    assert check_dataset("own_val", max_videos=3).videos == 3
    assert check_dataset("own_val", max_videos=-3).videos == 8
    both = [check_dataset("own_val", processes=processes) for processes in (1, 2)]
    assert both[0] == both[1] and both[0].videos == 8


def test_problems_stop_a_reader_outside_of_a_check(tmp_path: Path) -> None:
    data = ytvis_data()
    files = write_ytvis(tmp_path, data)
    data["annotations"][0]["category_id"] = 41
    write_json(tmp_path / "labels.json", data)
    register_ytvis_style("own_val", *files)
    assert len(check_dataset("own_val").problems) == 1
    with pytest.raises(UserError, match="category_id: 41"):
        check.get_records("own_val")
