# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""One function, three forms: parallel, frame by frame, streaming; and what crosses from frame to frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.meta_arch import AUSM
from ausm_d2.modeling.pixel_decoder import Predictions
from ausm_d2.streaming.stream import Stream
from ausm_d2.training.teacher_forcing import TeacherForcing, draw_switch_times, preprocess
from tests.tiny import clip, tiny_model


def propagating(propagate: str, *opts: Any) -> AUSM:
    """A model whose ID vectors count, as after training, also where they are not marked."""
    model = tiny_model("MODEL.AUSM.PROPAGATE", propagate, *opts)
    if model.object_vectors is not None:
        torch.nn.init.ones_(model.object_vectors.id_scale)
    return model


def teacher_forced(model: AUSM, items: list[dict], seed: int = 0) -> tuple[Tensor, Tensor, TeacherForcing, list[str]]:
    """What the model's forward prepares: images, ID vectors, forcing, heads."""
    images, targets = model._collate(items)
    rng = torch.Generator().manual_seed(seed)
    rows = targets.classes.shape[1]
    ids = model.id_pool(torch.stack([model.id_pool.sample(rows, generator=rng) for _ in items]))
    prompted = torch.arange(len(items)) % 2 == 1
    switch = draw_switch_times(targets.visible, prompted=prompted, prompt_index="frame", generator=rng)
    return images, ids, preprocess(targets, switch), [item["head"] for item in items]


def assert_same(one: list[Predictions], other: list[Predictions], forcing: TeacherForcing) -> None:
    """Equal to 1e-4 relative, on all rows that mean something."""
    alive = forcing.in_use.flatten(0, 1)
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            keep = torch.cat([alive, alive.new_ones(len(alive), x.shape[1] - alive.shape[1])], dim=1)
            finite = torch.isfinite(x[keep])
            assert torch.equal(finite, torch.isfinite(y[keep]))
            x, y = x[keep][finite], y[keep][finite]
            assert (x - y).norm() <= 1e-4 * x.norm()


@pytest.mark.parametrize(
    ("frames", "propagate"), [*((frames, "marker") for frames in range(1, 9)), (1, "vectors"), (6, "vectors")]
)
def test_parallel_equals_iterative(frames: int, propagate: str) -> None:
    model = propagating(propagate)
    items = [clip(frames, 1 + frames % 3, seed=1), clip(frames, 3, seed=2), clip(frames, 2, head="object", seed=3)]
    prepared = teacher_forced(model, items)
    with torch.no_grad():
        assert_same(model.forward_parallel(*prepared).layers, model.forward_iterative(*prepared).layers, prepared[2])


@pytest.mark.parametrize(("checkpointing", "propagate"), [(False, "marker"), (True, "marker"), (False, "vectors")])
def test_gradients_of_parallel_equal_those_of_the_frame_loop(checkpointing: bool, propagate: str) -> None:
    model = propagating(propagate, "MODEL.AUSM.TRAIN.CHECKPOINTING", checkpointing)
    prepared = teacher_forced(model, [clip(5, 3, seed=1), clip(5, 2, seed=2)])
    weights = None
    gradients = []
    for form in (model.forward_parallel, model.forward_iterative):
        model.zero_grad()
        images, ids, forcing, heads = prepared
        layers = form(images, ids.detach(), forcing, heads).layers
        if weights is None:
            weights = [[torch.randn_like(x) for x in layer] for layer in layers]
        alive = prepared[2].in_use.flatten(0, 1)
        loss = torch.zeros(())
        for layer, weight in zip(layers, weights, strict=True):
            for x, w in zip(layer, weight, strict=True):
                keep = torch.cat([alive, alive.new_ones(len(alive), x.shape[1] - alive.shape[1])], dim=1)
                loss = loss + (x * w)[keep].sum()
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    total = torch.stack([gradient.norm() for gradient in gradients[0].values()]).norm()
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient - other).norm() <= 1e-4 * gradient.norm() + 1e-6 * total, name


@pytest.mark.parametrize("propagate", ["marker", "vectors"])
def test_no_frame_sees_the_future(propagate: str) -> None:
    model = propagating(propagate).eval()
    images, ids, forcing, heads = teacher_forced(model, [clip(5, 3)])
    with torch.no_grad():
        before = model.forward_parallel(images, ids, forcing, heads).layers
        images = images.clone()
        images[:, 3] += 1.0
        forcing.history = forcing.history.clone()
        forcing.history[:, 4] = 1 - forcing.history[:, 4]  # M_3, marked on the frame after
        after = model.forward_parallel(images, ids, forcing, heads).layers
    for a, b in zip(before, after, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x[:3], y[:3])
    for x, y in zip(before[-1], after[-1], strict=True):
        assert not torch.equal(x[3], y[3])
        assert not torch.equal(x[4], y[4])


@pytest.mark.parametrize("propagate", ["marker", "vectors"])
def test_rows_not_in_use_influence_nothing(propagate: str) -> None:
    model = propagating(propagate).eval()
    images, ids, forcing, heads = teacher_forced(model, [clip(4, 2)])
    padded_ids = torch.cat([ids, torch.randn_like(ids)], dim=1)
    padded = TeacherForcing(
        switch=forcing.switch,
        in_use=torch.cat([forcing.in_use, torch.zeros_like(forcing.in_use)], dim=2),
        history=torch.cat([forcing.history, torch.zeros_like(forcing.history)], dim=2),
        track=forcing.track,
        detect=forcing.detect,
    )
    with torch.no_grad():
        alone = model.forward_parallel(images, ids, forcing, heads).layers[-1]
        beside = model.forward_parallel(images, padded_ids, padded, heads).layers[-1]
    torch.testing.assert_close(beside.mask_logits[:, 4:], alone.mask_logits[:, 2:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(beside.class_logits[:, 4:], alone.class_logits[:, 2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("propagate", ["marker", "vectors"])
def test_stream_equals_parallel(propagate: str) -> None:
    """Prompted at the first frame: the stream's own history is teacher forced and compared frame by frame."""
    model = propagating(propagate).eval()
    item = clip(6, 2, head="object")
    stream = Stream(model, head="object", detect=False, fg_threshold=0.5)
    prompts = {7: item["masks"][0, 0], 9: item["masks"][1, 0]}
    outputs, histories = [], []
    for t in range(6):
        outputs.append(stream.step(item["image"][t], prompts if t == 0 else None))
        assert stream.state is not None
        histories.append(stream.state.masks[:2].float())
    images, _ = model._collate([item])
    ids = model.id_pool(stream.state.ids[:2])[None]
    in_use = torch.ones(1, 6, 2, dtype=torch.bool)
    in_use[:, 0] = False
    history = torch.stack([torch.zeros_like(histories[0]), *histories[:-1]])[None]
    forcing = TeacherForcing(
        switch=torch.zeros(1, 2), in_use=in_use, history=history, track=in_use, detect=torch.zeros_like(in_use)
    )
    with torch.no_grad():
        parallel = model.forward_parallel(images, ids, forcing, ["object"]).layers[-1]
    for t in range(1, 6):
        assert outputs[t].track_ids == [7, 9]
        torch.testing.assert_close(outputs[t].mask_logits, parallel.mask_logits[t, :2], rtol=1e-4, atol=1e-4)
        expected = parallel.class_logits[t, :2].softmax(-1)[:, :-1].double()
        torch.testing.assert_close(outputs[t].probabilities, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["parallel", "iterative", "rollout"])
@pytest.mark.parametrize("prompt_index", ["frame", "zero"])
def test_every_training_mode_gives_finite_losses_and_gradients(mode: str, prompt_index: str) -> None:
    model = tiny_model("MODEL.AUSM.TRAIN.MODE", mode, "MODEL.AUSM.PROMPT_INDEX", prompt_index,
                       "MODEL.AUSM.TRAIN.HISTORY_NOISE.ENABLED", mode == "parallel")  # fmt: skip
    losses = model([clip(3, 3), clip(3, 2, head="object", seed=4)])
    assert len(losses) == 6 * 4  # six losses after each of three layers, and before the first
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is not trained"
        assert torch.isfinite(parameter.grad).all(), name


def test_empty_clip_and_one_frame_clip() -> None:
    model = tiny_model()
    for items in ([clip(3, 0)], [clip(1, 2)], [clip(1, 0), clip(1, 1)]):
        losses = model(items)
        assert all(torch.isfinite(value) for value in losses.values())
        if all(len(item["classes"]) == 0 for item in items):
            assert losses["loss_trk_mask"] == 0 and losses["loss_det_dice"] == 0 and losses["loss_det_ce"] > 0


def test_clips_of_different_sizes_share_a_batch() -> None:
    model = tiny_model()
    small = clip(2, 1)
    small["image"], small["masks"] = small["image"][..., :40, :50], small["masks"][..., :40, :50]
    losses = model([small, clip(2, 2)])
    assert all(torch.isfinite(value) for value in losses.values())


def test_training_lowers_the_loss_by_half() -> None:
    model = tiny_model("MODEL.AUSM.TRAIN.PROMPT_PROB", 1.0)
    items = [clip(3, 2, seed=5)]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(40):
        loss = sum(model(items).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(float(loss))
    assert sum(history[-5:]) < 0.5 * sum(history[:5])


def test_object_vectors_say_which_object_a_row_follows_and_marks_are_not_made() -> None:
    model = tiny_model("MODEL.AUSM.PROPAGATE", "vectors").eval()
    images, ids, forcing, heads = teacher_forced(model, [clip(3, 2, seed=5)])
    assert forcing.in_use[0, 2].all()
    with torch.no_grad():
        before = model.forward_parallel(images, ids, forcing, heads).layers[-1].mask_logits[2]
        # Whatever vectors of the pool they wear, rows whose masks are exchanged are exchanged, and V sees no marks.
        forcing.history = forcing.history.flip(2)
        forcing.in_use = forcing.in_use.flip(2)
        after = model.forward_parallel(images, ids.roll(1, dims=-1), forcing, heads).layers[-1].mask_logits[2]
    torch.testing.assert_close(after[:2], before[:2].flip(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after[2:], before[2:], rtol=1e-4, atol=1e-4)


def test_unknown_choices_and_heads_are_named() -> None:
    with pytest.raises(UserError, match=r"MODEL\.AUSM\.TRAIN\.MODE: 'both' is not one of parallel"):
        tiny_model("MODEL.AUSM.TRAIN.MODE", "both")
    with pytest.raises(UserError, match=r"MODEL\.AUSM\.PROPAGATE: 'marks' is not one of marker, vectors"):
        tiny_model("MODEL.AUSM.PROPAGATE", "marks")
    with pytest.raises(UserError, match=r"MODEL\.AUSM\.SPATIAL_REDUCTION: 0, expected 1 or more"):
        tiny_model("MODEL.AUSM.SPATIAL_REDUCTION", 0)
    with pytest.raises(UserError, match="no head 'coco'"):
        tiny_model()([clip(2, 1, head="coco")])


@pytest.mark.parametrize(("head", "propagate"), [("synthvis", "marker"), ("object", "marker"), ("object", "vectors")])
def test_every_parameter_has_a_gradient_whatever_the_label_sets_of_the_batch(head: str, propagate: str) -> None:
    """Distributed training waits for all of them."""
    model = tiny_model("MODEL.AUSM.TRAIN.FRAME_CLASS_WEIGHT", 1.0, "MODEL.AUSM.PROPAGATE", propagate)
    sum(model([clip(3, 2, head=head, seed=1)]).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_frozen_frame_encoder_says_the_same_in_training() -> None:
    model = tiny_model("MODEL.AUSM.FRAME_ENCODER.FREEZE_AT", "encoder", "MODEL.SWIN.DROP_PATH_RATE", 0.9).train()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.encode(images).x, model.encode(images).x)
    assert model.pixel_decoder.training


def test_checkpointing_keeps_less_and_changes_nothing() -> None:
    """With the stochastic depth of a frame encoder that learns too: the same blocks are left out both times."""
    kept, losses, gradients = [], [], []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for checkpointing in (False, True):
        model = tiny_model(
            *("MODEL.AUSM.TRAIN.CHECKPOINTING", checkpointing, "MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", 2),
            *("MODEL.SWIN.DROP_PATH_RATE", 0.5, "MODEL.SWIN.DEPTHS", [2, 2, 2, 2]),
        )
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            torch.manual_seed(1)
            loss = sum(model([clip(3, 2)]).values())
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert torch.equal(*losses) and kept[1] < 0.17 * kept[0]  # no kind of block is left out
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
