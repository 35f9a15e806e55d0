# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from ausm_d2.meta_arch import AUSM
from ausm_d2.streaming.state import FREE, StreamState
from ausm_d2.streaming.stream import FrameOutput, Stream
from tests.tiny import tiny_model


def tensors(state: StreamState) -> dict[str, Tensor]:
    """All tensors of a state by name."""
    found: dict[str, Tensor] = {"generator": state.generator.get_state()}
    found |= state.memory.tensors()
    return found | {f.name: value for f in fields(state) if isinstance(value := getattr(state, f.name), Tensor)}


def numbers(state: StreamState) -> dict[str, Any]:
    return {f.name: value for f in fields(state) if isinstance(value := getattr(state, f.name), int)}


def frames(count: int, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def assert_same(one: FrameOutput, other: FrameOutput) -> None:
    """Bit for bit."""
    for f in fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, f.name


def open_stream(model: AUSM, *, detect: bool = True) -> Stream:
    return Stream(model, label_set="synthvis", detect=detect, fg_threshold=0.5)


@pytest.mark.parametrize("prompted", [False, True])
def test_300_frames_fit_where_2_do(prompted: bool) -> None:
    model = tiny_model().eval()
    stream = open_stream(model, detect=not prompted)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:24, 8:24] = True
    sizes = {}
    for t, image in enumerate(frames(300)):
        stream.step(image, {7: mask} if prompted and t == 0 else None)
        assert stream.state is not None
        if t == 150 and prompted:
            stream.add({i: mask for i in (1, 2, 3)})
        if t in (2, 299):
            sizes[t] = {name: (value.shape, value.dtype) for name, value in tensors(stream.state).items()}
    assert sizes[2] == sizes[299]
    assert stream.state is not None and stream.state.frame_index == 299
    held = sum(v.untyped_storage().nbytes() for name, v in tensors(stream.state).items() if name != "generator")
    assert held == stream.state.num_bytes()  # no tensor is a window on a larger one


def test_a_state_that_was_written_and_read_continues_bit_for_bit() -> None:
    model = tiny_model().eval()
    stream, images = open_stream(model), frames(6)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:24, 8:24] = True
    for image in images[:3]:
        stream.step(image, {7: mask} if stream.state is None else None)
    assert stream.state is not None
    file = io.BytesIO()
    torch.save(stream.state.state_dict(), file)
    file.seek(0)
    again = open_stream(model)
    again.state = again._start(8, 16)
    again.state.load_state_dict(torch.load(file, weights_only=True))
    for image in images[3:]:
        assert_same(stream.step(image), again.step(image))
    one, other = tensors(stream.state), tensors(again.state)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert numbers(stream.state) == numbers(again.state)


def test_an_entry_that_is_missing_is_named() -> None:
    stream = open_stream(tiny_model().eval())
    stream.step(frames(1)[0])
    assert stream.state is not None
    values = stream.state.state_dict()
    del values["masks"]
    with pytest.raises(KeyError, match="masks"):
        stream.state.load_state_dict(values)


def test_a_slot_is_taken_and_given_back() -> None:
    stream = open_stream(tiny_model().eval(), detect=False)
    stream.step(frames(1)[0])
    assert stream.state is not None
    state, mask = stream.state, torch.ones(8, 16, dtype=torch.bool)
    state.class_sums[2], state.predicted[2] = 5.0, 9  # of the object before
    state.occupy(2, id_index=4, track_id=11, prompted=True)
    state.masks[2] = mask
    assert state.in_use.nonzero().tolist() == [[2]] and state.ids[2] == 4 and state.masks[2].all()
    assert state.last_seen[2] == 0 and state.predicted[2] == 0 and not state.class_sums[2].any()
    state.release(2)
    assert (state.ids == FREE).all() and not state.masks.any() and not state.prompted.any()
