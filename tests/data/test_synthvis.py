# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The embedded data: what is promised of them is measured here, on the real validation videos.

Shape shorthand:
    H, W: frame size in pixels
    T: frames of the video
"""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ausm_d2.data import synthvis
from ausm_d2.data.catalog import synthvis as catalog
from ausm_d2.data.synthvis import CLASSES, HEIGHT, MIN_VISIBLE, NUM_FRAMES, SPLITS, WIDTH, SynthVis, records
from ausm_d2.data.synthvis.renderer import Video
from ausm_d2.data.synthvis.scene import Spec, cast_of
from ausm_d2.data.video import FrameSource, MaskSource, VideoRecord
from ausm_d2.errors import UserError

AREA = HEIGHT * WIDTH


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="module", autouse=True)
def _rendered_once() -> Iterator[None]:
    """Several tests look at all frames of the validation videos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_rendered", cache(records._rendered.__wrapped__))
        yield


@pytest.fixture(scope="module")
def val() -> list[VideoRecord]:
    return DatasetCatalog.get("synthvis_val_vos")


def digest(record: VideoRecord, frame: int) -> str:
    assert isinstance(record.masks, synthvis.SynthMasks)
    return hashlib.sha256(record.frames[frame].tobytes() + record.masks.ids(frame).tobytes()).hexdigest()


# ------------------------------------------------------------------------------------------------------- determinism


def test_same_bytes_in_another_process_and_order() -> None:
    wanted = [(video, frame) for video in (0, 3, 19999) for frame in (0, 7, 17)]
    script = (
        "from ausm_d2.data.synthvis import SynthVis; import hashlib; data = SynthVis(0, 20000)\n"
        f"for v, t in {wanted[::-1]}:\n"
        "    r = data[v]; b = r.frames[t].tobytes() + r.masks.ids(t).tobytes(); print(hashlib.sha256(b).hexdigest())\n"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    data = SynthVis(0, 20000)
    assert output.stdout.split() == [digest(data[video], frame) for video, frame in wanted[::-1]]


def test_number_of_threads_changes_nothing() -> None:
    one = Video(Spec(3), 5).render(9)
    cv2.setNumThreads(4)
    four = Video(Spec(3), 5).render(9)
    assert (one[0] == four[0]).all()
    assert (one[1] == four[1]).all()


def test_returned_arrays_are_copies() -> None:
    record = SynthVis(0, 1)[0]
    before = digest(record, 4)
    record.frames[4][:] = 0
    for mask in record.masks.read(4).values():  # type: ignore[union-attr]
        mask[:] = True
    assert digest(record, 4) == before


def test_seeds_and_videos_differ() -> None:
    digests = {digest(SynthVis(seed, 8)[video], 0) for seed in range(4) for video in range(8)}
    assert len(digests) == 32


@pytest.mark.parametrize("num_frames", [2, 3, 7, 60])
def test_any_length(num_frames: int) -> None:
    for record in SynthVis(5, 12, num_frames):
        assert record.length == num_frames
        assert record.frames[num_frames - 1].shape == (HEIGHT, WIDTH, 3)


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match="seed -1"):
        SynthVis(-1, 3)
    with pytest.raises(UserError, match="1 frames"):
        SynthVis(0, 3, 1)
    with pytest.raises(IndexError):
        SynthVis(0, 3)[3]
    with pytest.raises(IndexError):
        SynthVis(0, 3)[0].frames[NUM_FRAMES]


# ------------------------------------------------------------------------------------------------- image and masks


def test_masks_are_what_is_seen() -> None:
    """Invert the colours of one object: the image changes on its mask, and otherwise only at its border."""
    checked = 0
    for index in range(12):
        video = Video(Spec(7), index)
        video.noise, video.gain = 0.0, np.ones(NUM_FRAMES)
        for layer, sprite in zip(video.layers, video.sprites, strict=True):
            if not layer.instance_id:
                continue
            before, owner = video.render(8)
            saved = sprite.copy()
            alpha = sprite[..., 3]
            other = np.where(sprite[..., :3] > 127 * (alpha[..., None] / 255), 0, alpha[..., None])
            sprite[..., :3] = other
            after, same = video.render(8)
            sprite[:] = saved
            assert (owner == same).all()
            change = np.abs(after.astype(int) - before).max(2)
            mask = (owner == layer.instance_id).astype(np.uint8)
            near = cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0
            if mask.any():
                assert change[mask > 0].min() > 0
                assert (change[~near] > 64).sum() <= 0.02 * mask.sum()  # corners thinner than a pixel
                checked += 1
    assert checked > 30


def test_hidden_objects_are_not_drawn() -> None:
    checked = 0
    for index in range(15):
        video = Video(Spec(7), index)
        for frame in range(0, NUM_FRAMES, 4):
            image, owner = video.render(frame)
            hidden = [i for i, a in enumerate(video.layers) if a.instance_id and not (owner == a.instance_id).any()]
            if not hidden:
                continue
            fewer = Video(Spec(7), index)
            fewer.layers = [layer for i, layer in enumerate(fewer.layers) if i not in hidden]
            fewer.sprites = [sprite for i, sprite in enumerate(fewer.sprites) if i not in hidden]
            assert (fewer.render(frame)[0] == image).all()
            checked += 1
    assert checked > 8


def test_records(val: list[VideoRecord]) -> None:
    for record in val:
        assert isinstance(record.frames, FrameSource)
        assert isinstance(record.masks, MaskSource)
        assert record.frames.names[3] == "00003"
        assert len(pickle.dumps(record)) < 2000
        assert 1 <= len(record.instances) <= 6
        ids = {instance.instance_id for instance in record.instances}
        assert all(0 <= instance.category_id < len(CLASSES) for instance in record.instances)
        first: dict[int, int] = {}
        for frame in range(record.length):
            masks = record.masks.read(frame)
            assert masks.keys() <= ids
            for instance_id, mask in masks.items():
                assert mask.dtype == bool
                assert mask.shape == (HEIGHT, WIDTH)
                assert mask.sum() >= MIN_VISIBLE
                first.setdefault(instance_id, frame)
            assert sum(masks.values(), np.zeros((HEIGHT, WIDTH), int)).max() <= 1  # no overlaps
        assert record.prompt_frames == first
        assert first.keys() == ids
    assert val[12].name == "synth_00012"


# -------------------------------------------------------------------------------------------------------- registration


def test_registered_names(val: list[VideoRecord]) -> None:
    catalog.register_synthvis()  # a second time: no error
    names = [f"synthvis{seed}_val{task}" for seed in ("", "_seed11", "_seed12", "_seed13") for task in ("", "_vos")]
    for name in ["synthvis_train", *names]:
        meta = MetadataCatalog.get(name)
        assert name in DatasetCatalog.list()
        assert meta.thing_classes == list(CLASSES)
        assert len(meta.thing_colors) == len(CLASSES)
        assert (meta.task, meta.evaluator_type) == (("vos", "vos") if name.endswith("vos") else ("vis", "ytvis"))
        assert (meta.label_set, meta.exhaustive, meta.overlap) == ("synthvis", True, False)
    train = SynthVis(*SPLITS["train"])
    assert len(train) == 20000
    assert train[7].prompt_frames is None
    assert SPLITS["train"][0] != SPLITS["val"][0]
    assert SPLITS["val"][0] not in catalog.EXTRA_SEEDS
    assert len(val) >= 50
    assert min(record.length for record in val) >= 16
    assert [record.instances for record in DatasetCatalog.get("synthvis_val")] == [record.instances for record in val]


# ------------------------------------------------------------------------------------------------------- how hard it is


@dataclass
class Course:
    """One object of a video: its mask in every frame (T, H, W)."""

    record: VideoRecord
    masks: np.ndarray
    first: int

    @property
    def seen(self) -> np.ndarray:
        return self.masks.any((1, 2))


@pytest.fixture(scope="module")
def courses(val: list[VideoRecord]) -> list[Course]:
    result = []
    for record in val:
        owner = np.stack([record.masks.ids(frame) for frame in range(record.length)])  # type: ignore[union-attr]
        for instance_id, first in (record.prompt_frames or {}).items():
            result.append(Course(record, owner == instance_id, first))
    return result


def mean_j(courses: list[Course], carry: Callable[[Course, np.ndarray, int], np.ndarray]) -> float:
    """Region similarity of a mask that ``carry`` takes from each frame to the next, mean over objects of the mean over
    the frames after the first visible one; nothing predicted and nothing there counts 1."""
    scores = []
    for course in courses:
        mask, js = course.masks[course.first], []
        for frame in range(course.first + 1, len(course.masks)):
            mask = carry(course, mask, frame)
            union = (mask | course.masks[frame]).sum()
            js.append((mask & course.masks[frame]).sum() / union if union else 1.0)
        if js:
            scores.append(np.mean(js))
    return float(np.mean(scores))


def longest_hidden(seen: np.ndarray) -> int:
    """Length of the longest gap between two frames that show the object."""
    return int(np.diff(np.flatnonzero(seen)).max(initial=1)) - 1


def test_longest_hidden() -> None:
    assert longest_hidden(np.array([0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0], bool)) == 3
    assert longest_hidden(np.array([0, 0, 1, 0, 0, 0, 0], bool)) == 0


def test_objects_small_hidden_late(val: list[VideoRecord], courses: list[Course]) -> None:
    areas = np.array([course.masks.sum() / course.seen.sum() / AREA for course in courses])
    assert 3.2 <= len(courses) / len(val) <= 3.7
    assert 0.155 <= (areas < 0.01).mean() <= 0.20
    assert ((areas >= 0.01) & (areas < 0.12)).mean() >= 0.75
    hidden = np.array([longest_hidden(course.seen) for course in courses])
    assert 0.22 <= (hidden >= 3).mean() <= 0.28
    assert np.median(hidden[hidden >= 3]) <= 5
    assert 0.10 <= np.mean([course.first > 0 for course in courses]) <= 0.20
    counts = np.bincount([instance.category_id for record in val for instance in record.instances])
    assert counts.min() >= 0.5 * counts.mean()


def test_copying_the_first_mask_is_not_enough(courses: list[Course]) -> None:
    assert 0.2 < mean_j(courses, lambda course, mask, frame: mask) < 0.4


def test_optical_flow_is_not_enough(courses: list[Course]) -> None:
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grid = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), 2).astype(np.float32)
    backwards: dict[tuple[str, int], np.ndarray] = {}

    def carry(course: Course, mask: np.ndarray, frame: int) -> np.ndarray:
        key = (course.record.name, frame)
        if key not in backwards:
            here, there = (cv2.cvtColor(course.record.frames[t], cv2.COLOR_RGB2GRAY) for t in (frame, frame - 1))
            backwards[key] = grid + dis.calc(here, there, None)
        return cv2.remap(mask.astype(np.float32), backwards[key], None, cv2.INTER_LINEAR) >= 0.5

    some = [course for course in courses if course.record.video_id % 4 == 1]  # enough for these limits
    assert 0.35 < mean_j(some, carry) < 0.65


def test_other_seeds_are_alike() -> None:
    for seed in catalog.EXTRA_SEEDS:
        casts = [cast_of(Spec(seed), index) for index in range(SPLITS["val"][1])]
        objects = sum(len(cast.classes) for cast in casts)
        assert 3.2 <= objects / len(casts) <= 3.7
        assert 0.13 <= sum(len(cast.small) for cast in casts) / objects <= 0.21
        assert 0.22 <= sum(len(cast.hidden) for cast in casts) / objects <= 0.33


def test_colour_and_size_do_not_tell_the_class_but_shape_does() -> None:
    colours, shapes, classes = [], [], []
    for record in SynthVis(21, 220):
        image, masks = record.frames[0], record.masks.read(0)  # type: ignore[union-attr]
        for instance in record.instances:
            mask = masks.get(instance.instance_id)
            if mask is None or mask.sum() < 250 or mask[[0, -1]].any() or mask[:, [0, -1]].any():
                continue
            pixels = image[mask]
            colours.append([*pixels.mean(0), *pixels.std(0), np.sqrt(mask.sum())])
            outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            outline = max(outline, key=len)
            _, radius = cv2.minEnclosingCircle(outline)
            hull = cv2.contourArea(cv2.convexHull(outline))
            shapes.append([mask.sum() / (np.pi * radius**2), cv2.contourArea(outline) / hull, mask.sum() / hull])
            classes.append(instance.category_id)

    def nearest_neighbours(features: list[list[float]]) -> float:
        """Share of objects that have the class of most of their five nearest ones."""
        x = np.array(features)
        x = (x - x.mean(0)) / x.std(0)
        far = np.linalg.norm(x[:, None] - x, axis=2)
        np.fill_diagonal(far, np.inf)
        votes = np.array(classes)[np.argsort(far, 1)[:, :5]]
        return float(np.mean([np.bincount(vote).argmax() == c for vote, c in zip(votes, classes, strict=True)]))

    assert len(classes) > 250
    assert nearest_neighbours(colours) < 0.30  # by chance: 0.17
    assert nearest_neighbours(shapes) > 0.75  # objects that another one covers in part are among them
