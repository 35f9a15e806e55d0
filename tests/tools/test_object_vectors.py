# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The ablation without marks: its formula, and the same properties as the network it is compared with."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from ausm_d2.checkpoint.convert import Status, convert
from ausm_d2.errors import UserError
from ausm_d2.modeling.position import sine_position
from ausm_d2.streaming.stream import Stream
from ausm_d2.training import forms
from tests.streaming.opened import box, frames, open_stream
from tests.streaming.test_state import assert_same
from tests.tiny import clip, tiny_model
from tests.training import test_forms
from tools.experiments.object_vectors import AUSMObjectVectors, ObjectVectors, VectorMemory


def variant(*opts: Any) -> AUSMObjectVectors:
    """A model whose ID vectors have an effect, as after training."""
    model = tiny_model("MODEL.META_ARCHITECTURE", "AUSMObjectVectors", *opts)
    assert isinstance(model, AUSMObjectVectors)
    torch.nn.init.ones_(model.object_vectors.id_scale)
    return model


def vectors_module() -> ObjectVectors:
    """With no parameter at its initial value, as after training."""
    module = ObjectVectors(8)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def test_object_vectors_are_the_average_over_the_mask() -> None:
    module = vectors_module()
    ids, x = torch.randn(2, 3, 8), torch.randn(2, 4, 8, 4, 6)
    masks = (torch.rand(2, 4, 3, 8, 12) < 0.4).float()
    rows, after = module(ids, x, masks)
    assert rows.shape == (2, 4, 3, 8) and after.shape == (2, 3, 8)
    position = sine_position(4, 6, 8, device=x.device, dtype=x.dtype)
    for b, t, i in [(0, 0, 0), (0, 3, 2), (1, 2, 1)]:
        cover = masks[b, t, i].view(4, 2, 6, 2).mean(dim=(1, 3))
        looks, place = ((cover * of).sum(dim=(1, 2)) / cover.sum() for of in (x[b, t], position))
        expected = torch.nn.functional.layer_norm(looks, (8,), module.norm.weight, module.norm.bias) + place
        torch.testing.assert_close(rows[b, t, i], module.id_scale * ids[b, i] + module.proj(expected))
        if t == 3:
            torch.testing.assert_close(after[b, i], expected)


def test_a_hidden_object_keeps_the_vector_of_the_last_frame_that_showed_it() -> None:
    module = vectors_module()
    ids, x = torch.randn(1, 2, 8), torch.randn(1, 5, 8, 4, 6)
    masks = torch.zeros(1, 5, 2, 8, 12)
    masks[0, 1, 0, 2:5, 3:8] = masks[0, 4, 0, :3, :3] = 1  # the second object is never seen
    rows, after = module(ids, x, masks)
    assert torch.equal(rows[:, 2:4, 0], rows[:, 1:2, 0].expand(-1, 2, -1)) and not torch.equal(rows[:, 4], rows[:, 3])
    nothing = module.id_scale * ids + module.proj(torch.zeros(8))
    torch.testing.assert_close(rows[:, 0], nothing)
    torch.testing.assert_close(rows[:, :, 1], nothing[:, 1:].expand(-1, 5, -1))
    assert not after[:, 1].any()


def test_object_vectors_at_once_equal_frame_by_frame() -> None:
    module = vectors_module()
    ids, x = torch.randn(2, 3, 8), torch.randn(2, 6, 8, 4, 6)
    masks = (torch.rand(2, 6, 3, 8, 12) < 0.1) * (torch.rand(2, 6, 3, 1, 1) < 0.5)
    at_once, after = module(ids, x, masks)
    vectors, steps = torch.zeros(2, 3, 8), []
    for t in range(6):
        rows, vectors = module(ids, x[:, t : t + 1], masks[:, t : t + 1], vectors)
        steps.append(rows)
    torch.testing.assert_close(torch.cat(steps, dim=1), at_once)
    torch.testing.assert_close(vectors, after)


@pytest.mark.parametrize("frames", [1, 6])
def test_its_parallel_form_equals_its_frame_loop(frames: int) -> None:
    test_forms.assert_parallel_equals_iterative(variant(), frames)


def test_its_gradients_are_those_of_its_frame_loop() -> None:
    test_forms.assert_equal_gradients(variant())


def test_its_frames_see_no_future_and_its_rows_no_padding() -> None:
    test_forms.assert_no_frame_sees_the_future(variant().eval())
    test_forms.assert_rows_not_in_use_influence_nothing(variant().eval())


def test_its_stream_equals_its_parallel_form() -> None:
    test_forms.assert_stream_equals_parallel(variant().eval())


def test_object_vectors_say_which_object_a_row_follows_and_marks_are_not_made() -> None:
    model = tiny_model("MODEL.META_ARCHITECTURE", "AUSMObjectVectors").eval()  # id_scale is 0
    images, ids, forcing, label_sets = test_forms.teacher_forced(model, [clip(3, 2, seed=5)])
    assert forcing.in_use[0, 2].all()
    with torch.no_grad():
        before = forms.parallel(model, images, ids, forcing, label_sets).layers[-1].mask_logits[2]
        # Whatever vectors of the pool they wear, rows whose masks are exchanged are exchanged, and V sees no marks.
        forcing.history = forcing.history.flip(2)
        forcing.in_use = forcing.in_use.flip(2)
        after = forms.parallel(model, images, ids.roll(1, dims=-1), forcing, label_sets).layers[-1].mask_logits[2]
    torch.testing.assert_close(after[:2], before[:2].flip(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after[2:], before[2:], rtol=1e-4, atol=1e-4)


def test_a_new_object_in_a_used_slot_does_not_inherit_a_vector() -> None:
    model = variant().eval()
    memory = model.initial_memory((64, 96))
    memory.vectors[:] = 5.0  # of objects that have left
    ids, x = torch.randn(1, 3, 32), torch.randn(1, 1, 32, 8, 12)
    history = torch.zeros(1, 1, 3, 16, 24)
    in_use = torch.tensor([[[True, False, False]]])
    _, _, after = model.mark(x, ids, in_use, history, memory, inplace=False)
    assert isinstance(after, VectorMemory) and after.vectors.shape == (1, 8, 32)
    assert (after.vectors[:, 0] == 5).all() and not after.vectors[:, 1:3].any() and (memory.vectors == 5).all()
    model.mark(x, ids, in_use, history, memory, inplace=True)
    assert (memory.vectors[:, 0] == 5).all() and not memory.vectors[:, 1:3].any()


def test_its_stream_can_be_saved_and_continues_bit_for_bit() -> None:
    model = variant().eval()
    stream, images = open_stream(model), frames(6)
    for t, image in enumerate(images[:3]):
        stream.step(image, {7: box()} if t == 0 else None)
    assert stream.state is not None
    assert isinstance(stream.state.memory, VectorMemory) and stream.state.memory.vectors.any()
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    file.seek(0)
    again = Stream.from_state_dict(model, stream.settings, torch.load(file, weights_only=True))
    for image in images[3:]:
        assert_same(stream.step(image), again.step(image))


def test_it_can_be_trained_from_weights_without_vectors_but_not_the_other_way() -> None:
    plain, vectors = tiny_model(), variant()
    conversion = convert(plain.state_dict(), vectors.state_dict(), added_modules=vectors.added_modules)
    conversion.check("file")
    assert {entry.target.split(".")[0] for entry in conversion.of(Status.RANDOM)} == {"object_vectors"}
    with pytest.raises(UserError, match=r"object_vectors .*which the file was not trained with"):
        conversion.check("file", complete=True)
    with pytest.raises(UserError, match=r"object_vectors .*in the file, not in the model"):
        convert(vectors.state_dict(), plain.state_dict()).check("file")


def test_every_parameter_of_it_has_a_gradient() -> None:
    model = variant()
    sum(model([clip(3, 2, label_set="object", seed=1)]).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
