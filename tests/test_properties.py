# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Properties that hold for any input, on inputs that Hypothesis makes up."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ausm_d2.errors import UserError
from ausm_d2.masks import png, rle
from ausm_d2.modeling.history import HistoryMarker
from ausm_d2.streaming.slots import Slots
from ausm_d2.training.criterion import SetCriterion
from ausm_d2.training.matcher import HungarianMatcher, PointTargets
from ausm_d2.training.targets import ClipTargets, FrameTargets
from ausm_d2.training.teacher_forcing import draw_switch_times, preprocess
from tests.tiny import clip, tiny_model

few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
seeds = st.integers(0, 2**31 - 1)
masks = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@few
@given(masks)
def test_run_lengths_give_back_the_mask_and_its_measures(mask: np.ndarray) -> None:
    text = rle.encode(mask)
    assert np.array_equal(rle.decode(text), mask)
    measured = rle.measure([text])
    assert measured.areas.tolist() == [mask.sum()] and not measured.broken.any()
    assert rle.to_rle(mask, *mask.shape) == text
    part, x, y = rle.cut_out(text, mask.shape)
    again = np.zeros(mask.shape, bool)
    again[y : y + part.shape[1], x : x + part.shape[0]] = part.T > 0
    assert np.array_equal(again, mask)


@few
@given(st.text(max_size=12), st.integers(1, 9), st.integers(1, 9))
def test_text_that_is_no_run_length_is_found_before_pycocotools_reads_it(text: str, height: int, width: int) -> None:
    entry = {"size": [height, width], "counts": text}
    try:
        found = rle.to_rle(entry, height, width)
    except ValueError:
        return
    if found is not None and rle.first_invalid([found]) is None:
        assert rle.decode(found).sum() == rle.measure([found]).areas[0]


@few
@given(arrays.arrays(np.int32, (3, 4), elements=st.integers(0, 65535)))
def test_written_ids_are_read_again(ids: np.ndarray) -> None:
    picture = png.decode_picture(io.BytesIO(png.encode_mask_png(ids)))
    assert np.array_equal(picture.values, ids)


@few
@given(seeds, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_marks_are_a_weighted_mean_whatever_the_order_of_the_rows(seed: int, rows: int, h: int, w: int) -> None:
    """And rows without a mask, or padding, change nothing; features of 1 x 1 too."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randn(1, rows, 5, generator=rng)
    m = (torch.rand(1, rows, 2 * h, 2 * w, generator=rng) < 0.4).float()
    marker = HistoryMarker()
    marked = marker(ids, m)
    assert marked.shape == (1, 5, h, w) and marked.isfinite().all()
    low, high = ids.min(dim=1).values.clamp(max=0), ids.max(dim=1).values.clamp(min=0)
    assert (marked >= low[..., None, None] - 1e-5).all() and (marked <= high[..., None, None] + 1e-5).all()
    order = torch.randperm(rows, generator=rng)
    torch.testing.assert_close(marker(ids[:, order], m[:, order]), marked, rtol=1e-5, atol=1e-5)
    padded = marker(torch.cat([ids, 9 + ids], 1), torch.cat([m, torch.zeros_like(m)], 1))
    torch.testing.assert_close(padded, marked, rtol=1e-5, atol=1e-5)
    assert not marker(ids, torch.zeros_like(m)).any()


def _targets(seed: int, rows: int, frames: int) -> ClipTargets:
    """Masks that may be empty, or one pixel; labels that may be missing."""
    rng = torch.Generator().manual_seed(seed)
    m = torch.rand(rows, frames, 16, 16, generator=rng) < torch.rand(rows, frames, 1, 1, generator=rng) ** 4
    m &= torch.rand(rows, frames, 1, 1, generator=rng) < 0.7
    item = {**clip(frames, 0), "image": torch.zeros(frames, 3, 16, 16, dtype=torch.uint8), "masks": m}
    item |= {"classes": torch.randint(0, 6, (rows,), generator=rng)}
    item |= {"labelled": torch.rand(frames, generator=rng) < 0.8}
    return ClipTargets.from_items([item], size=(16, 16), device=torch.device("cpu"))


@few
@given(seeds, st.integers(0, 5), st.integers(1, 4), st.booleans(), st.sampled_from(["frame", "zero"]))
def test_an_instance_is_detected_up_to_its_switch_and_tracked_after_it(
    seed: int, rows: int, frames: int, prompted: bool, prompt_index: str
) -> None:
    targets = _targets(seed, rows, frames)
    visible = targets.visible & targets.labelled[:, :, None]
    switch = draw_switch_times(visible, prompted=torch.tensor([prompted]), prompt_index=prompt_index)
    forcing = preprocess(targets, switch)
    assert not (forcing.track & forcing.detect).any()
    time = torch.arange(frames)[None, :, None]
    assert not (forcing.track & (time <= switch[:, None])).any()
    assert not (forcing.detect & ((time > switch[:, None]) | ~visible)).any()
    assert torch.equal(forcing.detect | forcing.track, (forcing.detect | forcing.track) & targets.labelled[..., None])
    assert not forcing.history[~forcing.in_use].any()
    assert not forcing.in_use[:, :, ~targets.valid[0]].any(), "padding is never a row"
    never = ~visible.any(dim=1)
    assert (switch[never] == frames).all() and (switch[~never] < frames).all()


@few
@given(seeds, st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_the_matcher_pairs_every_instance_once_whatever_the_costs(
    seed: int, queries: int, rows: int, diverged: bool
) -> None:
    """More instances than queries: as many as there are; a model that has diverged: some pairs, no crash."""
    rng = torch.Generator().manual_seed(seed)
    truth = torch.rand(2, rows, 8, 8, generator=rng) < 0.3
    detect = torch.rand(2, rows, generator=rng) < 0.7
    logits = torch.randn(2, queries, 2, 2, generator=rng)
    if diverged:
        logits[0, 0] = float("nan")
    matcher = HungarianMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0)
    classes = torch.randint(0, 3, (2, rows), generator=rng)
    points = PointTargets(truth, detect, num_points=16)
    frame, row, instance = matcher(torch.randn(2, queries, 4, generator=rng), logits, classes, points)
    for f in range(2):
        assert len(frame[frame == f]) == min(int(detect[f].sum()), queries)
        for which in (row[frame == f].tolist(), instance[frame == f].tolist()):
            assert len(which) == len(set(which))
    assert detect[frame, instance].all()


@pytest.fixture(scope="module")
def criterion() -> SetCriterion:
    return tiny_model().criterion


@few
@given(seeds, st.integers(0, 4), st.integers(1, 3))
def test_losses_are_finite_and_not_negative_for_degenerate_masks(
    criterion: SetCriterion, seed: int, rows: int, frames: int
) -> None:
    targets = _targets(seed, rows, frames)
    switch = draw_switch_times(targets.visible, prompted=torch.tensor([False]), prompt_index="frame")
    forcing = preprocess(targets, switch)
    rng = torch.Generator().manual_seed(seed)
    count = targets.classes.shape[1] + 3
    from ausm_d2.modeling.pixel_decoder import Predictions

    layers = [
        Predictions(
            torch.randn(frames, count, 7, generator=rng, requires_grad=True),
            (10 * torch.randn(frames, count, 4, 4, generator=rng)).requires_grad_(),
        )
    ]
    flat = FrameTargets(
        masks=targets.masks[0],
        classes=targets.classes.expand(frames, -1),
        visible=targets.visible[0],
        track=forcing.track[0],
        detect=forcing.detect[0],
        labelled=targets.labelled[0],
        exhaustive=torch.ones(frames, dtype=torch.bool),
    )
    losses = criterion(layers, flat)
    total = sum(losses.values())
    total.backward()
    assert all(loss.isfinite() and loss >= 0 for loss in losses.values())
    assert all(each.grad is not None and each.grad.isfinite().all() for each in layers[0])


@few
@given(st.lists(st.tuples(st.sampled_from(["find", "give", "remove", "see"]), seeds), max_size=25))
def test_no_slot_or_vector_is_ever_held_twice_and_prompted_objects_stay(actions: list[tuple[str, int]]) -> None:
    slots, given_ids = Slots.empty(4, 2, seed=0), set()
    for frame, (action, seed) in enumerate(actions):
        rng = np.random.default_rng(seed)
        if action == "find":
            scores = torch.from_numpy(rng.random((3, 2)))
            slots.allocate(range(int(rng.integers(4))), scores, frame_index=frame)
        elif action == "give":
            wanted = [int(each) for each in rng.integers(1, 9, int(rng.integers(3)))]
            try:
                slots.give(slots.reserve(dict.fromkeys(wanted), frame), frame)
            except UserError:
                assert len(given_ids | set(wanted)) > 4
                continue
            given_ids |= set(wanted)
        elif action == "remove" and slots.followed():
            gone = slots.followed()[int(rng.integers(len(slots.followed())))]
            slots.remove(gone)
            given_ids.discard(gone)
        else:
            slots.update(torch.from_numpy(rng.random((4, 2))), torch.from_numpy(rng.random(4) < 0.5), frame)
        ids = slots.ids[slots.in_use].tolist()
        assert len(ids) == len(set(ids)) and len(slots.followed()) == len(set(slots.followed())) == len(ids)
        assert given_ids <= set(slots.followed()) and slots.next_track_id > max(slots.followed(), default=0)
