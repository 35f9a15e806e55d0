# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What readers of data, checkpoints and files refuse or report, besides what the tests of each reach."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.checkpoint.reading import read_checkpoint, require_whole
from ausm_d2.data.catalog import coco, sav
from ausm_d2.data.catalog.annotations import read_table
from ausm_d2.data.catalog.vos import load_video
from ausm_d2.data.check import check_video
from ausm_d2.data.frames import VideoFile
from ausm_d2.data.problems import collect_problems
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.io import atomic_folder, read_yaml
from ausm_d2.masks.png import read_labels
from tests.data.disk import SIZE, square, write_frame, write_json, write_labels
from tests.data.stubs import ArrayFrames, ListedMasks
from tests.data.test_sav import masklets
from tests.video.clips import write_clip


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("video_height", 1.5, "field 'video_height': 1.5 found"),
        ("video_height", 0, "field 'video_height': 0 found"),
        ("video_height", "24", "field 'video_height': '24' found"),
        ("video_height", float("nan"), "field 'video_height': nan found"),
        ("masklet", {"0": []}, "field 'masklet': a list with one list"),
        ("masklet", 5, "field 'masklet': a list with one list"),
        ("masklet", [], "field 'masklet': a list with one list"),
        ("masklet", [[], None, []], "field 'masklet': a list with one list"),
    ],
)
def test_masklets_that_cannot_be_read(tmp_path: Path, field: str, value: Any, message: str) -> None:
    path = write_json(tmp_path / "a_manual.json", {**masklets(), field: value})
    with pytest.raises(UserError, match=message):
        sav._read_masklets([path])


def test_polygons_of_masklets_without_three_points_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = masklets()
    data["masklet"][0][0] = [[1, 2, 3, 4]]
    sav._read_masklets([write_json(tmp_path / "a_manual.json", data)])
    assert "a_manual.json: left out 1 polygons without three points" in caplog.text


def test_files_of_sav_that_match_nothing_or_twice_are_counted(tmp_path: Path) -> None:
    for shard in ("sav_000", "sav_001"):
        write_json(tmp_path / shard / "a_manual.json", masklets())
        (tmp_path / shard / "a.mp4").touch()
    write_json(tmp_path / "sav_000" / "b_auto.json", masklets())
    (tmp_path / "sav_000" / "c.mp4").touch()
    with collect_problems() as problems:
        sav._load_train(tmp_path)
    assert sorted(text.split("left out ")[1] for text in problems) == [
        "1 files of masklets without a video",
        "1 videos of a name that another one has",
        "1 videos without _manual.json or _auto.json",
    ]


def test_folders_of_sav_that_match_nothing(tmp_path: Path) -> None:
    (tmp_path / "i" / "empty").mkdir(parents=True)
    for name in ("empty/000", "a/000", "a/other"):
        (tmp_path / "m" / name).mkdir(parents=True)
    write_frame(tmp_path / "i" / "a" / "00000.jpg")
    write_labels(tmp_path / "m" / "a" / "000" / "00000.png", square(0))
    with collect_problems() as problems:
        records = sav._load_frames("x", tmp_path / "i", tmp_path / "m")
        assert [(record.name, record.height) for record in records] == [("a", SIZE[0])]
    assert [text.split("/")[-1] for text in problems] == [
        "i: left out 1 videos of 0 frames",
        "a: folder 'other' is no object (000, 001, ... expected)",
    ]


def _record(**fields: Any) -> VideoRecord:
    frames = ArrayFrames([np.zeros((*SIZE, 3), np.uint8)] * 2)
    return VideoRecord(1, "v", *SIZE, frames, masks=ListedMasks({1: [square(0), None]}), **fields)


def _found(**fields: Any) -> list[str]:
    return check_video(_record(**fields)).problems


def test_the_check_names_frames_too_many_and_objects_given_where_they_are_not() -> None:
    problems = [text for each in ({"labelled": [True] * 3}, {"prompt_frames": {1: 1}}) for text in _found(**each)]
    assert "video v: 3 frames are described, but the video has 2" in problems
    assert "video v: object 1 has no mask in frame 1, where it is given" in problems


def test_a_video_that_cannot_be_prompted() -> None:
    without = _record(prompt_frames={1: 0})
    without.masks = None
    for record in (_record(), without):
        with pytest.raises(UserError, match="video v: has no masks to prompt with"):
            record.prompts()
    with pytest.raises(UserError, match="video v: object 1 has no mask in frame 1, where it is prompted"):
        _record(prompt_frames={1: 1}).prompts()


def test_a_folder_without_frames(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="a: no pictures found, the frames of a video expected"):
        load_video(tmp_path / "a", tmp_path)


def test_two_images_of_one_file(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": "a.jpg", "height": 4, "width": 4} for i in (1, 2)]
    with collect_problems() as problems:
        coco._read_images(tmp_path / "a.json", {"images": images}, tmp_path)
    assert problems == [f"{tmp_path}/a.json: images[1]: image 2 has the same file as image 1"]
    with pytest.raises(UserError, match="field 'images': list found, a list of objects expected"):
        coco._read_images(tmp_path / "a.json", {"images": [3]}, tmp_path)
    with pytest.raises(UserError, match=r"a\.json: a list found; an object with 'categories'"):
        read_table(write_json(tmp_path / "a.json", []))


class _Breaks:
    def seek(self, *_: Any, **__: Any) -> None:
        pass

    def decode(self, _: Any) -> Iterator[Any]:
        raise av.InvalidDataError(1, "Invalid data")


def test_a_frame_of_a_video_that_cannot_be_decoded_or_is_not_there(tmp_path: Path) -> None:
    video = VideoFile(str(write_clip(tmp_path / "a.mp4", 3)), "rgb24")
    assert len(video) == 3
    video._times = [*video._times, video._times[-1] + 10**6]
    with pytest.raises(UserError, match=r"a\.mp4: ends before frame 3 of 4"):
        video[3]
    video._container = _Breaks()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"a\.mp4: frame 1 cannot be decoded: Invalid data"):
        video[1]


def test_masks_that_are_folders_or_of_colours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the mask cannot be read: Is a directory"):
        read_labels(tmp_path)
    Image.new("LAB", (4, 4), (50, 0, 0)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: a picture in colours \(mode LAB\)"):
        read_labels(tmp_path / "a.tif")
    Image.new("CMYK", (4, 4)).save(tmp_path / "b.tif")  # its channels are equal
    with pytest.raises(UserError, match=r"b\.tif: a picture in colours \(mode CMYK\)"):
        read_labels(tmp_path / "b.tif")


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: File exists"), atomic_folder(tmp_path / "file" / "a"):
        pass
    (tmp_path / "a.pth").write_text("no checkpoint")
    with pytest.raises(UserError, match=r"a\.pth: not a file of torch\.save, or damaged \(BadZipFile\)"):
        require_whole(tmp_path / "a.pth")


def test_a_checkpoint_whose_parts_lie_in_one_another(tmp_path: Path) -> None:
    """As in archives that unpack to far more than they are."""
    torch.save({"model": {"a": torch.zeros(2000)}}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
        archive.filelist += [largest] * 9
        archive._didModify = True  # type: ignore[attr-defined]
    for read in (read_checkpoint, require_whole):
        with pytest.raises(UserError, match=r"a\.pth: refused, its contents are packed"):
            read(tmp_path / "a.pth")


def test_random_weights_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpointer = AUSMCheckpointer(torch.nn.Linear(1, 1), str(tmp_path), complete=True)
    checkpointer.logger = logging.getLogger("tests")
    checkpointer.load("")
    assert "MODEL.WEIGHTS is empty: the weights are random" in caplog.text


def test_weights_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: str) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(PathManager, "get_local_path", fails)
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS: 'https://a/b\.pth' cannot be fetched: no network"):
        AUSMCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).load("https://a/b.pth")
