# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""One function, three forms: parallel, frame by frame, streaming; and the information that passes between frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ausm_d2.meta_arch import AUSM
from ausm_d2.modeling.pixel_decoder import Predictions
from ausm_d2.training import forms
from ausm_d2.training.teacher_forcing import TeacherForcing, draw_switch_times, preprocess
from tests.streaming.opened import open_stream
from tests.tiny import clip, tiny_model


def teacher_forced(model: AUSM, items: list[dict], seed: int = 0) -> tuple[Tensor, Tensor, TeacherForcing, list[str]]:
    """What the model's forward prepares: images, ID vectors, forcing, label sets."""
    images, targets = model.collate(items)
    rng = torch.Generator().manual_seed(seed)
    rows = targets.classes.shape[1]
    ids = model.id_pool(torch.stack([model.id_pool.sample(rows, generator=rng) for _ in items]))
    prompted = torch.arange(len(items)) % 2 == 1
    switch = draw_switch_times(targets.visible, prompted=prompted, prompt_index="frame", generator=rng)
    return images, ids, preprocess(targets, switch), [item["label_set"] for item in items]


def assert_same(one: list[Predictions], other: list[Predictions], forcing: TeacherForcing) -> None:
    """Assert equality to 1e-4 relative, on all rows in use."""
    alive = forcing.in_use.flatten(0, 1)
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a[:2], b[:2], strict=True):
            keep = torch.cat([alive, alive.new_ones(len(alive), x.shape[1] - alive.shape[1])], dim=1)
            finite = torch.isfinite(x[keep])
            assert torch.equal(finite, torch.isfinite(y[keep]))
            x, y = x[keep][finite], y[keep][finite]
            assert (x - y).norm() <= 1e-4 * x.norm()


def assert_parallel_equals_iterative(model: AUSM, frames: int) -> None:
    """Of clips of two label sets, with 1 to 3 instances."""
    items = [clip(frames, 1 + frames % 3, seed=1), clip(frames, 3, seed=2), clip(frames, 2, label_set="object", seed=3)]
    prepared = teacher_forced(model, items)
    with torch.no_grad():
        one, other = forms.parallel(model, *prepared), forms.iterative(model, *prepared)
    assert_same(one.layers, other.layers, prepared[2])
    assert torch.allclose(one.x, other.x, rtol=1e-4, atol=1e-5)


PROPOSALS = ("MODEL.AUSM.PIXEL_DECODER.QUERIES", "proposals")


def test_parallel_iterative_and_stream_are_equal_with_proposals() -> None:
    assert_parallel_equals_iterative(tiny_model(*PROPOSALS), 3)
    assert_stream_equals_parallel(tiny_model(*PROPOSALS).eval())


@pytest.mark.parametrize("frames", range(1, 9))
def test_parallel_equals_iterative(frames: int) -> None:
    assert_parallel_equals_iterative(tiny_model(), frames)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_parallel_equal_those_of_the_frame_loop(checkpointing: bool) -> None:
    assert_equal_gradients(tiny_model("MODEL.AUSM.TRAIN.CHECKPOINTING", checkpointing))


def assert_equal_gradients(model: AUSM) -> None:
    """Of the parallel form and of the frame loop."""
    prepared = teacher_forced(model, [clip(5, 3, seed=1), clip(5, 2, seed=2)])
    weights = None
    gradients = []
    for form in (forms.parallel, forms.iterative):
        model.zero_grad()
        images, ids, forcing, label_sets = prepared
        layers = form(model, images, ids.detach(), forcing, label_sets).layers
        if weights is None:
            weights = [[torch.randn_like(x) for x in layer[:2]] for layer in layers]
        alive = prepared[2].in_use.flatten(0, 1)
        loss = torch.zeros(())
        for layer, weight in zip(layers, weights, strict=True):
            for x, w in zip(layer[:2], weight, strict=True):
                keep = torch.cat([alive, alive.new_ones(len(alive), x.shape[1] - alive.shape[1])], dim=1)
                loss = loss + (x * w)[keep].sum()
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    total = torch.stack([gradient.norm() for gradient in gradients[0].values()]).norm()
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient - other).norm() <= 1e-4 * gradient.norm() + 1e-6 * total, name


def test_no_frame_sees_the_future() -> None:
    assert_no_frame_sees_the_future(tiny_model().eval())


def assert_no_frame_sees_the_future(model: AUSM) -> None:
    """Neither its image nor its mask."""
    images, ids, forcing, label_sets = teacher_forced(model, [clip(5, 3)])
    with torch.no_grad():
        before = forms.parallel(model, images, ids, forcing, label_sets).layers
        images = images.clone()
        images[:, 3] += 1.0
        forcing.history = forcing.history.clone()
        forcing.history[:, 4] = 1 - forcing.history[:, 4]  # M_3, marked on the frame after
        after = forms.parallel(model, images, ids, forcing, label_sets).layers
    for a, b in zip(before, after, strict=True):
        for x, y in zip(a[:2], b[:2], strict=True):
            assert torch.equal(x[:3], y[:3])
    for x, y in zip(before[-1][:2], after[-1][:2], strict=True):
        assert not torch.equal(x[3], y[3])
        assert not torch.equal(x[4], y[4])


def test_rows_not_in_use_influence_nothing() -> None:
    assert_rows_not_in_use_influence_nothing(tiny_model().eval())


def assert_rows_not_in_use_influence_nothing(model: AUSM) -> None:
    """Two rows beside two that are padding."""
    images, ids, forcing, label_sets = teacher_forced(model, [clip(4, 2)])
    padded_ids = torch.cat([ids, torch.randn_like(ids)], dim=1)
    padded = TeacherForcing(
        switch=forcing.switch,
        in_use=torch.cat([forcing.in_use, torch.zeros_like(forcing.in_use)], dim=2),
        history=torch.cat([forcing.history, torch.zeros_like(forcing.history)], dim=2),
        track=forcing.track,
        detect=forcing.detect,
    )
    with torch.no_grad():
        alone = forms.parallel(model, images, ids, forcing, label_sets).layers[-1]
        beside = forms.parallel(model, images, padded_ids, padded, label_sets).layers[-1]
    torch.testing.assert_close(beside.mask_logits[:, 4:], alone.mask_logits[:, 2:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(beside.class_logits[:, 4:], alone.class_logits[:, 2:], rtol=1e-4, atol=1e-4)


def test_stream_equals_parallel() -> None:
    assert_stream_equals_parallel(tiny_model().eval())


def assert_stream_equals_parallel(model: AUSM) -> None:
    """Prompted at the first frame; the stream's history is teacher-forced, and outputs are compared frame by frame."""
    item = clip(6, 2, label_set="object")
    stream = open_stream(model, label_set="object", detect=False)
    prompts = {7: item["masks"][0, 0].numpy(), 9: item["masks"][1, 0].numpy()}
    outputs, histories = [], []
    for t in range(6):
        outputs.append(stream.step(item["image"][t].permute(1, 2, 0).numpy(), prompts if t == 0 else None))
        assert stream.state is not None
        histories.append(stream.state.masks[:2].float())
    images, _ = model.collate([item])
    ids = model.id_pool(stream.state.slots.ids[:2])[None]
    in_use = torch.ones(1, 6, 2, dtype=torch.bool)
    in_use[:, 0] = False
    history = torch.stack([torch.zeros_like(histories[0]), *histories[:-1]])[None]
    forcing = TeacherForcing(
        switch=torch.zeros(1, 2), in_use=in_use, history=history, track=in_use, detect=torch.zeros_like(in_use)
    )
    with torch.no_grad():
        parallel = forms.parallel(model, images, ids, forcing, ["object"]).layers[-1]
    for t in range(1, 6):
        assert outputs[t].track_ids == [7, 9]
        torch.testing.assert_close(outputs[t].mask_logits, parallel.mask_logits[t, :2], rtol=1e-4, atol=1e-4)
        expected = parallel.class_logits[t, :2].softmax(-1)[:, :-1].double()
        torch.testing.assert_close(outputs[t].probabilities, expected, rtol=1e-4, atol=1e-5)
