# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""More given objects than ID vectors."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from ausm_d2.errors import UserError
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.streaming.groups import GroupedStream
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.prompts import Box
from ausm_d2.streaming.session import Session
from tests.streaming.opened import box, frames, open_stream
from tests.tiny import tiny_cfg

NUM_ID = 4
SIZE = (32, 48)
IDS = [70, 3, 500, *range(11, 19)]  # 11 objects


@pytest.fixture(scope="module")
def predictor() -> VideoPredictor:
    torch.manual_seed(0)
    return VideoPredictor(tiny_cfg("MODEL.AUSM.NUM_ID", NUM_ID))


def given(ids: list[int]) -> dict[int, np.ndarray]:
    """A square for each, none like another."""
    return {each: box(SIZE, 2 * (i % 4), 4 * i, 2 * (i % 4) + 14, 4 * i + 8) for i, each in enumerate(ids)}


def ids(session: Session) -> list[int]:
    return session.result.instances.track_ids.tolist()


def masks(session: Session) -> dict[int, torch.Tensor]:
    return dict(zip(ids(session), session.result.instances.pred_masks, strict=True))


def assert_same(one: Session, other: Session) -> None:
    assert ids(one) == ids(other) and torch.equal(one.result.id_map, other.result.id_map)
    assert torch.equal(one.result.instances.pred_masks, other.result.instances.pred_masks)
    assert torch.equal(one.result.instances.scores, other.result.instances.scores)


def test_eleven_objects_through_four_vectors_have_the_masks_of_three_streams(
    predictor: VideoPredictor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoded = []
    encode = AUSMNetwork.encode
    monkeypatch.setattr(AUSMNetwork, "encode", lambda self, images: (encoded.append(1), encode(self, images))[1])
    clip, prompts = frames(3, SIZE), given(IDS)
    with caplog.at_level(logging.WARNING, "ausm_d2"):
        session = predictor.start(clip[0], prompts)
        assert ids(session) == IDS and session.track_ids == IDS
        for object_id, mask in masks(session).items():
            assert np.array_equal(mask, prompts[object_id])
        for frame in clip[1:]:
            session.step(frame)
    assert len(encoded) == len(clip)  # the encoder runs once a frame
    assert [record.getMessage()[:36] for record in caplog.records] == ["there are more prompted objects than"]
    for at in (0, 4, 8):
        share = {each: prompts[each] for each in IDS[at : at + 4]}
        alone = predictor.start(clip[0], share)
        for frame in clip[1:]:
            alone.step(frame)
        for object_id, mask in masks(alone).items():
            assert torch.equal(mask, masks(session)[object_id])
    assert ids(session) == IDS


def test_an_object_given_late_opens_a_group_as_if_the_video_began_there(predictor: VideoPredictor) -> None:
    clip, prompts = frames(3, SIZE), given(IDS[:5])
    full = predictor.start(clip[0], {each: prompts[each] for each in IDS[:4]})
    full.step(clip[1])
    full.add(IDS[4], prompts[IDS[4]])
    assert ids(full) == IDS[:5] and np.array_equal(masks(full)[IDS[4]], prompts[IDS[4]])
    alone = predictor.start(clip[1], {IDS[4]: prompts[IDS[4]]})
    for session in (full, alone):
        session.step(clip[2])
    assert torch.equal(masks(full)[IDS[4]], masks(alone)[IDS[4]])


def test_prompts_with_a_later_frame_open_a_group_too(predictor: VideoPredictor) -> None:
    """As evaluators give them."""
    clip, prompts = frames(3, SIZE), given(IDS[:6])
    stream = GroupedStream(open_stream(predictor.model, label_set="object", detect=False))
    session = predictor.start(clip[0], {each: prompts[each] for each in IDS[:3]})
    stream.step(clip[0][..., ::-1], {each: prompts[each] for each in IDS[:3]})
    late = {each: prompts[each] for each in IDS[3:6]}
    output = stream.step(clip[1][..., ::-1], late)
    session.step(clip[1])
    for object_id, mask in late.items():
        session.add(object_id, mask)
    assert output.track_ids == session.track_ids == IDS[:6] and output.given == set(IDS[3:6])
    assert (stream.logits(output)[3:] > 0).flatten(1).any(dim=1).all()
    output = stream.step(clip[2][..., ::-1])
    session.step(clip[2])
    assert torch.equal(stream.logits(output) > 0, session.result.instances.pred_masks)


def test_a_session_of_groups_is_saved_forked_and_done_again(predictor: VideoPredictor, tmp_path: Path) -> None:
    clip, prompts = frames(4, SIZE), given(IDS)
    session = predictor.start(clip[0], {each: prompts[each] for each in IDS[:9]})
    session.save(tmp_path / "session.pt")
    loaded = predictor.load(tmp_path / "session.pt")
    keyframe = session.keyframe()
    for each in (session, loaded):
        each.step(clip[1])
        each.add(IDS[9], prompts[IDS[9]])
        each.step(clip[2])
    assert_same(session, loaded)
    list(loaded.redo(keyframe, clip[1:2]))
    loaded.add(IDS[9], prompts[IDS[9]])
    loaded.step(clip[2])
    assert_same(session, loaded)


def test_ids_are_the_users_across_groups(predictor: VideoPredictor) -> None:
    session = predictor.start(frames(1, SIZE)[0], given(IDS[:9]))
    with pytest.raises(UserError, match="object 70 cannot become 15: that id is in use"):
        session.rename(70, 15)
    with pytest.raises(UserError, match=r"object 9 is not followed; followed now: \[3, 11, 12, 13, .* 500\]"):
        session.remove(9)
    session.rename(16, 900)
    for object_id in (70, 15, 12):
        session.remove(object_id)
    assert ids(session) == session.track_ids == [3, 500, 11, 13, 14, 900]
    session.add(900, given(IDS)[11])  # a correction stays in its group
    session.add(70, given(IDS)[70])  # a vector is free
    assert session.track_ids == [70, 3, 500, 11, 13, 14, 900] and session._stream.num_groups == 3
    session.remove(900)
    assert session._stream.num_groups == 2


def test_a_refused_call_changes_nothing(predictor: VideoPredictor) -> None:
    clip, prompts = frames(2, SIZE), given(IDS)
    session = predictor.start(clip[0], {each: prompts[each] for each in IDS[:4]})
    with pytest.raises(UserError, match="a frame of 32x32 pixels follows frames of 48x32"):
        session.step(frames(1)[0])
    stream = session._stream
    with pytest.raises(UserError, match="the mask of object 14 is 32x32 pixels, the frame 48x32"):
        stream.add({**{each: prompts[each] for each in IDS[4:6]}, 14: box()})
    assert stream.num_groups == 1 and stream.track_ids == IDS[:4]


def test_what_is_found_is_in_one_group_and_is_no_object_of_another(predictor: VideoPredictor) -> None:
    """At a threshold of 0 everything is detected: a quarter of the vectors of the first group are kept for it."""
    predictor.settings.fg_threshold, before = 0.0, predictor.settings.fg_threshold
    try:
        session = predictor.start(frames(1, SIZE)[0], given(IDS), discover=True)
        first = session._stream._groups[0]
        found = [each for each in session.track_ids if each not in IDS]
        assert session._stream.num_groups == 3 and set(IDS) <= set(session.track_ids)
        assert found == [501] and 501 in first.track_ids
        given_now = ids(session)
        session.step(frames(2, SIZE)[1])
        assert set(IDS) <= set(ids(session)) and set(IDS) <= set(given_now)
    finally:
        predictor.settings.fg_threshold = before


def test_three_hundred_objects_one_after_another(predictor: VideoPredictor) -> None:
    """Five are there at a time, one more than there are vectors."""
    stream = GroupedStream(open_stream(predictor.model, label_set="object", detect=False))
    clip = frames(2, SIZE)
    stream.step(clip[0])
    for object_id in range(1, 301):
        stream.add({object_id: box(SIZE, 4, object_id % 40, 20, object_id % 40 + 8)})
        if object_id > 5:
            stream.remove(object_id - 5)
        if object_id % 100 == 0:
            stream.step(clip[1])
    assert sorted(stream.track_ids) == [296, 297, 298, 299, 300] and stream.num_groups == 2


def test_boxes_beyond_the_vectors_are_refined_in_their_group(predictor: VideoPredictor) -> None:
    clip = frames(2, SIZE)
    session = predictor.start(clip[0], {i: Box(4 * i, 4, 4 * i + 10, 20) for i in range(1, 7)})
    session.add(7, Box(2, 2, 20, 20))
    assert session.track_ids == [*range(1, 8)] == ids(session)
    assert ids(session) == session.step(clip[1]).instances.track_ids.tolist()
