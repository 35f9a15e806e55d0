# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ausm_d2.data.build import get_records
from ausm_d2.data.catalog.ytvis import register_ytvis_style
from ausm_d2.errors import UserError
from ausm_d2.masks.png import read_labels
from ausm_d2.masks.rle import decode
from ausm_d2.video import outputs
from ausm_d2.video.results import OUTPUTS, ResultFolder, check_outputs
from ausm_d2.video.tracked import Done, TrackedFrame, VideoInfo

SIZE = (40, 60)
INFO = VideoInfo("a.mp4", *SIZE, Fraction(10), prompted=False, classes=["cat", "dog"])


def frame(index: int) -> TrackedFrame:
    """A square (id 3) that moves right, and over it, but for frames 3 and 4, a higher one (id 300)."""
    image = np.full((*SIZE, 3), 20 * (index % 10), np.uint8)
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 10:20, 2 * index : 2 * index + 10] = True
    if index not in (3, 4):
        masks[1, 0:15, 2 * index : 2 * index + 10] = True
    id_map = np.where(masks[1], 300, np.where(masks[0], 3, 0))
    entries = [(3, "cat", 0, 0.9), (300, "dog", 1, 0.5 + index / 100)]
    return TrackedFrame.of_arrays(index, f"{index:05d}", index / 10, f"{index:05d}.jpg", image, masks, id_map, entries)


def write(path: Path, frames: Sequence[int], *, names: Sequence[str] = tuple(OUTPUTS), done: int = 0) -> ResultFolder:
    folder = ResultFolder(path)
    going_on = Done(done, done / 10) if done else None
    folder.begin(INFO, check_outputs(names), key="k", settings={}, done=going_on)
    for index in frames:
        folder.write(frame(index))
    return folder


def contents(path: Path) -> dict[str, bytes]:
    """All files but videos, whose bytes may differ."""
    files = (file for file in path.rglob("*") if file.is_file() and file.suffix not in (".mp4", ".webm"))
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [round(each.time or 0.0, 2) for each in container.decode(video=0)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All outputs of eight frames."""
    path = tmp_path_factory.mktemp("whole") / "out"
    assert write(path, range(8)).finish(complete=True) == 2
    return path


def test_all_outputs_are_there(whole: Path) -> None:
    names = "coco.json masks mot.txt mots.txt objects overlay.mp4 sheet.png timeline.png tracks.json ytvis.json"
    assert sorted(each.name for each in whole.iterdir()) == names.split()
    assert times(whole / "overlay.mp4") == [i / 10 for i in range(8)]
    labels = read_labels(whole / "masks" / "00002.png")
    assert np.array_equal(labels, frame(2).id_map(*SIZE)) and set(np.unique(labels)) == {0, 3, 300}


def test_the_tracks_have_every_mask(whole: Path) -> None:
    data = load(whole / "tracks.json")
    assert data["complete"] and data["video"]["times"] == [i / 10 for i in range(8)]
    cat, dog = data["tracks"]
    assert (cat["id"], cat["class"], cat["score"]) == (3, "cat", 0.9)
    assert (dog["id"], dog["frames"], dog["score"]) == (300, [0, 1, 2, 5, 6, 7], 0.57)
    assert np.array_equal(decode(dog["segmentations"][3]), frame(5).objects[1].array())


def test_the_youtube_vis_file_is_a_data_set(whole: Path) -> None:
    for index in range(8):
        cv2.imwrite(str(whole / f"{index:05d}.jpg"), frame(index).image)
    register_ytvis_style("results_of_a_run", whole / "ytvis.json", whole, label_set="object")
    record = get_records("results_of_a_run")[0]
    assert (record.length, record.height, record.width) == (8, *SIZE)
    masks = record.masks.read(5) if record.masks else {}
    assert len(masks) == 2 and len(record.instances) == 2


def test_the_coco_file_has_every_object_of_every_frame(whole: Path) -> None:
    data = load(whole / "coco.json")
    assert len(data["images"]) == 8 and data["images"][7]["file_name"] == "00007.jpg"
    assert len(data["annotations"]) == 8 + 6
    one = next(each for each in data["annotations"] if each["track_id"] == 300 and each["image_id"] == 6)
    assert one["bbox"] == [10, 0, 10, 15] and one["area"] == 150 and one["category_id"] == 2
    assert [each["id"] for each in data["annotations"]] == list(range(1, 15))


def test_boxes_and_masks_as_text(whole: Path) -> None:
    boxes = [line.split(",") for line in (whole / "mot.txt").read_text().splitlines()]
    assert boxes[0] == ["1", "3", "1", "11", "10", "10", "0.9", "-1", "-1", "-1"] and len(boxes) == 14
    masks = [line.split(" ") for line in (whole / "mots.txt").read_text().splitlines()]
    together = np.zeros(SIZE, int)
    for number, _, class_id, height, width, counts in masks:
        if number == "3":
            together += coco_mask.decode({"size": [int(height), int(width)], "counts": counts.encode()})
            assert class_id in ("1", "2")
    assert together.max() == 1 and np.array_equal(together > 0, frame(2).id_map(*SIZE) > 0)


def test_cut_outs_are_transparent_outside_the_object(whole: Path) -> None:
    with Image.open(whole / "objects" / "300" / "00005.png") as picture:
        assert np.array_equal(np.asarray(picture)[..., 3] > 0, frame(5).objects[1].array())
    assert not (whole / "objects" / "300" / "00003.png").exists()
    assert times(whole / "objects" / "3.webm") == [i / 10 for i in range(8)]
    assert times(whole / "objects" / "300.webm") == [0.0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7]  # empty from 0.3 to 0.5


def test_pictures_of_the_whole_video(whole: Path) -> None:
    assert cv2.imread(str(whole / "sheet.png")).shape[1] > 4 * 360
    timeline = cv2.imread(str(whole / "timeline.png"))
    row = timeline[33, 190:1390]  # of object 300
    in_sight = (row.min(axis=-1) < 250).reshape(8, 150).all(axis=1)
    assert in_sight.tolist() == [True, True, True, False, False, True, True, True]


@pytest.mark.parametrize("stopped_at", [1, 5])
def test_stopped_results_are_continued(whole: Path, tmp_path: Path, stopped_at: int) -> None:
    folder = write(tmp_path / "out", range(stopped_at))
    folder.checkpoint(lambda path: path.write_bytes(b"state"))
    folder.finish(complete=False)
    with pytest.raises(UserError, match=r"out': another process is writing results into it"):
        ResultFolder(tmp_path / "out")
    folder.discard()
    data = load(tmp_path / "out" / "tracks.json")
    assert data["complete"] is False and len(data["video"]["times"]) == stopped_at
    assert times(tmp_path / "out" / "overlay.mp4") == [i / 10 for i in range(stopped_at)]
    earlier = ResultFolder(tmp_path / "out").earlier()
    assert earlier is not None and (earlier.key, earlier.complete, earlier.frames) == ("k", False, stopped_at)
    write(tmp_path / "out", range(stopped_at, 8), done=stopped_at).finish(complete=True)
    expected = {name: data for name, data in contents(whole).items() if not name.endswith(".jpg")}
    assert contents(tmp_path / "out") == expected
    for name in ("overlay.mp4", "objects/3.webm", "objects/300.webm"):
        assert times(tmp_path / "out" / name) == times(whole / name)


def test_results_of_a_killed_program_are_continued(whole: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "out", range(4), names=["overlay", "mot"])
    folder.checkpoint(lambda path: path.write_bytes(b"state"))
    for index in range(4, 6):
        folder.write(frame(index))
    with (tmp_path / "out" / ".progress" / "frames.jsonl").open("ab") as file:
        file.write(b'{"object": 3, "frame": 6')  # killed in the middle of a line; nothing is closed
    folder.discard()  # the lock of a killed program is free
    del folder
    earlier = ResultFolder(tmp_path / "out").earlier()
    assert earlier is not None and earlier.frames == 4
    write(tmp_path / "out", range(4, 8), names=["overlay", "mot"], done=4).finish(complete=True)
    for name in ("tracks.json", "mot.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    assert times(tmp_path / "out" / "overlay.mp4") == [i / 10 for i in range(8)]


def test_after_a_full_disk_earlier_frames_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "out", range(3), names=["overlay", "masks"])

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "write_mask_png", full)
        with pytest.raises(OSError, match="No space left"):
            folder.write(frame(3))
    reserve = tmp_path / "out" / ".progress" / "reserve"
    assert reserve.stat().st_blocks * 512 > 2 * folder.scratch.joinpath("frames.jsonl").stat().st_size
    folder.finish(complete=False)
    assert not reserve.exists()
    assert len(load(tmp_path / "out" / "tracks.json")["video"]["times"]) == 3
    assert len(times(tmp_path / "out" / "overlay.mp4")) >= 3


def test_the_folder_itself_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write(tmp_path / "link", range(2), names=["masks"]).finish(complete=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "tracks.json").exists()
    write(tmp_path / "link", range(1), names=["masks"]).finish(complete=True)
    assert [each.name for each in (tmp_path / "disk" / "masks").iterdir()] == ["00000.png"]


def test_a_folder_with_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"out' holds other things than earlier results \('thesis\.tex'\), not touched"):
        ResultFolder(tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; a folder expected"):
        ResultFolder(tmp_path / "file")
    with pytest.raises(UserError, match=r"file/out/more' cannot be written: Not a directory"):
        ResultFolder(tmp_path / "file" / "out" / "more")


def test_without_begin_the_folder_is_restored(tmp_path: Path) -> None:
    ResultFolder(tmp_path / "new" / "out").discard()
    assert not list(tmp_path.iterdir())
    write(tmp_path / "out", range(2), names=["masks"]).finish(complete=True)
    before = contents(tmp_path / "out")
    ResultFolder(tmp_path / "out").discard()
    assert contents(tmp_path / "out") == before


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(UserError, match="'gif' is no output; expected overlay, masks"):
        check_outputs(["gif"])
    assert check_outputs(["masks"]) == ["masks", "tracks"]
