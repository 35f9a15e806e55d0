# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Resizing of frames and masks, and results of whole videos."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import decode
from ausm_d2.meta_arch import AUSM
from ausm_d2.modeling.masks import without_overlaps
from ausm_d2.streaming.output import FrameOutput
from ausm_d2.streaming.segmenter import best_tracks, segment_video, shown_rows
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.stream import Stream
from tests.data.stubs import ArrayFrames, ListedMasks
from tests.tiny import tiny_cfg, tiny_model

SIZE = (50, 70)


@pytest.fixture(scope="module")
def model() -> AUSM:
    return tiny_model().eval()


def settings(*opts: Any) -> VideoSettings:
    return VideoSettings.from_config(tiny_cfg(*opts))


def noise(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


def box(x: int, y: int, width: int = 20, height: int = 20) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def test_frames_are_resized_as_the_config_says() -> None:
    frame = noise(1, (100, 160))[0]
    assert settings().resize(frame).shape == (3, 100, 160)
    assert np.array_equal(settings().resize(frame).permute(1, 2, 0), frame)
    assert settings("INPUT.MIN_SIZE_TEST", 50).resize(frame).shape == (3, 50, 80)
    assert settings("INPUT.MIN_SIZE_TEST", 50, "INPUT.MAX_SIZE_TEST", 60).resize(frame).shape == (3, 38, 60)


def test_a_small_prompted_object_enlarges_the_input_up_to_a_limit() -> None:
    opts = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 128, "TEST.AUSM.SMALL_PROMPT_CELLS", 16]
    small, large = np.zeros((200, 400), bool), np.zeros((200, 400), bool)
    small[:20, :20], large[:100, :100] = True, True  # 2.6 and 64 cells of stride 4, in 64 x 128
    assert settings(*opts).input_size((200, 400), [large]) == (64, 128)
    assert settings(*opts).input_size((200, 400), [large, small]) == (96, 192)  # at most by half
    small[:40, :40] = True  # 10.2 cells
    height, width = settings(*opts).input_size((200, 400), [small, np.zeros_like(small)])
    assert height * width / 16 * small.mean() == pytest.approx(16, rel=0.03)
    assert settings(*opts[:4]).input_size((200, 400), [small]) == (64, 128)


def test_masks_are_resized_by_coverage() -> None:
    mask = np.zeros((8, 8), bool)
    mask[0:2, 0:2] = mask[4:6, 3] = mask[7, 7] = True  # all, half and a quarter of a cell of 2 x 2
    resized = settings().resize_mask(mask, (4, 4))
    assert resized.nonzero().tolist() == [[0, 0], [2, 1]]
    assert np.array_equal(settings().resize_mask(mask, (8, 8)), mask)
    lone = np.zeros((8, 8), bool)
    lone[7, 7] = True
    assert settings().resize_mask(lone, (4, 4)).nonzero().tolist() == [[3, 3]]  # never lost
    assert not settings().resize_mask(np.zeros((8, 8), bool), (4, 4)).any()


def rows(*entries: tuple[float, bool, bool]) -> FrameOutput:
    """Rows of a frame: probability, visible, prompted."""
    probabilities, visible, prompted = (torch.tensor(each) for each in zip(*entries, strict=True))
    return FrameOutput(
        frame_index=0,
        track_ids=list(range(1, len(entries) + 1)),
        probabilities=probabilities[:, None].double(),
        mean_probabilities=probabilities[:, None].double(),
        mask_logits=torch.zeros(len(entries), 1, 1),
        visible=visible,
        prompted=prompted,
        given=set(),
    )


def test_shown_rows_are_prompted_or_visible_and_among_the_topk() -> None:
    output = rows((0.5, True, False), (0.9, True, False), (0.7, False, False), (0.6, True, False), (0.1, False, True))
    assert shown_rows(output).track_ids == [1, 2, 4, 5]
    assert shown_rows(output, 2).track_ids == [2, 5]  # the second best is hidden
    assert shown_rows(output, 3).track_ids == [2, 4, 5]


def test_topk_is_taken_per_video_or_per_frame() -> None:
    masks: dict = {3: [None], 8: [None]}
    scores = {3: torch.tensor([0.5, 0.4, 0.0]), 8: torch.tensor([0.1, 0.2, 0.6]), 9: torch.tensor([0.9, 0.9, 0.9])}

    def pairs(scope: str, topk: int) -> list[tuple[int, int, float]]:
        entries = best_tracks(masks, scores, settings("TEST.AUSM.TOPK_SCOPE", scope, "TEST.AUSM.TOPK", topk))
        return [(entry["track_id"], entry["category_id"], round(entry["score"], 3)) for entry in entries]

    # 9 never had a mask that counts. A video's best are pairs, so a track may come with two classes.
    assert pairs("video", 3) == [(8, 2, 0.6), (3, 0, 0.5), (3, 1, 0.4)]
    assert pairs("frame", 3) == [(8, 2, 0.6), (3, 0, 0.5)]
    assert best_tracks({}, {}, settings()) == []
    with pytest.raises(UserError, match=r"TEST\.AUSM\.TOPK_SCOPE: 'clip' is not one of video, frame"):
        settings("TEST.AUSM.TOPK_SCOPE", "clip")


def test_a_data_sets_own_topk_and_threshold_hold_unless_the_config_says_otherwise() -> None:
    item = {"dataset_name": "ovis_val", "topk": 20}
    own = settings("TEST.AUSM.FG_THRESHOLDS", [["coco_2017_val", 0.9]])
    assert (own.for_item(item).topk, own.for_item(item).fg_threshold) == (20, 0.5)
    coco = own.for_item({"dataset_name": "coco_2017_val", "topk": 100})
    assert (coco.topk, coco.fg_threshold) == (100, 0.9)
    assert settings("TEST.AUSM.TOPK", 3).for_item(item).topk == 3


def test_the_rules_of_tracks_but_one_are_off_for_images() -> None:
    rules = ["BIRTH_IOU", 0.5, "BIRTH_CELLS", 12, "DUPLICATE_OVERLAP", 0.7, "EXCLUSIVE", True, "REACH", 0.25]
    rules += ["MIN_AGE", 3, "HIDE_BELOW", 0.5, "TRACK_SCORE", "mask"]
    own = settings(*(f"TEST.AUSM.{each}" if isinstance(each, str) and each.isupper() else each for each in rules))
    item = {"dataset_name": "images", "topk": 100}
    for task in ("vis", "vos"):
        assert own.for_item({**item, "task": task}) == replace(own, topk=100)
    # Of two detections of one thing one is left; and a score is no rule: images are ranked by it as well.
    plain = settings("TEST.AUSM.TRACK_SCORE", "mask", "TEST.AUSM.BIRTH_IOU", 0.5)
    assert own.for_item({**item, "task": "image"}) == plain.for_item({**item, "task": "image"}) != own


def test_prompt_masks_are_output_unchanged_and_win_overlaps(model: AUSM) -> None:
    stream = Stream(model, settings("INPUT.MIN_SIZE_TEST", 32), label_set="object", detect=False)
    thin = np.zeros(SIZE, bool)
    thin[np.arange(50), np.arange(50)] = True
    prompts = {5: box(3, 4), 2: thin}
    output = stream.step(noise(1)[0], prompts)
    logits = stream.logits(output, prompts)
    assert output.track_ids == [5, 2]
    assert np.array_equal((logits > 0).numpy(), np.stack([prompts[5], prompts[2]]))
    assert np.array_equal(without_overlaps(logits).numpy(), np.stack([prompts[5], prompts[2] & ~prompts[5]]))
    stream.add({5: prompts[5]})
    with pytest.raises(UserError, match="frame of 35x50 pixels follows frames of 70x50"):
        stream.step(noise(1, (50, 35))[0])


def record(length: int, prompts: dict[int, tuple[int, np.ndarray]] | None = None) -> VideoRecord:
    """Noise, and objects that are given at a frame."""
    given = prompts or {}
    masks = {i: [mask if t == frame else None for t in range(length)] for i, (frame, mask) in given.items()}
    return VideoRecord(
        video_id="v",
        name="v",
        height=SIZE[0],
        width=SIZE[1],
        frames=ArrayFrames(noise(length)),
        masks=ListedMasks(masks),
        prompt_frames={i: frame for i, (frame, _) in given.items()},
    )


def segment(model: AUSM, video: VideoRecord, how: VideoSettings, *, overlap: bool = False) -> dict[str, Any]:
    task = "vos" if video.prompt_frames else "vis"
    label_set = "object" if task == "vos" else "synthvis"
    item = {"record": video, "dataset_name": "x", "task": task, "label_set": label_set, "overlap": overlap, "topk": 100}
    return segment_video(model, item, how)


def test_a_prompted_video(model: AUSM) -> None:
    given = {4: (0, box(2, 2)), 9: (0, box(12, 8)), 6: (2, box(40, 20))}
    for overlap in (False, True):
        result = segment(model, record(4, given), settings(), overlap=overlap)
        assert result["video_id"] == "v" and set(result["objects"]) == {4, 9, 6}
        masks = {i: [None if rle is None else decode(rle) for rle in of] for i, of in result["objects"].items()}
        assert masks[6][0] is None and masks[6][1] is None and np.array_equal(masks[6][2], given[6][1])
        assert np.array_equal(masks[4][0], given[4][1])
        assert np.array_equal(masks[9][0], given[9][1] if overlap else given[9][1] & ~given[4][1])
        for t in range(4):
            shown = [of[t] for of in masks.values() if of[t] is not None]
            assert overlap or np.sum(shown, axis=0).max() <= 1
            assert all(mask.any() for mask in shown)  # an empty mask is no mask


def test_prompt_zero_predicts_the_first_frame() -> None:
    model = tiny_model("MODEL.AUSM.PROMPT_INDEX", "zero").eval()
    result = segment(model, record(2, {4: (0, box(2, 2)), 6: (1, box(30, 20))}), settings())
    first = result["objects"][4][0]
    assert first is None or not np.array_equal(decode(first), box(2, 2))
    assert np.array_equal(decode(result["objects"][6][1]), box(30, 20))


def test_an_unprompted_video_has_the_masks_of_its_stream(model: AUSM) -> None:
    how = settings("TEST.AUSM.TOPK", 100)
    video = record(3)
    tracks = {track["track_id"]: track for track in segment(model, video, how)["tracks"]}
    stream = Stream(model, how, label_set="synthvis", detect=True)
    seen = set()
    for t in range(3):
        output = stream.step(video.frames[t])
        for track_id, mask in zip(output.track_ids, (stream.logits(output) > 0).numpy(), strict=True):
            if mask.any():
                seen.add(track_id)
                assert np.array_equal(decode(tracks[track_id]["segmentations"][t]), mask)
            elif track_id in tracks:
                assert tracks[track_id]["segmentations"][t] is None
    assert seen == set(tracks) and seen
    for row, track_id in enumerate(output.track_ids):
        if track_id in tracks:
            entries = [track for track in segment(model, video, how)["tracks"] if track["track_id"] == track_id]
            by_class = {entry["category_id"]: entry["score"] for entry in entries}
            assert by_class == pytest.approx(dict(enumerate(output.mean_probabilities[row].tolist())))


def test_per_frame_scope_keeps_the_best_of_each_frame(model: AUSM) -> None:
    how = settings("TEST.AUSM.TOPK", 2, "TEST.AUSM.TOPK_SCOPE", "frame")
    tracks = segment(model, record(3), how)["tracks"]
    assert len({track["track_id"] for track in tracks}) == len(tracks)
    for t in range(3):
        assert sum(track["segmentations"][t] is not None for track in tracks) <= 2
    whole = segment(model, record(3), replace(how, topk=100))["tracks"]
    assert len(whole) > len(tracks)


@pytest.mark.parametrize("length", [1, 3])
def test_repeated_input_gives_every_frame_one_result(model: AUSM, length: int) -> None:
    how = settings("TEST.AUSM.REPEAT", 3, "TEST.AUSM.SPATIAL_TRAVERSAL", length == 1, "TEST.AUSM.TOPK", 100)
    tracks = segment(model, record(length), how)["tracks"]
    assert tracks and all(len(track["segmentations"]) == length for track in tracks)
    objects = segment(model, record(length, {3: (0, box(2, 2))}), replace(how, spatial_traversal=False))["objects"]
    assert np.array_equal(decode(objects[3][0]), box(2, 2)) and len(objects[3]) == length


def test_prompts_that_are_missing_are_named(model: AUSM) -> None:
    video = record(2, {4: (0, box(2, 2))})
    with pytest.raises(UserError, match="video v: object 4 has no mask in frame 1, where it is prompted"):
        segment(model, replace(video, prompt_frames={4: 1}), settings())
    with pytest.raises(UserError, match="video v: has no masks to prompt with"):
        segment(model, replace(video, masks=None), settings())
