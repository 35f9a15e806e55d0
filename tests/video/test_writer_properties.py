# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What is written of any objects, on masks that Hypothesis makes up, is read again as it was."""

from __future__ import annotations

import json
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from ausm_d2.data.build import get_records
from ausm_d2.data.catalog.coco import register_coco_style
from ausm_d2.data.catalog.ytvis import register_ytvis_style
from ausm_d2.data.video import VideoRecord
from ausm_d2.masks.png import read_labels, read_picture
from ausm_d2.masks.rle import decode
from ausm_d2.video.results import ResultFolder, check_outputs
from ausm_d2.video.tracked import TrackedFrame, VideoInfo

few = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
_NAMES = ("cutouts", "masks", "mot", "mots", "ytvis", "coco")


class _Video:
    """Objects in each frame of a small video; masks may be empty, full, one pixel, over each other."""

    def __init__(self, seed: int, height: int, width: int, ids: list[int], frames: int) -> None:
        rng = np.random.default_rng(seed)
        share = rng.choice([0.0, 0.02, 0.4, 1.0], size=(frames, len(ids), 1, 1))
        self.masks = rng.random((frames, len(ids), height, width)) < share
        self.ids, self.scores, self.size = ids, rng.random((frames, len(ids))), (height, width)
        self.images = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
        self.maps = np.zeros((frames, height, width), np.int32)
        for row, each in enumerate(ids):  # later ones have the pixels
            self.maps[self.masks[:, row]] = each

    def write(self, folder: Path) -> None:
        results = ResultFolder(folder)
        info = VideoInfo("a.mp4", *self.size, Fraction(10), prompted=False, classes=["cat", "dog"])
        results.begin(info, check_outputs(_NAMES), key="k", settings={}, done=None)
        for t, image in enumerate(self.images):
            entries = [(each, "cat", each % 2, float(s)) for each, s in zip(self.ids, self.scores[t], strict=True)]
            arguments = (image, self.masks[t], self.maps[t], entries)
            results.write(TrackedFrame.of_arrays(t, f"{t:05d}", t / 10, f"{t:05d}.png", *arguments))
        results.finish(complete=True)

    def visible(self) -> set[tuple[int, int]]:
        """(frame, row) of the masks that are not empty."""
        return {(int(t), int(row)) for t, row in zip(*self.masks.any(axis=(2, 3)).nonzero(), strict=True)}


def _read_records(path: Path, kind: str) -> list[VideoRecord]:
    name = f"written_{kind}_train"
    register = register_ytvis_style if kind == "ytvis" else register_coco_style
    register(name, str(path / f"{kind}.json"), str(path))
    try:
        return get_records(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _masks(record: VideoRecord, frame: int) -> dict[int, np.ndarray]:
    return {each: decode(mask) for each, mask in (record.masks.read(frame) if record.masks else {}).items()}


@few
@given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 9),
    st.integers(1, 9),
    st.lists(st.sampled_from([1, 2, 7, 253, 254, 255, 256, 65534]), unique=True, max_size=4),
    st.integers(1, 3),
)
def test_every_output_gives_back_the_masks(seed: int, height: int, width: int, ids: list[int], frames: int) -> None:
    """But for the id 65535, which alone is white: a black-and-white picture of object 1 (ausm_d2/masks/png.py)."""
    video = _Video(seed, height, width, ids, frames)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out")
        video.write(path)
        _check_pictures(video, path)
        _check_texts(video, path)
        [record] = _read_records(path, "ytvis")
        found = {(t, each): mask for t in range(frames) for each, mask in _masks(record, t).items()}
        assert found.keys() == {(t, ids[row]) for t, row in video.visible()}
        for t, row in video.visible():
            assert np.array_equal(found[t, ids[row]], video.masks[t, row])
        _check_coco(video, path)


def _check_pictures(video: _Video, path: Path) -> None:
    for t, expected in enumerate(video.maps):
        file = path / "masks" / f"{t:05d}.png"
        assert np.array_equal(read_picture(file).values, expected)
        assert np.array_equal(read_labels(file), expected)
    for t, row in video.visible():
        with Image.open(path / "objects" / str(video.ids[row]) / f"{t:05d}.png") as picture:
            values = np.asarray(picture)
        assert np.array_equal(values[..., 3], video.masks[t, row] * 255)
        assert np.array_equal(values[..., :3], video.images[t, ..., ::-1]), "RGB under the alpha channel"
    assert len(list(path.glob("objects/*/*.png"))) == len(video.visible())


def _check_texts(video: _Video, path: Path) -> None:
    boxes = [list(map(float, line.split(","))) for line in (path / "mot.txt").read_text().splitlines()]
    assert {(int(box[0]) - 1, int(box[1])) for box in boxes} == {(t, video.ids[row]) for t, row in video.visible()}
    for frame, each, left, top, width, height, score, *rest in boxes:
        t, row = int(frame) - 1, video.ids.index(int(each))
        ys, xs = video.masks[t, row].nonzero()
        assert (left, top) == (xs.min() + 1, ys.min() + 1)
        assert (width, height) == (np.ptp(xs) + 1, np.ptp(ys) + 1)
        assert abs(score - video.scores[t, row]) <= 5e-5 and rest == [-1, -1, -1]
    maps = np.zeros_like(video.maps)
    for line in (path / "mots.txt").read_text().splitlines():
        frame, each, class_id, *size, counts = line.split(" ")
        mask = coco_mask.decode({"size": list(map(int, size)), "counts": counts.encode()}) > 0
        assert not maps[int(frame) - 1][mask].any(), "a pixel of two objects"
        assert mask.any() and int(class_id) == int(each) % 2 + 1
        maps[int(frame) - 1][mask] = int(each)
    assert np.array_equal(maps, video.maps)


def _check_coco(video: _Video, path: Path) -> None:
    data = json.loads((path / "coco.json").read_text())
    assert len(data["images"]) == len(video.images)
    by_track = {(each["image_id"] - 1, video.ids.index(each["track_id"])): each for each in data["annotations"]}
    assert by_track.keys() == video.visible() and len(data["annotations"]) == len(by_track)
    for (t, row), entry in by_track.items():
        assert np.array_equal(decode(entry["segmentation"]), video.masks[t, row])
        assert entry["area"] == video.masks[t, row].sum() and entry["category_id"] == video.ids[row] % 2 + 1
    read = _read_records(path, "coco")
    assert sum(len(_masks(record, 0)) for record in read) == len(by_track)
