# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ausm_d2.errors import UserError
from ausm_d2.streaming import refinement
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.prompts import Box, Mask, Points, Scribble, draw
from ausm_d2.streaming.session import Session
from tests.streaming.test_predictor import SIZE, assert_same, box, ids, masks, noise
from tests.tiny import tiny_cfg


@pytest.fixture(scope="module")
def predictor() -> VideoPredictor:
    torch.manual_seed(0)
    return VideoPredictor(tiny_cfg())


# ------------------------------------------------------------------------------------------------------- what is drawn


def test_each_kind_is_drawn_as_a_mask() -> None:
    drawn = draw(
        {
            1: box(3, 4),
            2: Mask(box(3, 4)),
            3: Box(10, 5, 30, 25),
            4: Points([(20, 20), (40, 30)]),
            5: Scribble([(10, 10), (50, 10)], width=4),
        },
        SIZE,
    )
    assert drawn[1].exact and drawn[2].exact and np.array_equal(drawn[1].mask, drawn[2].mask)
    assert not drawn[3].exact and drawn[3].mask.sum() == 20 * 20 and drawn[3].mask[5:25, 10:30].all()
    assert drawn[4].mask[20, 20] and drawn[4].mask[30, 40] and drawn[4].mask.sum() < 20
    assert drawn[5].mask[9:11, 10:50].all() and not drawn[5].mask[13].any()


def test_several_prompts_of_an_object_are_combined() -> None:
    one = draw({1: [Box(10, 5, 30, 25), Points([(15, 10)], [0]), Scribble([(35, 40), (45, 40)])]}, SIZE)[1]
    assert one.mask[20, 20] and one.mask[40, 40] and not one.mask[10, 15]


def test_clicks_edit_the_current_mask_and_a_box_replaces_it() -> None:
    current = {1: box(3, 4)}
    more = draw({1: Points([(60, 40), (10, 10)], [1, 0])}, SIZE, current)[1]
    assert more.mask[5, 4] and more.mask[40, 60] and not more.mask[10, 10] and not more.exact
    assert not draw({1: Box(40, 30, 50, 40)}, SIZE, current)[1].mask[5, 4]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Box(30, 5, 10, 25), "object 7: a box is x0, y0, x1, y1"),
        (Box(100, 5, 110, 25), "object 7: the box .* lies outside of the frame of 70x50"),
        (Points([(80, 5)]), "object 7: a point is x, y in the frame"),
        (Points([]), "object 7: nothing was given that is on the object"),
        (Points([(5, 5)], [0]), "object 7: nothing was given that is on the object"),
        (Points([(5, 5), (6, 6)], [1]), "object 7: 2 points, but 1 labels"),
        (Points([(5, 5)], [2]), "object 7: label 2, expected 1"),
        ([Points([(5, 5)]), Points([(5, 5)], [0])], "object 7: what was given is all where the object is not"),
        (Scribble([]), "object 7: no point found"),
        ("a ball", "object 7: a prompt is a mask, a bool array"),
        (np.zeros(SIZE, bool), "object 7: its mask is empty"),
    ],
)
def test_invalid_prompts_are_refused(predictor: VideoPredictor, prompt: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predictor.start(noise(1)[0], {7: prompt})


# ------------------------------------------------------------------------------------------------------ what is chosen


def test_fit_measures_the_agreement_with_the_prompts() -> None:
    given = draw({1: [Box(10, 10, 30, 30), Points([(5, 45)], [0])]}, SIZE)[1]
    assert given.fit(box(10, 10)) == 1.0
    wide = np.zeros(SIZE, bool)
    wide[10:30, 10:50] = True
    assert given.fit(wide) == pytest.approx((0.5 + 1) / 2)
    assert given.fit(np.ones(SIZE, bool)) == pytest.approx(400 / 3500 / 2) and given.fit(np.zeros(SIZE, bool)) == 0


def scripted(monkeypatch: pytest.MonkeyPatch, own: np.ndarray, *detections: np.ndarray) -> None:
    """The network's masks for object 7, and what it finds by itself."""

    def given(stream: Any, frame: np.ndarray) -> dict[int, np.ndarray]:
        return {1000 + i: mask for i, mask in enumerate(detections)} if stream.detect else {7: own}

    monkeypatch.setattr(refinement, "_masks", given)


@pytest.mark.parametrize(
    ("own", "detections", "expected"),
    [
        (box(11, 10), [box(40, 25)], box(11, 10)),  # the network's own mask
        (box(10, 10) & ~box(15, 15, 3), [box(10, 10)], box(10, 10) & ~box(15, 15, 3)),  # a detection that fits as well
        (box(25, 20), [box(40, 25), box(10, 10)], box(10, 10)),  # one that fits much better
        (np.zeros(SIZE, bool), [box(40, 25)], box(10, 10)),  # nothing like it: what was drawn
    ],
)
def test_the_mask_that_fits_best_is_chosen(
    predictor: VideoPredictor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    own: np.ndarray,
    detections: list[np.ndarray],
    expected: np.ndarray,
) -> None:
    scripted(monkeypatch, own, *detections)
    session = predictor.start(noise(1)[0], {7: Box(10, 10, 30, 30)})
    assert np.array_equal(masks(session.result)[7], expected)
    assert ("object 7: the model finds nothing like it" in caplog.text) == (not own.any())


def test_negative_clicks_take_pixels_away(predictor: VideoPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, box(10, 10))
    session = predictor.start(noise(1)[0], {7: [Points([(20, 20)]), Points([(12, 12)], [0])]})
    found = masks(session.result)[7]
    assert found[20, 20] and not found[12, 12]


LEFT, RIGHT = box(4, 10, 12), box(45, 10, 20)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([Points([(10, 15)])], LEFT),  # the other part is a similar object
        ([Points([(10, 15), (50, 15)])], LEFT | RIGHT),
        ([Points([(10, 15), (50, 15)], [1, 0])], LEFT),
        ([Scribble([(8, 15), (14, 15)])], LEFT),
        ([Box(4, 10, 65, 30)], LEFT | RIGHT),  # a box says how far the object reaches
        ([Points([(30, 45)])], LEFT | RIGHT),  # no part is marked
    ],
)
def test_of_a_clicked_object_only_the_marked_parts_are_kept(prompts: list[Any], expected: np.ndarray) -> None:
    drawn = draw({7: prompts}, SIZE)[7]
    assert np.array_equal(refinement._marked_parts(drawn, LEFT | RIGHT), drawn.without_off(expected))


def test_a_negative_click_takes_a_whole_part_from_a_tracked_object_but_never_the_largest() -> None:
    both = LEFT | RIGHT
    for point, expected in (((10, 15), RIGHT), ((50, 15), both)):
        drawn = draw({7: Points([point], [0])}, SIZE, {7: both})[7]
        assert np.array_equal(refinement._marked_parts(drawn, both), drawn.without_off(expected))


def test_close_components_are_one_part() -> None:
    near = box(10, 10, 8) | box(19, 10, 8)
    drawn = draw({7: Points([(12, 14)])}, (480, 700))[7]
    large = np.zeros((480, 700), bool)
    large[: SIZE[0], : SIZE[1]] = near
    assert np.array_equal(refinement._marked_parts(drawn, large), large)


def test_a_coarse_prompt_is_refined_by_showing_the_frame_again(predictor: VideoPredictor) -> None:
    """The session's first mask is that of a stream prompted with the coarse mask that processes the frame twice."""
    frames, prompt = noise(2), Box(10, 10, 30, 30)
    session = predictor.start(frames[0], {7: prompt})
    twice = predictor.start(frames[0], {7: draw({7: prompt}, SIZE)[7].mask})
    own = masks(twice.step(frames[0]))[7]
    chosen = masks(session.result)[7]
    fits = draw({7: prompt}, SIZE)[7].fit
    assert np.array_equal(chosen, own) or fits(chosen) > fits(own) or fits(own) < 0.3
    given = predictor.start(frames[0], {7: chosen})
    assert_same(session.result, given.result)
    assert_same(session.step(frames[1]), given.step(frames[1]))


def test_clicks_on_a_frame_do_not_encode_it_again(predictor: VideoPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[torch.Tensor] = []
    encode = predictor.model.encode

    def counted(images: torch.Tensor) -> Any:
        encoded.append(images)
        return encode(images)

    monkeypatch.setattr(predictor.model, "encode", counted)
    frames = noise(2)
    session = predictor.start(frames[0], {7: Box(10, 10, 30, 30)})
    session.add(7, Points([(20, 20)]))
    assert len(encoded) == 1
    session.step(frames[1])
    session.add(7, Points([(12, 12)], [0]))
    assert len(encoded) == 2
    session.back_to(session.keyframe())  # which holds the frame, not its features
    session.add(7, Points([(20, 20)]))
    assert len(encoded) == 3


# ------------------------------------------------------------------------------------------------------------ sessions


def test_prompts_of_all_kinds_at_any_frame(predictor: VideoPredictor, tmp_path: Path) -> None:
    frames = noise(4)
    session = predictor.start(frames[0], {7: Box(10, 10, 30, 30), 3: box(40, 20)})
    session.step(frames[1])
    session.add(5, [Points([(20, 30)]), Scribble([(20, 30), (40, 30)])])
    assert sorted(ids(session.result)) == [3, 5, 7] and session.result.frame_index == 1
    session.add(7, Points([(50, 40)]))  # a correction
    session.save(tmp_path / "session.pth")
    loaded = predictor.load(tmp_path / "session.pth")
    assert_same(loaded.result, session.result)
    for each in (session, loaded):
        each.add(3, Points([(60, 5)]))
    assert_same(loaded.result, session.result)
    assert_same(loaded.step(frames[2]), session.step(frames[2]))


def test_a_refused_prompt_changes_nothing(predictor: VideoPredictor) -> None:
    frames = noise(2)
    session, other = (predictor.start(frames[0], {7: box(3, 4)}) for _ in range(2))
    for prompt in (Box(30, 5, 10, 25), Points([(5, 5)], [0]), None):
        with pytest.raises(UserError):
            session.add(9, prompt)  # type: ignore[arg-type]
    assert_same(session.result, other.result)
    assert_same(session.step(frames[1]), other.step(frames[1]))


def test_prompted_and_detected_objects_are_tracked_together(predictor: VideoPredictor) -> None:
    frames = noise(3)
    session = predictor.start(frames[0], {7: box(3, 4), 20: Box(40, 20, 60, 40)}, discover=True)
    found = ids(session.result)
    assert {7, 20} <= {*found} and all(each > 20 for each in found if each not in (7, 20))
    result = session.step(frames[1])
    assert {7, 20} <= {*session.track_ids} and len(ids(result)) > 2
    track_id = max(session.track_ids)
    session.add(500, masks(result)[track_id] if track_id in masks(result) else box(0, 0))
    assert track_id not in session.track_ids or track_id not in masks(result)  # its mask has the user's id now
    assert 500 in session.track_ids


def test_an_object_is_paused_resumed_and_renamed(predictor: VideoPredictor, tmp_path: Path) -> None:
    frames = noise(4)
    session, plain = (predictor.start(frames[0], {7: box(3, 4), 9: box(5, 6)}) for _ in range(2))
    session.pause(7)
    assert ids(session.result) == [9] and not (session.result.id_map == 7).any()
    assert ids(session.step(frames[1])) == [9] and session.track_ids == [7, 9]
    session.save(tmp_path / "s.pth")
    assert ids(predictor.load(tmp_path / "s.pth").result) == [9]
    session.resume(7)
    plain.step(frames[1])
    assert_same(session.result, plain.result)
    session.rename(7, 70)
    assert ids(session.result) == [70, 9] and ids(session.step(frames[2])) == [70, 9]
    assert np.array_equal(masks(session.result)[70], masks(plain.step(frames[2]))[7])
    for wrong, message in (
        (lambda: session.rename(70, 9), "object 70 cannot become 9: that id is in use"),
        (lambda: session.rename(7, 8), "object 7 is not followed"),
        (lambda: session.rename(70, 0), "object id 0: ids are whole numbers"),
        (lambda: session.pause(8), "object 8 is not followed"),
        (lambda: session.resume(9), "object 9 is not paused"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()
    assert ids(session.result) == [70, 9]


def test_frames_after_a_keyframe_are_processed_again(predictor: VideoPredictor) -> None:
    frames = noise(5)

    def begin() -> Session:
        session = predictor.start(frames[0], {7: box(3, 4)})
        session.step(frames[1])
        return session

    session, right = begin(), begin()
    keyframe = session.keyframe()
    before = [session.step(frame) for frame in frames[2:4]]
    redone = list(session.redo(keyframe, frames[2:4], {7: box(30, 20)}))
    right.add(7, box(30, 20))
    for result, expected in zip(redone, [right.result, *map(right.step, frames[2:4])], strict=True):
        assert_same(result, expected)
    session.back_to(keyframe)
    for frame, expected in zip(frames[2:4], before, strict=True):
        assert_same(session.step(frame), expected)


def test_sessions_interleave(predictor: VideoPredictor) -> None:
    frames = noise(4)
    alone = predictor.start(frames[0], {7: Box(10, 10, 30, 30)})
    expected = [alone.result, *(alone.step(frame) for frame in frames[1:])]
    one, other = predictor.start(frames[0], {7: Box(10, 10, 30, 30)}), predictor.start(frames[3])
    assert_same(one.result, expected[0])
    for frame, result in zip(frames[1:], expected[1:], strict=True):
        other.step(frame)
        other.keyframe()
        assert_same(one.step(frame), result)


def test_results_as_detections_of_supervision(predictor: VideoPredictor) -> None:
    supervision = pytest.importorskip("supervision")
    session = predictor.start(noise(1)[0], {7: box(3, 4), 9: box(30, 20)})
    found = session.result.to_supervision()
    assert isinstance(found, supervision.Detections) and found.tracker_id.tolist() == [7, 9]
    assert found.xyxy.tolist() == [[3, 4, 22, 23], [30, 20, 49, 39]] and found.mask.shape == (2, *SIZE)
    session.remove(7)
    session.remove(9)
    assert len(session.result.to_supervision()) == 0


def test_without_supervision_the_error_says_how_to_install_it(
    predictor: VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "supervision":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"supervision is not installed; pip install 'ausm_d2\[supervision\]'"):
        predictor.start(noise(1)[0], {7: box(3, 4)}).result.to_supervision()
