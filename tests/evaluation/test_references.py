# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from ausm_d2.data.synthvis import SynthVis
from ausm_d2.data.video import Instance, VideoRecord
from ausm_d2.evaluation.references import CopiedMask, FlowMask, FrameByFrame, references
from ausm_d2.masks.rle import Rle, decode, encode
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.single_frames import SingleFrames
from tests.data.stubs import ArrayFrames, ListedMasks
from tests.tiny import tiny_cfg, tiny_model

SIZE = (48, 64)
CLASSES = 2


def box(x: int, y: int = 10, side: int = 12) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def record(masks: dict[int, list[np.ndarray | None]], frames: list[np.ndarray] | None = None) -> VideoRecord:
    """Every object is prompted at its first visible frame."""
    length = len(next(iter(masks.values())))
    return VideoRecord(
        video_id=3,
        name="video",
        height=SIZE[0],
        width=SIZE[1],
        frames=ArrayFrames(frames or [np.zeros((*SIZE, 3), np.uint8)] * length),
        instances=[Instance(i, 0) for i in masks],
        masks=ListedMasks(masks),
        prompt_frames={i: next(t for t, mask in enumerate(of) if mask is not None) for i, of in masks.items()},
    )


def item(video: VideoRecord, task: str) -> dict[str, Any]:
    return {
        "record": video,
        "dataset_name": "test",
        "task": task,
        "label_set": "synthvis",
        "overlap": False,
        "topk": 10,
    }


def overlap(rle: Rle | None, mask: np.ndarray) -> float:
    predicted = np.zeros(SIZE, bool) if rle is None else decode(rle)
    return float((predicted & mask).sum() / (predicted | mask).sum())


def test_copied_masks_stay_as_they_were_given() -> None:
    early, late = [box(5), None, box(9), box(11)], [None, None, box(40), box(30)]
    [result] = CopiedMask()([item(record({4: early, 9: late}), "vos")])
    assert result["video_id"] == 3
    assert result["objects"] == {
        4: [encode(box(5))] * 4,
        9: [None, None, encode(box(40)), encode(box(40))],
    }


@pytest.fixture(scope="module")
def textured() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Six frames of a textured box that moves by (3, 1) pixels per frame over black, and its masks."""
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8), (0, 0), 2)
    masks = [box(8 + 3 * t, 12 + t, 20) for t in range(6)]
    return [np.roll(texture, (t, 3 * t), (0, 1)) * mask[..., None] for t, mask in enumerate(masks)], masks


def test_flow_carries_a_mask_with_its_texture(textured: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    frames, masks = textured
    video = record({1: list(masks), 2: [None, *masks[1:]]}, frames)
    [flow], [copied] = FlowMask()([item(video, "vos")]), CopiedMask()([item(video, "vos")])
    for object_id, prompt in ((1, 0), (2, 1)):
        carried = flow["objects"][object_id]
        assert carried[:prompt] == [None] * prompt
        assert carried[prompt] == encode(masks[prompt]), "the given mask is the output of its frame"
        assert overlap(carried[5], masks[5]) > 0.9
        assert overlap(copied["objects"][object_id][5], masks[5]) < 0.5


def test_flow_loses_an_object_that_leaves_the_frame() -> None:
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (SIZE[0], 160, 3), dtype=np.uint8), (0, 0), 2)
    frames = [texture[:, 6 * t : 6 * t + SIZE[1]].copy() for t in range(8)]  # all goes left by 6 pixels a frame
    [result] = FlowMask()([item(record({1: [box(2)] + [None] * 7}, frames), "vos")])
    assert result["objects"][1][7] is None


class Scripted(SingleFrames):
    """Given detections: by frame, (mask, class probabilities)."""

    def __init__(self, detections: list[list[tuple[np.ndarray, list[float]]]], **settings: Any) -> None:
        super().__init__(cast(Any, None), VideoSettings.from_config(tiny_cfg("TEST.AUSM.TOPK", 10)))
        self.detections = detections
        self.reference_settings = settings

    def detect(self, frame: np.ndarray, item: dict[str, Any]) -> tuple[list[Rle], Tensor]:
        found = self.detections[frame[0, 0, 0]]
        probabilities = torch.tensor([p for _, p in found], dtype=torch.float64).view(-1, CLASSES)
        return [encode(mask) for mask, _ in found], probabilities

    def tracks(self) -> dict[int, dict[int, Any]]:
        """Entries of the result by track id and class."""
        length = len(self.detections)
        frames = [np.full((*SIZE, 3), t, np.uint8) for t in range(length)]
        [result] = FrameByFrame(self, **self.reference_settings)([item(record({1: [box(0)] * length}, frames), "vis")])
        tracks: dict[int, dict[int, Any]] = {}
        for entry in result["tracks"]:
            tracks.setdefault(entry["track_id"], {})[entry["category_id"]] = entry
        return tracks


def test_linking_follows_overlap_and_scores_are_means_over_frames() -> None:
    a, b = [box(5), box(8), box(11)], [box(40), box(38), box(36)]
    first, second = [0.5, 0.25], [0.125, 0.75]
    # In every frame in another order, and the first object's class is not certain.
    script = [[(a[0], first), (b[0], second)], [(b[1], second), (a[1], second)], [(b[2], second), (a[2], first)]]
    tracks = Scripted(script).tracks()
    assert len(tracks) == 2
    by_place = {entry[0]["segmentations"][0]["counts"]: entry for entry in tracks.values()}
    left, right = (by_place[encode(mask)["counts"]] for mask in (a[0], b[0]))
    assert left[0]["segmentations"] == [encode(mask) for mask in a]
    assert right[1]["segmentations"] == [encode(mask) for mask in b]
    assert left[0]["score"] == pytest.approx((0.5 + 0.125 + 0.5) / 3)
    assert right[1]["score"] == pytest.approx(0.75)


def test_linking_pairs_for_the_largest_sum_of_overlaps() -> None:
    # The nearer detection would suit both tracks; only one pairing continues both.
    p = [0.9, 0.0]
    script = [[(box(10), p), (box(14), p)], [(box(13), p), (box(19), p)]]
    tracks = Scripted(script).tracks()
    assert sorted(sum(m is not None for m in by_class[0]["segmentations"]) for by_class in tracks.values()) == [2, 2]


def test_tracks_survive_gaps_which_lower_their_score() -> None:
    [entries] = Scripted([[], [(box(10), [0.9, 0.0])], [], [], [(box(11), [0.6, 0.0])]]).tracks().values()
    assert entries[0]["segmentations"] == [None, encode(box(10)), None, None, encode(box(11))]
    assert entries[0]["score"] == pytest.approx((0.9 + 0 + 0 + 0.6) / 4), "from its first frame to the video's last"


@pytest.mark.parametrize(("shift", "expected"), [(6, 1), (7, 2)])  # overlaps of 1/3 and 5/19
def test_detections_too_far_apart_are_two_tracks(shift: int, expected: int) -> None:
    script = [[(box(10), [0.9, 0.0])], [(box(10 + shift), [0.9, 0.0])]]
    assert len(Scripted(script, min_overlap=0.3).tracks()) == expected


def test_no_detections() -> None:
    assert Scripted([[], []]).tracks() == {}


def test_frames_are_segmented_without_any_history() -> None:
    video = SynthVis(5, 1, 3, complete=True)[0]
    model = tiny_model("TEST.AUSM.FG_THRESHOLD", 0.0, "TEST.AUSM.TOPK", 1000)  # untrained: everything counts
    detector = SingleFrames(model, model.video)
    masks = [detector.detect(video.frames[t], item(video, "vis"))[0] for t in range(3)]
    assert masks[2]
    [result] = FrameByFrame(detector)([item(video, "vis")])
    found = {t: [e["segmentations"][t]["counts"] for e in result["tracks"] if e["segmentations"][t]] for t in range(3)}
    assert {t: set(counts) for t, counts in found.items()} == {
        t: {mask["counts"] for mask in of} for t, of in enumerate(masks)
    }
    assert model.training, "the reference leaves the model as it was"


def test_references_by_task() -> None:
    model = tiny_model()
    detector = SingleFrames(model, model.video)
    assert [type(each) for each in references("vos", detector).values()] == [CopiedMask, FlowMask]
    assert [type(each) for each in references("vis", detector).values()] == [FrameByFrame]
    assert references("image", detector) == {}
