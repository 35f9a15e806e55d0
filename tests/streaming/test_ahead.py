# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Frames encoded ahead of the stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ausm_d2.errors import UserError
from ausm_d2.meta_arch import AUSM
from ausm_d2.streaming import ahead
from ausm_d2.streaming.ahead import EncodedFrame, encode_ahead, frames_at_once
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.stream import Stream
from tests.tiny import tiny_cfg, tiny_model


@pytest.fixture(scope="module")
def model() -> AUSM:
    return tiny_model().eval()


def settings(*opts: Any) -> VideoSettings:
    return VideoSettings.from_config(tiny_cfg(*opts))


def noise(count: int, size: tuple[int, int] = (50, 70)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


def no_thread_is_left() -> bool:
    return not any(thread.name == "frames ahead" for thread in threading.enumerate())


@pytest.mark.parametrize(("at_once", "amp"), [(1, False), (3, False), (None, False), (3, True)])
def test_frames_encoded_ahead_have_the_masks_of_frames_that_come_one_by_one(
    model: AUSM, at_once: int | None, amp: bool
) -> None:
    frames, how = noise(7), settings("TEST.AUSM.AMP", amp)
    given = {4: np.pad(np.ones((20, 20), bool), ((10, 20), (10, 40)))}
    one_by_one, encoded = (Stream(model, how, label_set="synthvis", detect=True) for _ in range(2))
    encoder = encode_ahead(model, how, frames, at_once=at_once)
    for t, (frame, image) in enumerate(zip(encoder, frames, strict=True)):
        prompts = given if t == 0 else {}
        found, expected = encoded.step(frame, prompts), one_by_one.step(image, prompts)
        assert frame.image is image and found.track_ids == expected.track_ids
        tolerance = 0.3 if amp else 1e-4
        torch.testing.assert_close(found.mask_logits, expected.mask_logits, rtol=tolerance, atol=tolerance)
    assert no_thread_is_left()


def test_the_encoder_takes_several_frames_of_one_size(model: AUSM, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    encode = model.encode

    def counted(images: torch.Tensor) -> Any:
        batches.append(len(images))
        return encode(images)

    monkeypatch.setattr(model, "encode", counted)
    frames = [*noise(5), *noise(2, (60, 70))]
    assert [frame.image.shape for frame in encode_ahead(model, settings(), frames, at_once=3)] == [
        frame.shape for frame in frames
    ]
    assert batches == [3, 2, 2]


def test_an_unreadable_frame_raises_when_it_is_due(model: AUSM) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from noise(2)
        raise UserError("frame 2: cut off")

    encoder = encode_ahead(model, settings(), frames(), at_once=4)
    assert [next(encoder).image.shape for _ in range(2)] == [(50, 70, 3)] * 2
    with pytest.raises(UserError, match="frame 2: cut off"):
        next(encoder)
    assert no_thread_is_left()


def test_closing_the_iterator_ends_the_thread_and_the_reading(model: AUSM) -> None:
    asked: list[int] = []

    def frames() -> Iterator[np.ndarray]:
        for t, frame in enumerate(noise(20)):
            asked.append(t)
            yield frame

    encoder = encode_ahead(model, settings(), frames(), at_once=2)
    next(encoder)
    encoder.close()
    assert no_thread_is_left()
    assert len(asked) <= 8


def test_the_batch_of_the_encoder_fits_into_free_memory(model: AUSM, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        features = model.encode(torch.zeros(1, 3, 64, 96))
    sizes = [each.numel() * 4 for each in (features.x, features.mask_features, *features.multi_scale)]
    needed = ahead._ACTIVATIONS * sum(sizes) * ahead._SHARE
    cpu = torch.device("cpu")
    for pages, expected in ((0, 1), (needed - 1, 1), (2 * needed, 2), (100 * needed, 4)):
        monkeypatch.setattr("os.sysconf", {"SC_AVPHYS_PAGES": pages, "SC_PAGE_SIZE": 1}.__getitem__)
        assert frames_at_once(features, cpu) == expected


def test_frames_encoded_at_another_size_than_the_streams_are_encoded_again(model: AUSM) -> None:
    """A small prompted object enlarges the stream's input; frames may have been encoded ahead without it."""
    how = settings("INPUT.MIN_SIZE_TEST", 32, "TEST.AUSM.SMALL_PROMPT_CELLS", 50)
    frames, given = noise(2), {1: np.pad(np.ones((6, 6), bool), ((10, 34), (10, 54)))}
    plain, unaware, aware = (Stream(model, how, label_set="synthvis", detect=False) for _ in range(3))
    expected = [plain.step(frame, given if t == 0 else {}) for t, frame in enumerate(frames)]
    for stream, masks in ((unaware, ()), (aware, given.values())):
        for t, frame in enumerate(encode_ahead(model, how, frames, given=masks, at_once=1)):
            found = stream.step(frame, given if t == 0 else {})
            torch.testing.assert_close(found.mask_logits, expected[t].mask_logits, rtol=1e-4, atol=1e-4)
            assert (frame.resized.shape[1:] == stream.state.input_size) == (stream is aware)  # type: ignore[union-attr]


def test_a_stream_refuses_an_encoded_frame_of_another_size(model: AUSM) -> None:
    stream = Stream(model, settings(), label_set="synthvis", detect=True)
    stream.step(noise(1)[0])
    (other,) = encode_ahead(model, settings(), noise(1, (60, 70)), at_once=1)
    assert isinstance(other, EncodedFrame)
    with pytest.raises(UserError, match="a frame of 70x60 pixels follows frames of 70x50"):
        stream.step(other)
