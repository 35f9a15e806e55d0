# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Optional rules of tracks: score, unsure rows, and detections of tracked objects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ausm_d2.streaming.segmenter import VideoTracks
from ausm_d2.streaming.stream import Stream
from ausm_d2.streaming.visits import visits
from tests.streaming.scripted import Row, cells, frame, pixels, scripted


def with_settings(script: list[dict[str, dict[int, Row]]], **changes: Any) -> Stream:
    stream, model = scripted(script)
    return Stream(model, replace(stream.settings, **changes), label_set="things", detect=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", (0.9 + 0.3 + 0.6) / 3),
        ("visible", (0.9 + 0.6) / 2),
        ("mask", torch.tensor(5.0).sigmoid().item() * (0.9 + 0.0 + 0.6) / 3),
        ("max", 0.9),
    ],
)
def test_score_of_a_track(rule: str, expected: float) -> None:
    """Of probabilities 0.9, 0.3 and 0.6, with a mask in the first and the last frame."""
    script = [{"detections": {0: Row([0.9, 0.0], 1)}}, {"tracks": {0: Row([0.3, 0.0])}}]
    stream = with_settings([*script, {"tracks": {0: Row([0.6, 0.0], 1, 2)}}], track_score=rule)
    for _ in range(3):
        output = stream.step(frame())
    assert output.mean_probabilities[0, 0].item() == pytest.approx(expected, abs=1e-6)


def test_only_the_last_pass_over_repeated_input_counts_for_scores_too() -> None:
    """An image shown three times: 0.95, 0.5 and 0.2 are a score of 0.2."""
    script = [{"detections": {0: Row([0.95, 0.0], 1)}}, *({"tracks": {0: Row([p, 0.0], 1)}} for p in (0.5, 0.2))]
    stream, _ = scripted(script)
    tracks = VideoTracks(1)
    for visit in visits(1, repeat=3, spatial_traversal=False):
        tracks.keep(stream.step(frame()), stream, visit)
    assert list(tracks.masks) == [1]
    assert tracks.scores[1][0].item() == pytest.approx(0.2, abs=1e-6)


def test_the_score_of_a_repeated_video_is_the_mean_over_its_last_pass() -> None:
    """Frames 1 2 1 2, of which the last two count."""
    found = {"detections": {0: Row([0.9, 0.0], 1)}}
    stream, _ = scripted([found, *({"tracks": {0: Row([p, 0.0], 1)}} for p in (0.8, 0.7, 0.4))])
    tracks = VideoTracks(2)
    for visit in visits(2, repeat=3, spatial_traversal=False):
        tracks.keep(stream.step(frame()), stream, visit)
    assert tracks.scores[1][0].item() == pytest.approx((0.7 + 0.4) / 2, abs=1e-6)


@pytest.mark.parametrize("hide_below", [0.0, 0.5])
def test_an_unsure_tracked_row_counts_as_hidden(hide_below: float) -> None:
    """Its mask is neither in M nor shown; it comes back on its track. Prompted objects are never hidden in this way."""
    unsure = {"tracks": {0: Row([0.1, 0.0], 9), 1: Row([0.4, 0.0], 1)}}
    stream = with_settings(
        [{"detections": {0: Row([0.9, 0.0], 1)}}, unsure, {"tracks": {1: Row([0.8, 0.0], 2)}}], hide_below=hide_below
    )
    assert stream.step(frame(), {7: pixels(9)}).track_ids == [7, 1]
    output = stream.step(frame())
    assert output.track_ids == [7, 1] and output.visible.tolist() == [True, hide_below == 0]
    assert stream.state is not None
    assert stream.state.masks.flatten(1).any(dim=1).tolist() == [True, hide_below == 0, False, False]
    assert stream.step(frame()).visible.tolist() == [False, True]


@pytest.mark.parametrize(("birth_iou", "begun"), [(1.0, 2), (0.4, 1)])
def test_a_detection_of_a_tracked_object_starts_no_track(birth_iou: float, begun: int) -> None:
    """Cells 1 and 2 are tracked; the first detection overlaps them by IoU 1/2, the second one nothing."""
    detections = {0: Row([0.9, 0.0], 1), 1: Row([0.8, 0.0], 20)}
    tracked = Row([0.9, 0.0], 1, 2)
    script = [{"detections": {0: tracked}}, {"tracks": {0: tracked}, "detections": detections}]
    stream = with_settings(script, birth_iou=birth_iou)
    stream.step(frame())
    output = stream.step(frame())
    assert output.track_ids == [1, *range(2, 2 + begun)]
    assert torch.equal(output.mask_logits[-1], cells(20))
