# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The state of a stream: constant size, saved and loaded bit for bit, forked."""

from __future__ import annotations

import io
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.streaming.output import FrameOutput
from ausm_d2.streaming.state import StreamState
from ausm_d2.streaming.stream import Stream
from tests.streaming.opened import box, frames, open_stream
from tests.tiny import tiny_model


def numbers(state: StreamState) -> dict[str, Any]:
    found = {name: each for name, each in vars(state.slots).items() if isinstance(each, int)}
    return {**found, "frame_index": state.frame_index, "generator": state.slots.generator.get_state().tolist()}


def assert_same(one: FrameOutput, other: FrameOutput) -> None:
    """Bit for bit."""
    for f in fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, f.name


def assert_same_state(one: Stream, other: Stream) -> None:
    """Bit for bit."""
    assert one.state is not None and other.state is not None
    a, b = one.state.tensors(), other.state.tensors()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert numbers(one.state) == numbers(other.state)


@pytest.mark.parametrize("prompted", [False, True])
def test_the_state_has_one_size_after_2_and_60_frames(prompted: bool) -> None:
    stream = open_stream(tiny_model().eval(), detect=not prompted)
    sizes = {}
    for t, image in enumerate(frames(60)):
        stream.step(image, {7: box()} if prompted and t == 0 else None)
        assert stream.state is not None
        if t == 30 and prompted:
            stream.add({i: box() for i in (1, 2, 3)})
        if t in (2, 59):
            sizes[t] = {name: (value.shape, value.dtype) for name, value in stream.state.tensors().items()}
    assert sizes[2] == sizes[59]
    assert stream.state is not None and stream.state.frame_index == 59
    held = sum(each.untyped_storage().nbytes() for each in stream.state.tensors().values())
    assert held == stream.state.num_bytes()  # no tensor is a view of a larger one


def test_a_stream_that_was_saved_and_loaded_continues_bit_for_bit() -> None:
    model = tiny_model().eval()
    stream, images = open_stream(model), frames(6)
    for t, image in enumerate(images[:3]):
        stream.step(image, {7: box()} if t == 0 else None)
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    file.seek(0)
    again = Stream.from_state_dict(model, stream.settings, torch.load(file, weights_only=True))
    for image in images[3:]:
        assert_same(stream.step(image), again.step(image))
    assert_same_state(stream, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_is_stored_in_the_dtype_asked_for_and_continues_bit_for_bit(dtype: torch.dtype) -> None:
    model, images = tiny_model().eval(), frames(3)
    stream, plain = open_stream(model, state_dtype=dtype), open_stream(model)
    for one in (stream, plain):
        one.step(images[0], {7: box()})
    assert stream.state is not None and plain.state is not None
    found, exact = stream.state.tensors(), plain.state.tensors()
    for name, each in exact.items():
        stored = dtype if name == "x_prev" or name.startswith("ssm.") else each.dtype
        assert found[name].dtype == stored, name
        if each.is_floating_point():
            torch.testing.assert_close(found[name].double(), each.double(), rtol=0, atol=0.01 * float(each.abs().max()))
    same = torch.equal(stream.step(images[1]).mask_logits, plain.step(images[1]).mask_logits)
    assert same == (dtype == torch.float32)
    again = Stream.from_state_dict(model, stream.settings, stream.state_dict())
    assert_same(stream.fork().step(images[2]), again.step(images[2]))


def test_a_fork_is_independent_and_may_have_other_settings() -> None:
    model = tiny_model().eval()
    stream, images = open_stream(model, fg_threshold=0.0), frames(4)
    assert open_stream(model).fork().state is None
    later = Stream(model, stream.settings, label_set=stream.label_set, detect=True, first_track_id=5).fork()
    assert min(later.step(images[0]).track_ids) == 5
    stream.step(images[0])
    fork, strict = stream.fork(), stream.fork(fg_threshold=1.0)
    outputs = [stream.step(image) for image in images[1:]]
    assert strict.step(images[1]).track_ids == list(range(1, 7))
    for image, output in zip(images[1:], outputs, strict=True):
        assert_same(fork.step(image), output)
    assert_same_state(stream, fork)


def test_a_missing_or_mismatched_entry_is_named() -> None:
    stream = open_stream(tiny_model().eval())
    with pytest.raises(UserError, match="has not seen a frame yet"):
        stream.state_dict()
    stream.step(frames(1)[0])
    assert stream.state is not None
    values = stream.state.state_dict()
    with pytest.raises(ValueError, match=r"masks: torch.bool \(8, 4, 4\), expected torch.bool \(8, 8, 16\)"):
        stream.state.load_state_dict({**values, "masks": values["masks"][:, :4, :4]})
    with pytest.raises(KeyError, match="masks"):
        stream.state.load_state_dict({name: each for name, each in values.items() if name != "masks"})
