# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from ausm_d2.data.mapper import ClipMapper
from ausm_d2.data.video import Instance, VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import encode
from tests.data.stubs import ArrayFrames, ListedMasks, moving_square, register, small_cfg


def one_item(record: VideoRecord, task: str = "vis", **keys: object) -> dict:
    register("stub", [record], task=task)
    return ClipMapper(small_cfg("stub", **keys))("stub", record, np.random.default_rng(0))


def test_unlabelled_video_makes_a_clip_without_instances() -> None:
    item = one_item(replace(moving_square(0), masks=None, instances=[]))
    assert item["masks"].shape == (0, 4, 48, 64) and item["classes"].shape == (0,)
    assert item["masks"].dtype == torch.bool and item["classes"].dtype == torch.int64


def test_rows_keep_their_instance_and_crowds_are_left_out() -> None:
    record = moving_square(0, length=4)
    square = record.masks.masks[5]
    other = [np.roll(mask, 20, axis=0) if mask is not None else None for mask in square]
    record.masks = ListedMasks({9: [None, None, None, other[3]], 5: square, 7: square})
    record.instances = [Instance(9, 0), Instance(5, 1), Instance(7, 1, is_crowd=True)]
    item = one_item(record)
    assert item["frame_indices"] == [0, 1, 2, 3]
    assert sorted(item["classes"].tolist()) == [0, 1]
    five, nine = item["masks"][item["classes"] == 1][0], item["masks"][item["classes"] == 0][0]
    assert [bool(frame.any()) for frame in five] == [False, True, True, True]
    assert [bool(frame.any()) for frame in nine] == [False, False, False, True]
    assert np.array_equal(five[2], square[2]) and np.array_equal(nine[3], other[3])


def test_ids_that_no_instance_lists_are_objects_of_class_0() -> None:
    item = one_item(replace(moving_square(0), instances=[]), task="vos")
    assert item["classes"].tolist() == [0] and item["exhaustive"] is False


def test_only_labelled_frames_are_drawn() -> None:
    record = replace(moving_square(0, length=8), labelled=[t % 2 == 0 for t in range(8)])
    item = one_item(record)
    assert item["frame_indices"] == [0, 2, 4, 6] and item["labelled"].all()
    with pytest.raises(UserError, match=r"video0: has no frame with labels \(of 8 frames\)"):
        one_item(replace(record, labelled=[False] * 8))


def test_clip_played_backwards_has_its_masks_backwards() -> None:
    item = one_item(moving_square(0, length=4), INPUT__SAMPLING_FRAME_REVERSE=1.0)
    assert item["frame_indices"] == [3, 2, 1, 0]
    assert torch.equal(item["masks"][0], item["image"][:, 0] == 255)


def test_instance_outside_of_every_crop_is_dropped() -> None:
    crop = {"INPUT__CROP__ENABLED": True, "INPUT__CROP__PROB": 1.0, "INPUT__CROP__RESIZE": [48]}
    crop |= {"INPUT__CROP__TYPE": "absolute", "INPUT__CROP__SIZE": [8, 8], "INPUT__MIN_SIZE_TRAIN": (8,)}
    record = moving_square(0, length=4)
    counts = set()
    for seed in range(20):
        register("stub", [record])
        item = ClipMapper(small_cfg("stub", **crop))("stub", record, np.random.default_rng(seed))
        assert item["image"].shape == (4, 3, 8, 8) and len(item["masks"]) == len(item["classes"])
        assert item["masks"].flatten(1).any(dim=1).all()
        counts.add(len(item["masks"]))
    assert counts == {0, 1}


@pytest.mark.parametrize("mask", [np.ones((5, 5), bool), {"size": [5, 5], "counts": [0, 25]}, {"counts": 3}])
def test_a_mask_of_another_size_names_video_frame_and_instance(mask: object) -> None:
    record = replace(moving_square(3), masks=ListedMasks({5: [mask] * 8}))  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"video video3, frame 0000\d, instance 5: .*"):
        one_item(record)


def test_a_frame_of_another_size_names_video_and_frame() -> None:
    record = moving_square(3)
    record.frames = ArrayFrames([np.zeros((9, 9, 3), np.uint8)] * 8)
    with pytest.raises(UserError, match=r"video video3, frame 0000\d: is 9 x 9 \(height x width\), 48 x 64 expected"):
        one_item(record)


def test_sixteen_frames_of_720p_need_no_gigabytes() -> None:
    size, objects = (720, 1280), 8
    frames = ArrayFrames([np.zeros((*size, 3), np.uint8)] * 16)
    masks = {}
    for i in range(objects):
        mask = np.zeros(size, bool)
        mask[80 * i : 80 * i + 100, 100 * i : 100 * i + 300] = True
        masks[i] = [encode(mask)] * 16
    record = VideoRecord(0, "long", *size, frames, [Instance(i, 0) for i in masks], ListedMasks(masks))
    register("stub", [record])
    mapper = ClipMapper(small_cfg("stub", INPUT__SAMPLING_FRAME_NUM=16, INPUT__MIN_SIZE_TRAIN=(480,)))
    tracemalloc.start()
    item = mapper("stub", record, np.random.default_rng(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert item["masks"].shape == (objects, 16, 480, 853)
    assert peak < 2 * (item["image"].nbytes + item["masks"].nbytes)  # 72 MB of result


def test_more_instances_than_fit_are_drawn_and_the_rest_is_not_background() -> None:
    record = moving_square(0, length=4)
    record.masks = ListedMasks({i: record.masks.masks[5] for i in range(10)})
    record.instances = [Instance(i, i % 2) for i in range(10)]
    drawn = set()
    for seed in range(20):
        register("stub", [record])
        item = ClipMapper(small_cfg("stub", INPUT__MAX_INSTANCES=3))("stub", record, np.random.default_rng(seed))
        assert len(item["masks"]) == len(item["classes"]) == 3 and item["exhaustive"] is False
        drawn.add(tuple(item["classes"].tolist()))
    assert len(drawn) > 3
    assert one_item(record)["exhaustive"] is True
    assert len(one_item(record, MODEL__AUSM__NUM_ID=7)["masks"]) == 7


def test_pseudo_video_of_a_mapper_alone_reads_its_image_once() -> None:
    reads = []

    class Counted(ArrayFrames):
        def __getitem__(self, index: int) -> np.ndarray:
            reads.append(index)
            return super().__getitem__(index)

    record = moving_square(0, length=1)
    record.frames = Counted(record.frames.arrays)
    item = one_item(record, task="image")
    assert reads == [0] and item["image"].shape[0] == 4 and item["task"] == "image"


def test_a_twin_is_pasted_from_the_image_itself() -> None:
    record, other = moving_square(0, length=1), replace(moving_square(1, length=1), video_id=9)
    register("stub", [record], task="image")
    drawn = []

    def draw_other(rng: np.random.Generator) -> VideoRecord:
        drawn.append(other)
        return other

    for twin, expected in ((1.0, 0), (0.0, 8)):
        drawn.clear()
        mapper = ClipMapper(small_cfg("stub", INPUT__PSEUDO__COPY_PASTE=1.0, INPUT__PSEUDO__PASTE_TWIN=twin))
        items = [mapper("stub", record, np.random.default_rng(seed), draw_other) for seed in range(8)]
        assert len(drawn) == expected
        assert {len(item["masks"]) for item in items} == {1, 2}
