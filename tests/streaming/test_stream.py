# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The recurrence: new tracks, prompts, scores, the pool."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.streaming.slots import FREE
from ausm_d2.streaming.stream import Stream
from tests.streaming.scripted import Row, cells, frame, pixels, scripted


def worn(stream: Stream) -> list[int]:
    """Indices into B of the vectors in use."""
    assert stream.state is not None
    return stream.state.slots.ids[stream.state.slots.in_use].tolist()


def masks(stream: Stream) -> Tensor:
    """M_t of the rows in use."""
    assert stream.state is not None
    return stream.state.masks[stream.state.slots.in_use]


def test_confident_visible_detections_become_tracks_in_order_of_confidence() -> None:
    detections = {0: Row([0.3, 0.3], 1), 1: Row([0.0, 0.9], 2, 3), 2: Row([0.9, 0.0])}  # the last has no mask
    stream, _ = scripted([{"detections": detections}, {"detections": {0: Row([0.2, 0.25], 9)}}])
    output = stream.step(frame())
    assert output.track_ids == [1, 2]
    assert output.probabilities.argmax(1).tolist() == [1, 0]
    torch.testing.assert_close(output.probabilities[0], torch.tensor([0.0, 0.9], dtype=torch.float64))
    assert torch.equal(output.mask_logits, torch.stack([cells(2, 3), cells(1)]))
    assert torch.equal(masks(stream), output.mask_logits > 0)
    assert output.visible.tolist() == [True, True] and not output.prompted.any() and output.given == set()
    assert stream.step(frame()).track_ids == [1, 2]  # 0.45 is under the threshold


def test_the_step_sees_the_rows_vectors_and_masks_of_the_frame_before() -> None:
    stream, model = scripted([{"detections": {2: Row([0.9, 0.0], 5)}}, {"tracks": {0: Row([0.9, 0.0], 6)}}, {}])
    for _ in range(3):
        stream.step(frame())
    first, second, third = model.seen
    assert not first["in_use"].any() and not first["history"].any()
    assert torch.equal(first["x_prev"], torch.ones(1, 1, 8, 4, 4))  # X_0
    assert torch.equal(second["x_prev"], first["x"]) and torch.equal(third["x_prev"], second["x"])
    assert second["in_use"][0, 0].tolist() == [True, False, False, False]
    assert torch.equal(second["history"][0, 0, 0], cells(5) > 0)
    assert torch.equal(second["ids"][0, 0], model.id_pool.embed.weight[worn(stream)[0]])
    assert torch.equal(third["history"][0, 0, 0], cells(6) > 0)


def test_a_hidden_object_keeps_its_row_and_comes_back_on_it() -> None:
    stream, _ = scripted(
        [{"detections": {0: Row([0.8, 0.0], 1)}}, {}, {}, {"tracks": {0: Row([0.6, 0.0], 1, 2)}}],
    )
    vector = None
    for t in range(4):
        output = stream.step(frame())
        assert output.track_ids == [1]
        assert output.visible.tolist() == [t in (0, 3)] and bool(masks(stream).any()) == (t in (0, 3))
        vector = vector or worn(stream)
        assert worn(stream) == vector
    # docs/deviations.md, 12: the frames it was hidden in count
    torch.testing.assert_close(output.mean_probabilities[0, 0].item(), (0.8 + 0 + 0 + 0.6) / 4, rtol=1e-5, atol=1e-6)


def test_no_id_vector_is_used_twice() -> None:
    found = {"detections": {i: Row([0.9, 0.0], i) for i in range(3)}}
    stream, _ = scripted([found, found, {}], num_id=6)
    for _ in range(2):
        stream.step(frame())
    assert sorted(worn(stream)) == list(range(6))
    stream.remove(2)
    assert len(set(worn(stream))) == 5 and stream.track_ids == [1, 3, 4, 5, 6]


def test_with_an_empty_pool_hidden_tracks_are_recycled_and_other_detections_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = {"detections": {0: Row([0.9, 0.0], 40), 1: Row([0.8, 0.0], 41)}}
    shown = Row([0.9, 0.0], 9)
    stream, _ = scripted(
        [
            {"detections": {i: Row([0.9 - i / 10, 0.0], i) for i in range(2)}},  # tracks 1, 2
            {"tracks": {0: shown}},  # 2 is hidden; 7 is given
            {"tracks": {1: shown}},  # 1 and 7 are hidden
            {**found, "tracks": {1: shown}},  # one row is unprompted and hidden: one of the two gets it
            found,  # 8 and 2 are hidden
        ],
        num_id=3,
    )
    stream.step(frame())
    stream.step(frame(), {7: pixels(20)})
    stream.step(frame())
    with caplog.at_level(logging.WARNING, "ausm_d2"):
        assert sorted(stream.step(frame()).track_ids) == [2, 7, 8]
        assert stream.state is not None and (stream.state.slots.recycled, stream.state.slots.dropped) == (1, 1)
        # Both hidden rows go to new tracks; the given object is never given up.
        assert sorted(stream.step(frame()).track_ids) == [7, 9, 10]
        assert (stream.state.slots.recycled, stream.state.slots.dropped) == (3, 1)
    assert len(caplog.records) == 1 and "all 3 ID vectors are in use" in caplog.text
    assert sorted(worn(stream)) == [0, 1, 2]


def test_the_longest_unseen_is_recycled_first() -> None:
    shown = Row([0.9, 0.0], 9)
    stream, _ = scripted(
        [
            {"detections": {i: Row([0.9 - i / 10, 0.0], i) for i in range(3)}},
            {"tracks": {0: shown, 2: shown}},
            {"tracks": {0: shown}},
            {"detections": {0: Row([0.9, 0.0], 40)}},
        ],
        num_id=3,
    )
    outputs = [stream.step(frame()) for _ in range(4)]
    assert sorted(outputs[-1].track_ids) == [1, 3, 4]  # 2 was seen in the first frame only


def test_prompts_enter_unchanged_and_are_tracked_from_the_next_frame_on() -> None:
    stream, model = scripted(
        [{"detections": {0: Row([0.9, 0.0], 60)}}, {"tracks": {0: Row([0.5, 0.2], 3), 1: Row([0.1, 0.0], 30)}}],
        detect=False,
    )
    output = stream.step(frame(), {9: pixels(2, 3), 4: pixels(30)})
    assert output.track_ids == [9, 4] and output.given == {9, 4} and output.prompted.all()
    assert torch.equal(output.mask_logits > 0, torch.stack([cells(2, 3), cells(30)]) > 0)
    assert torch.equal(output.probabilities, torch.full((2, 2), 0.5, dtype=torch.float64))  # there, of any class
    output = stream.step(frame())
    assert torch.equal(model.seen[1]["history"][0, 0, :2], torch.stack([cells(2, 3), cells(30)]) > 0)
    assert output.given == set() and output.prompted.all()
    # The frame an object is given in is not counted.
    expected = torch.tensor([[0.5, 0.2], [0.1, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(output.mean_probabilities, expected, rtol=1e-5, atol=1e-6)


def test_overlapping_prompts_are_both_kept() -> None:
    stream, _ = scripted([{}], detect=False)
    stream.step(frame(), {1: pixels(2, 3), 2: pixels(3, 4)})
    assert torch.equal(masks(stream), torch.stack([cells(2, 3), cells(3, 4)]) > 0)


def test_prompt_index_zero_predicts_the_first_frame() -> None:
    stream, model = scripted([{"tracks": {0: Row([0.6, 0.0], 5)}}, {"tracks": {0: Row([0.2, 0.0], 6)}}], detect=False)
    model.prompt_index = "zero"
    output = stream.step(frame(), {7: pixels(2, 3)})
    assert torch.equal(model.seen[0]["history"][0, 0, 0], cells(2, 3) > 0) and model.seen[0]["in_use"][0, 0, 0]
    assert output.track_ids == [7] and output.given == set()
    assert torch.equal(output.mask_logits[0], cells(5))
    assert output.mean_probabilities[0, 0].item() == pytest.approx(0.6)
    output = stream.step(frame(), {8: pixels(40)})  # later ones are frames' prompts as ever
    assert output.given == {8} and output.mean_probabilities[0, 0].item() == pytest.approx(0.4)


def test_a_late_object_a_correction_and_a_removal() -> None:
    track = {"tracks": {0: Row([0.6, 0.0], 5), 1: Row([0.9, 0.0], 9)}}
    stream, model = scripted([{}, track, track, track], detect=False)
    stream.step(frame(), {7: pixels(2)})
    stream.step(frame())
    before = worn(stream)
    stream.add({3: pixels(8), 7: pixels(4)})
    assert stream.track_ids == [7, 3] and worn(stream)[:1] == before  # 7 keeps its vector
    assert torch.equal(masks(stream), torch.stack([cells(4), cells(8)]) > 0)
    output = stream.step(frame())
    assert torch.equal(model.seen[2]["history"][0, 0, :2], torch.stack([cells(4), cells(8)]) > 0)
    torch.testing.assert_close(
        output.mean_probabilities[:, 0], torch.tensor([0.6, 0.9], dtype=torch.float64), rtol=1e-5, atol=1e-6
    )
    stream.remove(7)
    output = stream.step(frame())
    assert output.track_ids == [3] and torch.equal(output.mask_logits[0], cells(9))
    assert not model.seen[3]["history"][0, 0, 0].any() and not model.seen[3]["in_use"][0, 0, 0]
    with pytest.raises(UserError, match=r"object 7 is not followed; followed now: \[3\]"):
        stream.remove(7)


def test_a_detected_object_can_be_corrected_and_new_ids_avoid_the_users() -> None:
    found = {"detections": {0: Row([0.9, 0.0], 1)}}
    stream, _ = scripted([found, {"tracks": {0: Row([0.9, 0.0], 1)}}, found])
    stream.step(frame())
    stream.step(frame())
    stream.add({1: pixels(4), 50: pixels(9)})
    assert stream.state is not None and stream.state.slots.prompted.tolist() == [True, True, False, False]
    assert stream.step(frame()).track_ids == [1, 50, 51]


def test_more_prompts_than_id_vectors_are_refused() -> None:
    stream, _ = scripted([{}, {}], detect=False, num_id=2)
    stream.step(frame(), {1: pixels(1)})
    assert stream.state is not None
    before, generator = stream.state.slots.ids.clone(), stream.state.slots.generator.get_state()
    with pytest.raises(UserError, match=r"2 new objects cannot be followed: 1 of 2 ID vectors"):
        stream.add({2: pixels(2), 3: pixels(3)})
    with pytest.raises(UserError, match="mask of object 4 is 8x8 pixels, the frame 32x32"):
        stream.add({2: pixels(2), 4: pixels(2)[:8, :8]})
    stream.state.slots.prompted[0] = False
    with pytest.raises(UserError, match=r"2 new objects cannot be followed: 1 of 2"):
        stream.add({1: pixels(9), 2: pixels(2), 3: pixels(3)})  # with a correction of 1, which keeps its slot
    assert torch.equal(masks(stream)[0], cells(1) > 0) and not stream.state.slots.prompted.any()
    assert torch.equal(stream.state.slots.ids, before) and torch.equal(
        stream.state.slots.generator.get_state(), generator
    )
    stream.add({2: pixels(2), 1: pixels(9)})
    assert stream.track_ids == [1, 2]


def test_the_smallest_mask_is_not_lost() -> None:
    stream, _ = scripted([{}], detect=False)
    few = np.zeros((32, 32), bool)
    few[3:5, 4:6] = True  # 2 pixels in each of two cells, and 4 of 16 would be needed for one of them at the least
    few[4, 4:7] = True
    stream.step(frame(), {1: few})
    assert torch.equal(masks(stream)[0], cells(8 + 1) > 0)


def test_frames_of_another_size_and_calls_before_the_first_frame_are_errors() -> None:
    stream, _ = scripted([{}])
    with pytest.raises(UserError, match="has not seen a frame yet"):
        stream.add({1: pixels(1)})
    stream.step(frame())
    with pytest.raises(UserError, match=r"a frame of 32x64 pixels follows frames of 32x32"):
        stream.step(np.zeros((64, 32, 3), np.uint8))
    assert stream.state is not None and (stream.state.slots.ids == FREE).all()


def test_a_refused_step_leaves_the_stream_unchanged() -> None:
    stream, model = scripted([{}, {"tracks": {0: Row([0.9, 0.0], 3)}}], num_id=2)
    for prompts in ({1: pixels(1)[:8, :8]}, {i: pixels(i) for i in (1, 2, 3)}):
        with pytest.raises(UserError):
            stream.step(frame(), prompts)
    assert stream.state is None and not model.seen
    stream.step(frame(), {1: pixels(1)})
    assert stream.state is not None
    before = {name: each.clone() for name, each in stream.state.tensors().items()}
    generator = stream.state.slots.generator.get_state()
    refused: list[tuple[np.ndarray, dict[int, np.ndarray]]] = [
        (np.zeros((64, 32, 3), np.uint8), {}),
        (frame(), {2: pixels(2), 3: pixels(3)}),
        (frame(), {2: pixels(2), 1: pixels(1)[:8, :8]}),
    ]
    for image, prompts in refused:
        with pytest.raises(UserError):
            stream.step(image, prompts)
    after = stream.state.tensors()
    assert stream.state.frame_index == 0 and len(model.seen) == 1
    assert all(torch.equal(each, after[name]) for name, each in before.items())
    assert torch.equal(stream.state.slots.generator.get_state(), generator)
    assert stream.step(frame()).frame_index == 1


def test_an_object_given_at_a_frame_has_its_slot_before_that_frames_detections() -> None:
    stream, _ = scripted([{"detections": {i: Row([0.9, 0.0], i) for i in range(3)}}], num_id=2)
    output = stream.step(frame(), {9: pixels(40)})
    assert sorted(output.track_ids) == [1, 9] and output.given == {9}
    assert stream.state is not None and stream.state.slots.dropped == 2
    row = output.track_ids.index(9)
    assert torch.equal(output.mask_logits[row] > 0, cells(40) > 0) and output.probabilities[row].tolist() == [0.5, 0.5]
    assert torch.equal(output.mask_logits[1 - row], cells(0))


def test_without_detection_queries_no_row_is_out_of_range() -> None:
    """A prompted object may take any slot: its output is not a row of Q."""
    stream, _ = scripted([{}], num_id=20, num_det=1, detect=False)
    output = stream.step(frame(), {i: pixels(i) for i in range(1, 21)})
    assert output.track_ids == list(range(1, 21))
