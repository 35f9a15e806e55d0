# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The files on disk equal the generated videos."""

from __future__ import annotations

import importlib.util
import json
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from pycocotools import mask as coco_mask

from ausm_d2.data.catalog import register_davis_style, register_ytvis_style
from ausm_d2.data.synthvis import CLASSES, SPLITS, SynthVis
from ausm_d2.errors import UserError
from ausm_d2.masks import rle
from ausm_d2.masks.rle import StoredMask
from tests.new_process import run_python

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "prepare_synthvis.py"


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    # by its path: another package named `datasets` may be installed
    spec = importlib.util.spec_from_file_location("prepare_synthvis", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_rgb(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image[..., ::-1]


def test_ytvis_layout(prepare: ModuleType, tmp_path: Path) -> None:
    prepare.main(["--layout", "ytvis", "--videos", "2:4", "--out", str(tmp_path)])
    data = json.loads((tmp_path / "valid.json").read_text())
    assert [category["id"] for category in data["categories"]] == list(range(1, len(CLASSES) + 1))
    assert [category["name"] for category in data["categories"]] == list(CLASSES)
    assert [video["id"] for video in data["videos"]] == [2, 3]
    source = SynthVis(SPLITS["val"][0], 4, complete=True)
    by_id = {entry["id"]: entry for entry in data["annotations"]}
    assert sorted(by_id) == list(range(1, len(data["annotations"]) + 1))
    for video in data["videos"]:
        record = source[video["id"]]
        assert (video["height"], video["width"], video["length"]) == (record.height, record.width, record.length)
        assert record.masks is not None
        entries = [entry for entry in data["annotations"] if entry["video_id"] == video["id"]]
        assert [entry["category_id"] for entry in entries] == [i.category_id + 1 for i in record.instances]
        for frame, file in enumerate(video["file_names"]):
            assert (read_rgb(tmp_path / "valid" / "JPEGImages" / file) == record.frames[frame]).all()
            masks = record.masks.read(frame)
            for entry, instance in zip(entries, record.instances, strict=True):
                mask = masks.get(instance.instance_id)
                stored = entry["segmentations"][frame]
                if mask is None:
                    assert stored is entry["bboxes"][frame] is entry["areas"][frame] is None
                    continue
                assert (coco_mask.decode(stored).astype(bool) == mask).all()
                ys, xs = np.nonzero(mask)
                box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
                assert entry["bboxes"][frame] == box
                assert entry["areas"][frame] == mask.sum()
        assert all(entry["iscrowd"] == 0 and entry["length"] == record.length for entry in entries)


def test_davis_layout(prepare: ModuleType, tmp_path: Path) -> None:
    prepare.main(["--layout", "davis", "--split", "train", "--seed", "9", "--videos", "5", "--out", str(tmp_path)])
    assert (tmp_path / "ImageSets" / "2017" / "train.txt").read_text() == "synth_00005\n"
    record = SynthVis(9, 6)[5]
    for frame, name in enumerate(record.frames.names):
        assert (
            read_rgb(tmp_path / "JPEGImages" / "480p" / "synth_00005" / f"{name}.png") == record.frames[frame]
        ).all()
        with Image.open(tmp_path / "Annotations" / "480p" / "synth_00005" / f"{name}.png") as picture:
            assert picture.mode == "P"
            assert (np.asarray(picture) == record.masks.ids(frame)).all()  # type: ignore[union-attr]


def test_readers_give_back_what_was_generated(prepare: ModuleType, tmp_path: Path) -> None:
    for layout in ("ytvis", "davis"):
        prepare.main(["--layout", layout, "--videos", "1:3", "--out", str(tmp_path / layout)])
    davis = tmp_path / "davis"
    register_ytvis_style("prepared_ytvis", str(tmp_path / "ytvis/valid.json"), str(tmp_path / "ytvis/valid/JPEGImages"))
    register_davis_style("prepared_davis", str(davis / "JPEGImages/480p"), str(davis / "Annotations/480p"))

    def array(mask: StoredMask) -> np.ndarray:
        stored = rle.to_rle(mask, 96, 160)
        assert stored is not None
        return rle.decode(stored)

    try:
        for name in ("prepared_ytvis", "prepared_davis"):
            for index, record in enumerate(DatasetCatalog.get(name), start=1):
                exact = SynthVis(SPLITS["val"][0], 3, complete=True)[index]
                assert record.name == exact.name
                assert record.masks is not None and exact.masks is not None
                if name == "prepared_davis":
                    assert record.prompt_frames == exact.prompt_frames
                    ids = {i.instance_id: i.instance_id for i in exact.instances}
                else:
                    assert [i.category_id for i in record.instances] == [i.category_id for i in exact.instances]
                    pairs = zip(record.instances, exact.instances, strict=True)
                    ids = {mine.instance_id: theirs.instance_id for mine, theirs in pairs}
                for frame in range(exact.length):
                    assert (record.frames[frame] == exact.frames[frame]).all()
                    wanted = exact.masks.read(frame)
                    found = {ids[i]: array(mask) for i, mask in record.masks.read(frame).items()}
                    assert found.keys() == wanted.keys()
                    assert all((found[i] == wanted[i]).all() for i in found)
    finally:
        DatasetCatalog.remove("prepared_ytvis")
        DatasetCatalog.remove("prepared_davis")


def test_jpeg(prepare: ModuleType, tmp_path: Path) -> None:
    prepare.main(["--layout", "davis", "--videos", "0:1", "--jpeg", "--out", str(tmp_path)])
    image = read_rgb(tmp_path / "JPEGImages" / "480p" / "synth_00000" / "00000.jpg")
    exact = SynthVis(SPLITS["val"][0], 1)[0].frames[0]
    assert 0 < np.abs(image.astype(int) - exact).mean() < 8


@pytest.mark.parametrize("text", ["5:5", "6:2", "a:b", "-1:3", ""])
def test_invalid_ranges_are_refused(prepare: ModuleType, text: str) -> None:
    with pytest.raises(UserError, match="--videos"):
        prepare.parse_range(text)


def test_a_copy_is_not_overwritten(new_processes: ForkServerContext, tmp_path: Path) -> None:
    folder, tmp_path = tmp_path, tmp_path / "copy"
    tmp_path.mkdir()
    (tmp_path / "valid.json").write_text("precious")
    command = [str(SCRIPT), "--layout", "ytvis", "--videos", "0:1", "--out", str(tmp_path)]
    result = run_python(new_processes, command, folder, cwd=folder)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error:") and "valid.json: exists already" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "valid.json").read_text() == "precious"
    assert list(tmp_path.iterdir()) == [tmp_path / "valid.json"]


def test_a_failed_copy_has_no_list_of_videos(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def full_disk(record: object, folder: Path, suffix: str) -> list[str]:
        written.append(folder)
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(prepare, "write_frames", full_disk)
    for layout in ("ytvis", "davis"):
        with pytest.raises(UserError, match="No space left on device"):
            prepare.main(["--layout", layout, "--videos", "0:2", "--out", str(tmp_path)])
    assert len(written) == 2
    assert not list(tmp_path.rglob("*.json")) + list(tmp_path.rglob("*.txt"))


@pytest.mark.parametrize("text", ["3:3", "4:3", "x", "", "1:2:3", "-1"])
def test_ranges_of_videos_that_are_empty_or_none(prepare: ModuleType, text: str) -> None:
    with pytest.raises(UserError, match=f"--videos: found '{text}', expected FIRST:END with END > FIRST"):
        prepare.parse_range(text)


def test_pictures_and_folders_that_cannot_be_written(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = SynthVis(SPLITS["val"][0], 1)[0]
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "imwrite", lambda *_: False)
        with pytest.raises(UserError, match=r"\.png: the picture cannot be written"):
            prepare.write_frames(record, tmp_path, ".png")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*: cannot be written: Not a directory"):
        prepare.main(["--videos", "0", "--layout", "davis", "--out", str(tmp_path / "file" / "out")])
