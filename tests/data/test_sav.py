# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""SA-V: mp4 with masklet files for training, folders of frames and objects for validation."""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ausm_d2.data.build import build_train_loader, get_records
from ausm_d2.data.problems import collect_problems
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import decode, encode
from tests.data.disk import SIZE, square, write_frame, write_json, write_labels
from tests.data.stubs import small_cfg


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def write_video(path: Path, frames: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for t in range(frames):
            image = np.full((*size, 3), 5 * (t % 50), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def masklets(frames: int = 10, objects: int = 2) -> dict[str, Any]:
    """Masks of every fourth frame."""
    return {
        "video_id": "sav_1",
        "video_height": float(SIZE[0]),
        "video_width": float(SIZE[1]),
        "video_frame_count": float(frames),
        "masklet": [[encode(square(k, 4 * i)) for i in range(objects)] for k in range(-(-frames // 4))],
    }


def write_train(root: Path, manual: Any = None, auto: Any = None, frames: int = 10) -> None:
    folder = root / "sav/sav_train/sav_000"
    write_video(folder / "sav_1.mp4", frames)
    write_json(folder / "sav_1_manual.json", masklets() if manual is None else manual)
    if auto is not None:
        write_json(folder / "sav_1_auto.json", auto)


def test_train(root: Path) -> None:
    write_train(root, auto=masklets(objects=1))
    write_video(root / "sav/sav_train/sav_000/sav_2.mp4", 3)  # without masklets
    (record,) = DatasetCatalog.get("sav_train")
    record = pickle.loads(pickle.dumps(record))
    assert (record.video_id, record.height, record.width, record.length) == ("sav_1", *SIZE, 10)
    assert record.labelled == [t % 4 == 0 for t in range(10)]
    assert [i.instance_id for i in record.instances] == [0, 1, 2]  # of both files
    assert record.masks.read(1) == {} and len(record.masks.read(8)) == 3
    assert np.array_equal(decode(record.masks.read(8)[1]), square(2, offset=4))
    metadata = MetadataCatalog.get("sav_train")
    assert (metadata.task, metadata.label_set, metadata.overlap, metadata.evaluator_type) == (
        "vos",
        "object",
        True,
        "sav",
    )
    item = next(iter(build_train_loader(small_cfg("sav_train", INPUT__SAMPLING_FRAME_NUM=3))))[0]
    assert item["frame_indices"] == [0, 4, 8] and item["labelled"].all() and item["masks"].shape[:2] == (3, 3)
    assert [round(float(frame.float().mean())) // 5 for frame in item["image"]] == pytest.approx([0, 4, 8], abs=1)


def test_videos_without_masklets_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_video(root / "sav/sav_train/sav_2.mp4", 3)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="data set 'sav_train' has no videos"):
        get_records("sav_train")
    assert "left out 1 videos without _manual.json or _auto.json" in caplog.text


def broken(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    data = masklets()
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("video_height"), r"field 'video_height': None found, a whole number"),
        (lambda d: d.update(video_width=float("nan")), r"field 'video_width': nan found"),
        (lambda d: d.update(masklet=[]), r"field 'masklet': a list with one list of masks"),
        (
            lambda d: d["masklet"].pop(),
            r"field 'masklet': 2 frames found; 3 expected, every 4th of video_frame_count = 10",
        ),
        (lambda d: d["masklet"][1].pop(), r"field 'masklet': 2 masks in frame 0, but another number in another frame"),
        (lambda d: d["masklet"][1][0].update(size=[3, 3]), r"masklet\[1\]\[0\]: size \[3, 3\], expected \[24, 36\]"),
        (lambda d: d["masklet"][1][0].update(counts="04"), r"masklet\[\*\]\[0\]\[1\]\.counts: run lengths that do not"),
    ],
)
def test_broken_masklets(root: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    write_train(root, broken(change))
    with pytest.raises(UserError, match=r"sav_1_manual\.json: " + message):
        _ = DatasetCatalog.get("sav_train")[0].masks


def test_masklets_longer_than_their_video_are_left_out_of_training(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_train(root, masklets(frames=41), frames=10)
    with pytest.raises(UserError, match="10 videos in a row"):
        next(iter(build_train_loader(small_cfg("sav_train", INPUT__SAMPLING_FRAME_NUM=8))))
    assert "video sav_1: 41 frames are annotated, the video has 10" in caplog.text


# Validation


def write_val(root: Path) -> Path:
    folder = root / "sav_val"
    for t in range(9):
        write_frame(folder / f"JPEGImages_24fps/v/{t:05d}.jpg")
    for k, t in enumerate((0, 4, 8)):
        write_labels(folder / f"Annotations_6fps/v/000/{t:05d}.png", square(k) * 1, mode="L")
        write_labels(folder / f"Annotations_6fps/v/002/{t:05d}.png", square(k, 2) * (k > 0), mode="L")
    (folder / "sav_val.txt").write_text("v\n")
    return folder


def test_validation_folders(root: Path) -> None:
    write_val(root)
    (record,) = DatasetCatalog.get("sav_val")
    record = pickle.loads(pickle.dumps(record))
    assert (record.height, record.width, record.length) == (*SIZE, 9)
    assert record.labelled == [t % 4 == 0 for t in range(9)]
    assert dict(record.prompt_frames) == {0: 0, 2: 4}  # empty pictures are no appearance
    masks = record.masks.read(4)
    assert np.array_equal(masks[0], square(1)) and np.array_equal(masks[2], square(1, 2))
    assert MetadataCatalog.get("sav_val").overlap


def test_broken_validation_folders(root: Path) -> None:
    folder = write_val(root)
    write_labels(folder / "Annotations_6fps/v/002/00100.png", square(0) * 1, mode="L")
    with collect_problems() as problems:
        _ = DatasetCatalog.get("sav_val")[0].height
    assert problems == [f"{folder}/Annotations_6fps/v: 1 of 4 masks have the name of no frame (such as '00100')"]
    shutil.rmtree(folder / "Annotations_6fps/v")
    with pytest.raises(UserError, match=r"Annotations_6fps/v: the masks of this video are missing"):
        _ = DatasetCatalog.get("sav_val")[0].height
    (folder / "Annotations_6fps/v").mkdir()
    with pytest.raises(UserError, match=r"Annotations_6fps/v: no folder of an object"):
        _ = DatasetCatalog.get("sav_val")[0].height
    shutil.rmtree(folder / "JPEGImages_24fps/v")
    with pytest.raises(UserError, match=r"JPEGImages_24fps/v: the frames of video 'v' are missing"):
        DatasetCatalog.get("sav_val")
    with pytest.raises(UserError, match=r"sav_test: no folder found; looked for .*sav/sav_test"):
        DatasetCatalog.get("sav_test")


def test_real_masklet_file(root: Path, shared_data: Path) -> None:
    folder = root / "sav_train"
    folder.mkdir()
    shutil.copy(shared_data / "fixtures/sav_000001_manual.json", folder)
    write_video(folder / "sav_000001.mp4", 483, (848, 480))
    (record,) = DatasetCatalog.get("sav_train")
    assert (record.height, record.width, record.length) == (848, 480, 483)
    assert record.labelled is not None and sum(record.labelled) == 121 and len(record.instances) == 5
    assert record.masks is not None and record.frames[480].shape == (848, 480, 3)
    areas = [decode(record.masks.read(t)[1]).sum() for t in range(0, 483, 4)]
    assert np.mean(areas) == pytest.approx(38512.4876033058)  # the file's masklet_size_abs
