# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Recorded frames: the Pixel Decoder's inputs and targets. Their files, and batches of them.

Shape shorthand:
    BT: frames, of one padded size
    N: instances (rows of A)
    D: channels; C_i: channels of the backbone's level i
    h, w: feature size at stride 8; H4, W4: mask size at stride 4; H_pad, W_pad: padded image size in pixels
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write
from ausm_d2.training.targets import FrameTargets

Frame = dict[str, Any]
"""A recorded frame, on the CPU: ``backbone`` [(C_i, h_i, w_i)] of strides 8 and up, ``g`` (D, h, w), ``mask_features``
(D, H4, W4) and ``ids`` (N, D) in half precision; ``in_use`` (N); ``masks``, bool (N, H_pad, W_pad)
packed into bits, and ``size``, its shape; ``label_set``; the other fields of FrameTargets. With ``START: residual``,
where the memory levels are not a function of ``g`` alone, also ``memory``: those levels."""

OF_ROWS, OF_FRAMES = ("classes", "visible", "track", "detect"), ("labelled", "exhaustive")  # fields of FrameTargets
_FIELDS = {"backbone", "g", "mask_features", "ids", "in_use", "masks", "size", "label_set"}


def padded_size(frame: Frame) -> tuple[int, int]:
    """(H_pad, W_pad)."""
    return frame["size"][1], frame["size"][2]


def packed(masks: Tensor) -> dict[str, Any]:
    """Bool (N, H_pad, W_pad) -> the fields ``masks`` and ``size``."""
    return {"masks": torch.from_numpy(np.packbits(masks.cpu().numpy())), "size": tuple(masks.shape)}


def collate(frames: Sequence[Frame], dim: int) -> tuple[FrameTargets, Tensor, Tensor]:
    """Frames of one padded size -> targets, (BT, N, D) ids and bool (BT, N) in use."""
    rows, (height, width) = max(frame["size"][0] for frame in frames), padded_size(frames[0])
    masks = torch.zeros(len(frames), rows, height, width, dtype=torch.bool)
    ids, in_use = torch.zeros(len(frames), rows, dim), torch.zeros(len(frames), rows, dtype=torch.bool)
    flags = {name: torch.zeros(len(frames), rows, dtype=frames[0][name].dtype) for name in OF_ROWS}
    for i, frame in enumerate(frames):
        count = frame["size"][0]
        bits = np.unpackbits(frame["masks"].numpy(), count=count * height * width)
        masks[i, :count] = torch.from_numpy(bits.reshape(count, height, width).astype(bool))
        ids[i, :count], in_use[i, :count] = frame["ids"], frame["in_use"]
        for name, values in flags.items():
            values[i, :count] = frame[name]
    whole = {name: torch.stack([frame[name] for frame in frames]) for name in OF_FRAMES}
    return FrameTargets(masks=masks, **flags, **whole), ids, in_use


def write_frames(frames: Sequence[Frame], file: Path) -> None:
    """Write a file for :func:`read_frames`."""
    with atomic_write(file) as path:
        torch.save(list(frames), path)


def read_frames(file: Path) -> list[Frame]:
    """The frames of a file, mapped to memory.

    Raises:
        UserError: if it is not a complete file written by :func:`write_frames`.
    """
    try:
        frames = torch.load(file, mmap=True, weights_only=True)
    except Exception as error:  # torch, zipfile and pickle raise various exceptions
        raise UserError(f"{file}: cannot be read as recorded frames: {str(error).splitlines()[0]}") from None
    wanted = {*_FIELDS, *OF_ROWS, *OF_FRAMES}
    if not isinstance(frames, list) or not all(
        isinstance(each, dict) and each.keys() - {"memory"} == wanted for each in frames
    ):
        raise UserError(f"{file}: expected recorded frames, a list of {', '.join(sorted(wanted))}")
    return frames


def by_size(frames: Iterable[Frame]) -> dict[tuple[int, int], list[Frame]]:
    """Frames by padded size."""
    found: dict[tuple[int, int], list[Frame]] = {}
    for frame in frames:
        found.setdefault(padded_size(frame), []).append(frame)
    return found


class RecordedBatches:
    """Endless batches of frames from files, each of one size and one folder, determined by seed and iteration."""

    def __init__(self, folders: Sequence[Path], shares: Sequence[float], *, batch: int, seed: int) -> None:
        """
        Args:
            folders: with files written by :func:`write_frames`.
            shares: relative probability of each folder.
            batch: frames per batch.

        Raises:
            UserError: if a folder has no frames, or a file cannot be read.
        """
        self.seed, self._start, self._batch = seed, 0, batch
        self._shares = np.asarray(shares, dtype=np.float64) / np.sum(shares)
        self._frames = [self._read(folder) for folder in folders]
        self._of_size = [by_size(frames) for frames in self._frames]

    @staticmethod
    def _read(folder: Path) -> list[Frame]:
        files = sorted(folder.glob("*.pt"))
        if not files:
            raise UserError(f"{folder}: no recorded frames (*.pt)")
        return [frame for file in files for frame in read_frames(file)]

    def continue_from(self, iteration: int, seed: int) -> None:
        """Begin with the batch of an iteration, counted from 0."""
        self._start, self.seed = iteration, seed

    def __iter__(self) -> Iterator[list[Frame]]:
        iteration = self._start
        while True:
            rng = np.random.default_rng([self.seed, iteration])
            folder = int(rng.choice(len(self._frames), p=self._shares))
            frames = self._frames[folder]
            same = self._of_size[folder][padded_size(frames[int(rng.integers(len(frames)))])]
            yield [same[int(rng.integers(len(same)))] for _ in range(self._batch)]
            iteration += 1
