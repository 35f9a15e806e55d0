# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Reads and encodes frames ahead of the stream, in a second thread.

The frame encoder passes no information between frames, so it can run ahead, and encode several frames as one batch if
they are available, as in a file.

Shape shorthand:
    H, W: size of the frames in pixels; H_in, W_in: the network's input size, before padding
    k: frames per batch of the encoder
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ausm_d2.modeling.frame_encoder import FrameFeatures
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.modeling.transfer import upload
from ausm_d2.streaming.settings import VideoSettings

_MOST = {"cuda": 16, "cpu": 4}  # maximum of k; larger batches are not faster
_SHARE = 8  # k frames may use 1 / _SHARE of the free memory
_ACTIVATIONS = 16  # encoder's peak memory over the size of its output; an upper bound for our configs


class EncodedFrame(NamedTuple):
    """A frame and its features."""

    image: np.ndarray  # uint8 (H, W, 3), RGB
    resized: Tensor  # uint8 (3, H_in, W_in), RGB
    features: FrameFeatures | None  # batch size 1; None: encoded by the stream, as part of its CUDA graph


def pixels(frame: np.ndarray | EncodedFrame) -> np.ndarray:
    """The frame itself: uint8 (H, W, 3), RGB."""
    return frame.image if isinstance(frame, EncodedFrame) else frame


def network_input(
    frame: np.ndarray | EncodedFrame, settings: VideoSettings, size: tuple[int, int]
) -> tuple[Tensor, FrameFeatures | None]:
    """The frame at ``size`` (H_in, W_in), uint8 (3, H_in, W_in), and its features if it was encoded at that size."""
    if isinstance(frame, EncodedFrame) and frame.resized.shape[1:] == size:
        return frame.resized, frame.features
    return settings.resize(pixels(frame), size), None


class _End(NamedTuple):
    error: BaseException | None


def encode_ahead(
    network: AUSMNetwork,
    settings: VideoSettings,
    frames: Iterable[np.ndarray],
    *,
    given: Iterable[np.ndarray] = (),
    input_size: tuple[int, int] | None = None,
    at_once: int | None = None,
) -> Generator[EncodedFrame, None, None]:
    """The same frames, encoded; :meth:`Stream.step` takes them in place of plain frames.

    An exception from reading or encoding a frame is raised when that frame is due. When the iterator is closed, the
    thread ends after its current batch.

    Args:
        network: in evaluation mode.
        frames: uint8 (H, W, 3), RGB; requested at most 2 k ahead.
        given: bool (H, W) masks that will be prompted at the first frame; see :meth:`VideoSettings.input_size`.
        input_size: (H_in, W_in) of a stream that has begun; None: of one that begins with the first frame.
        at_once: k; 1 for a camera, whose frames arrive one by one. None: as many as fit into ``1 / _SHARE`` of the free
            memory.
    """
    done = threading.Event()
    ready: queue.Queue[EncodedFrame | _End] = queue.Queue(maxsize=at_once or _MOST.get(network.device.type, 1))
    images = _resized(settings, frames, list(given), input_size)
    arguments = (network, settings, images, at_once, ready, done)
    thread = threading.Thread(target=_work, args=arguments, name="frames ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        done.set()
        while thread.is_alive():  # it may be blocked by a full queue
            with suppress(queue.Empty):
                ready.get_nowait()
            thread.join(0.01)


def _resized(
    settings: VideoSettings,
    frames: Iterable[np.ndarray],
    given: list[np.ndarray],
    input_size: tuple[int, int] | None,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Frames, and the same resized as the stream does: uint8 (3, H_in, W_in)."""
    first: tuple[int, int] | None = None
    for frame in frames:
        size = (frame.shape[0], frame.shape[1])
        first = first or size
        yield frame, settings.resize(frame, input_size or settings.input_size(size, given if size == first else ()))


def _work(
    network: AUSMNetwork,
    settings: VideoSettings,
    frames: Iterable[tuple[np.ndarray, Tensor]],
    at_once: int | None,
    ready: queue.Queue[EncodedFrame | _End],
    done: threading.Event,
) -> None:
    """Body of the second thread. Autocast and gradient mode are thread-local."""
    waiting: list[tuple[np.ndarray, Tensor]] = []
    count = at_once or 1  # the first frame shows how much memory a frame takes
    captured = settings.cuda_graph and network.device.type == "cuda"

    def hand_over() -> None:
        nonlocal count
        images, waiting[:] = list(waiting), []
        if not images:
            return
        encoded = [None] * len(images) if captured else encode_images(network, [resized for _, resized in images])
        if at_once is None and encoded[0] is not None:
            count = frames_at_once(encoded[0], network.device)
        for (image, resized), features in zip(images, encoded, strict=True):
            if not done.is_set():
                ready.put(EncodedFrame(image, resized, features))

    error: BaseException | None = None
    try:
        with torch.no_grad(), torch.autocast(network.device.type, torch.bfloat16, enabled=settings.amp):
            try:
                for image, resized in frames:
                    if waiting and resized.shape != waiting[0][1].shape:
                        hand_over()
                    waiting.append((image, resized))
                    if len(waiting) >= count:
                        hand_over()
                    if done.is_set():
                        break
            finally:  # the frames before an unreadable one
                hand_over()
    except BaseException as raised:  # raised again in the consumer's thread
        error = raised
    ready.put(_End(error))


def encode_images(network: AUSMNetwork, images: list[Tensor]) -> list[FrameFeatures]:
    """Encode uint8 (3, H_in, W_in) images of one size as a batch; returns features of batch size 1."""
    batch = torch.stack([upload(image, network.device) for image in images])
    features = network.encode(network.normalise(batch))
    return [features.map(itemgetter(slice(i, i + 1))) for i in range(len(images))]


def frames_at_once(features: FrameFeatures, device: torch.device) -> int:
    """k for frames with such features: as many as fit into ``1 / _SHARE`` of the free memory."""
    needed = _ACTIVATIONS * sum(each.numel() * each.element_size() for each in features.tensors())
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(_MOST.get(device.type, 1), free // _SHARE // needed))
