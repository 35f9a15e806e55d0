# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Rules of tracks that were found: doubles, cells that several claim, jumps, other objects, young or tiny tracks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ausm_d2.errors import UserError
from ausm_d2.modeling.frame_encoder import FrameFeatures
from ausm_d2.streaming import gates
from ausm_d2.streaming.gates import appearance, shared
from ausm_d2.streaming.segmenter import shown_rows
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.stream import FrameOutput, Stream
from tests.streaming.scripted import CELLS, Row, ScriptedModel, cells, frame, pixels, scripted
from tests.tiny import tiny_cfg

Script = list[dict[str, dict[int, Row]]]


def run(script: Script, *, given: dict[int, Any] | None = None, **changes: Any) -> tuple[list[FrameOutput], Stream]:
    """All frames of a script; ``given`` at the first."""
    stream, model = scripted(script)
    stream = Stream(model, replace(stream.settings, **changes), label_set="things", detect=True)  # type: ignore[arg-type]
    return [stream.step(frame(), given if t == 0 else None) for t in range(len(script))], stream


def sure(*places: int, of: float = 0.9) -> Row:
    return Row([of, 0.0], *places)


@pytest.fixture
def two_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The left and the right half of a frame look different."""

    def encode(model: ScriptedModel, images: torch.Tensor) -> FrameFeatures:
        x = torch.zeros(1, 8, CELLS // 2, CELLS // 2)
        x[:, 0, :, :2], x[:, 1, :, 2:] = 1.0, 1.0
        return FrameFeatures(x=x, mask_features=torch.zeros(1, 8, CELLS, CELLS), multi_scale=[])

    monkeypatch.setattr(ScriptedModel, "encode", encode)


@pytest.mark.parametrize(("overlap", "ids"), [(1.0, [1, 2]), (0.6, [1]), (0.7, [1, 2])])
def test_of_two_detections_of_one_thing_the_surer_becomes_a_track(overlap: float, ids: list[int]) -> None:
    """Two of the three cells of the smaller one are in the other."""
    (output,), _ = run([{"detections": {0: sure(1, 2, 3, of=0.8), 1: sure(2, 3, 4, 5)}}], duplicate_overlap=overlap)
    assert output.track_ids == ids
    assert torch.equal(output.mask_logits[0], cells(2, 3, 4, 5))


def test_of_two_tracks_of_one_thing_the_surer_goes_on() -> None:
    script: Script = [{"detections": {0: sure(1, of=0.8), 1: sure(20)}}, {"tracks": {0: sure(20), 1: sure(20)}}]
    (first, second), stream = run(script, duplicate_overlap=0.7)
    assert first.track_ids == [1, 2] and second.track_ids == [1]  # 1 has 0.9 from both frames, 2 has 0.8 from its first
    assert stream.state is not None and stream.state.masks.sum() == 1
    assert run(script)[0][1].track_ids == [1, 2], "off unless a config asks for it"


def test_a_given_object_is_no_double() -> None:
    """Two given objects at one place stay; what was found there ends."""
    script: Script = [
        {"detections": {0: sure(40)}},
        {"tracks": {0: sure(5, of=0.1), 1: sure(5, of=0.2), 2: sure(5)}},
    ]
    (_, second), _ = run(script, given={7: pixels(1), 8: pixels(60)}, duplicate_overlap=0.7)
    assert second.track_ids == [7, 8]


def test_a_cell_belongs_to_one_track() -> None:
    """To the one with the largest logit; of equals, to the first. Given objects too."""
    script: Script = [{}, {"tracks": {0: sure(1, 2), 1: sure(2, 3)}}]
    script[1]["tracks"][1].mask[0, 2] = 6.0
    for exclusive in (False, True):
        (_, output), stream = run(script, given={7: pixels(1), 8: pixels(3)}, exclusive=exclusive)
        assert output.track_ids == [7, 8] and stream.state is not None
        assert [(row > 0).sum().item() for row in output.mask_logits] == ([1, 2] if exclusive else [2, 2])
        assert torch.equal(stream.state.masks[:2], output.mask_logits > 0)


def test_a_found_track_does_not_jump() -> None:
    """From cell 0 it may reach 4 cells far; the other corner is found for itself. A given object may jump."""
    corner = CELLS * CELLS - 1
    detections = {0: sure(0)}
    jump = {"tracks": {0: sure(2, corner), 1: sure(2, corner)}, "detections": {0: sure(corner)}}
    (_, output), _ = run([{"detections": detections}, jump], given={7: pixels(0)}, reach=1.0)
    assert output.track_ids == [7, 1, 8]
    assert [(row > 0).nonzero().tolist() for row in output.mask_logits] == [[[0, 2], [7, 7]], [[0, 2]], [[7, 7]]]


def test_a_track_that_jumps_altogether_is_hidden_and_may_come_back_anywhere() -> None:
    """But in one place: cell 0 is far from the larger part."""
    script: Script = [{"detections": {0: sure(0)}}, {"tracks": {0: sure(63)}}, {"tracks": {0: sure(0, 62, 63)}}]
    outputs, _ = run(script, reach=0.5)
    assert [output.visible.tolist() for output in outputs] == [[True], [False], [True]]
    assert torch.equal(outputs[2].mask_logits[0] > 0, cells(62, 63) > 0)


def test_a_found_track_that_looks_like_another_object_is_hidden_until_it_looks_like_itself(
    two_halves: None,
) -> None:
    """A given object may jump."""
    left, right = sure(0, 1), sure(6, 7)
    script: Script = [{"detections": {0: left}}, {"tracks": {0: right, 1: right}}, {"tracks": {0: left, 1: left}}]
    outputs, _ = run(script, given={7: pixels(0, 1)}, appearance=0.75)
    assert [output.track_ids for output in outputs] == [[7, 1]] * 3
    assert [output.visible.tolist() for output in outputs] == [[True, True], [True, False], [True, True]]
    assert (outputs[1].mask_logits > 0).flatten(1).sum(dim=1).tolist() == [2, 0]
    assert all(output.visible.all() for output in run(script, given={7: pixels(0, 1)})[0]), "off unless a config asks"


def test_a_found_track_that_stays_on_another_object_becomes_its_track(two_halves: None) -> None:
    """After five frames; the other object is returned once its track is old enough, however sure the row is."""
    script: Script = [{"detections": {0: sure(0, 1)}}, *({"tracks": {0: sure(6, 7)}} for _ in range(8))]
    outputs, _ = run(script, appearance=0.75, min_age=3, at_once=0.5)
    assert [output.track_ids for output in outputs] == [[1]] * 6 + [[2]] * 3
    assert [output.visible.tolist() for output in outputs] == [[True], *[[False]] * 7, [True]]
    assert torch.equal(outputs[-1].mask_logits[0], cells(6, 7))


def test_a_restored_stream_knows_what_its_tracks_look_like(two_halves: None) -> None:
    left, right = sure(0, 1), sure(6, 7)
    stream, model = scripted([{"detections": {0: left}}, {"tracks": {0: left}}, {"tracks": {0: right}}])
    settings = replace(stream.settings, appearance=0.75)
    stream = Stream(model, settings, label_set="things", detect=True)  # type: ignore[arg-type]
    stream.step(frame())
    restored = Stream.from_state_dict(model, settings, stream.state_dict())  # type: ignore[arg-type]
    assert [restored.step(frame()).visible.tolist() for _ in range(2)] == [[True], [False]]


def test_appearance_is_of_the_inside_of_a_mask() -> None:
    """A cell of stride 8 that is covered by a quarter of the best one's part does not count."""
    x = torch.zeros(2, 2, 2)
    x[0, 0, 0], x[1, 0, 1] = 4.0, 4.0
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :2, :2] = mask[0, 0, 2] = True
    assert torch.allclose(appearance(mask, x)[0], torch.nn.functional.normalize(torch.tensor([3.0, -1.0]), dim=0))


def test_a_track_is_given_out_once_it_is_old_enough() -> None:
    """A given object is, at once."""
    script: Script = [{"detections": {0: sure(0)}}, *({"tracks": {0: sure(9), 1: sure(0)}} for _ in range(2))]
    outputs, _ = run(script, given={7: pixels(9)}, min_age=3)
    assert [output.track_ids for output in outputs] == [[7, 1]] * 3
    assert [output.visible.tolist() for output in outputs] == [[True, False], [True, False], [True, True]]
    assert shown_rows(outputs[1]).track_ids == [7] and shown_rows(outputs[2]).track_ids == [7, 1]


def test_a_track_that_was_found_for_sure_is_returned_at_once() -> None:
    script: Script = [{"detections": {0: sure(0), 1: sure(9, of=0.6)}}, {"tracks": {0: sure(0), 1: sure(9)}}, {}]
    outputs, _ = run(script, min_age=3, at_once=0.8)
    assert [output.visible.tolist() for output in outputs] == [[True, False], [True, False], [False]]
    assert outputs[2].track_ids == [1]  # hidden; the other one ended


def test_a_track_that_hides_while_it_is_young_ends() -> None:
    script: Script = [{"detections": {0: sure(0)}}, {}]
    assert [output.track_ids for output in run(script, min_age=3)[0]] == [[1], []]
    assert [output.track_ids for output in run(script)[0]] == [[1], [1]]


def test_a_detection_of_a_few_cells_is_no_track() -> None:
    detections = {0: sure(0, 1), 1: sure(20, 21, 22)}
    (output,), _ = run([{"detections": detections}], birth_cells=3)
    assert torch.equal(output.mask_logits, cells(20, 21, 22)[None])


def test_the_part_that_two_masks_share_is_of_the_smaller_one() -> None:
    masks = torch.stack([cells(1, 2, 3, 4), cells(4, 5), cells()]) > 0
    assert shared(masks, masks).tolist() == [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_large_part_far_from_its_track_becomes_a_track(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells 6 and 7, at the other end of the row, are as large as what is kept."""
    monkeypatch.setattr(gates, "_ELSEWHERE", 1)  # frames are too small here for four times the reach
    script: Script = [
        {"detections": {0: sure(0, 1)}},
        {"tracks": {0: sure(0, 1, 6, 7)}},
        {"tracks": {0: sure(0, 1, 6, 7), 1: sure(0, 1, 6, 7, of=0.8)}},
    ]
    outputs, _ = run(script, reach=0.25, birth_iou=0.5, exclusive=True)
    assert [output.track_ids for output in outputs] == [[1], [1, 2], [1, 2]]
    for output in outputs[1:]:
        assert torch.equal(output.mask_logits > 0, torch.stack([cells(0, 1), cells(6, 7)]) > 0)
    script[1]["tracks"][0] = sure(0, 1, 7)
    assert [output.track_ids for output in run(script[:2], reach=0.25, birth_cells=2)[0]] == [[1], [1]], "too small"
    young, _ = run(script[:2], reach=0.25, min_age=3, at_once=0.5)
    assert young[1].visible.tolist() == [True, False], "it is returned when it is old enough, however sure the row is"


def test_a_detection_of_two_things_far_apart_starts_a_track_of_the_larger() -> None:
    """Cells 0 to 2 are one part, 60 to 63 the larger one, far from it; 39 is near that."""
    script: Script = [
        {"detections": {0: sure(0, 1, 2, 39, 60, 61, 62, 63)}},
        {"tracks": {0: sure(60, 61, 62, 63)}, "detections": {0: sure(0, 1, 2)}},
    ]
    (first, second), _ = run(script, reach=0.25)
    assert torch.equal(first.mask_logits[0] > 0, cells(39, 60, 61, 62, 63) > 0)
    assert second.track_ids == [1, 2], "the other one is detected too"
    assert run(script)[0][0].mask_logits[0].gt(0).sum() == 8, "off unless a config asks for it"


@pytest.mark.parametrize(
    ("key", "value"), [("DUPLICATE_OVERLAP", 1.5), ("REACH", -1.0), ("MIN_AGE", 0), ("BIRTH_CELLS", -1)]
)
def test_values_that_are_none_are_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"TEST\.AUSM\.{key}: {value}, expected"):
        VideoSettings.from_config(tiny_cfg(f"TEST.AUSM.{key}", value))
