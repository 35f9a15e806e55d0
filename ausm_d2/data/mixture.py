# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Which video, and which random numbers, every training item is made of: a function of a seed and of its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch.utils.data
from detectron2.utils import comm

from ausm_d2.data.video import DeferredRecord, VideoRecord


class Draw(NamedTuple):
    """One draw of the mixture; it determines the training item completely."""

    dataset: int  # index in DATASETS.TRAIN
    record: int  # index in the data set
    seed: int  # of clip sampling and augmentation


class MixtureSampler(torch.utils.data.Sampler[Draw]):
    """Endless draws from several data sets, each reshuffled when it is exhausted.

    All processes generate the same stream of draws (the seed is shared) and process r of R takes draws r, r + R, ...
    No draw is used twice.
    """

    _BLOCK = 4096  # draws generated at once, so that skipping 100,000 of them is fast

    def __init__(self, sizes: Sequence[int], ratios: Sequence[float], seed: int) -> None:
        """
        Args:
            sizes: records per data set.
            ratios: relative sampling weights of the data sets.
            seed: the same in all processes.
        """
        self.sizes = sizes
        self.shares = np.asarray(ratios, dtype=np.float64) / np.sum(ratios)
        self.seed = seed

    def __iter__(self) -> Iterator[Draw]:
        yield from islice(self._stream(), comm.get_rank(), None, comm.get_world_size())

    def _stream(self) -> Iterator[Draw]:
        rng, *dataset_rngs = np.random.default_rng(self.seed).spawn(1 + len(self.sizes))
        orders = [_shuffled(size, dataset_rng) for size, dataset_rng in zip(self.sizes, dataset_rngs, strict=True)]
        while True:
            datasets = rng.choice(len(self.sizes), self._BLOCK, p=self.shares).tolist()
            seeds = rng.integers(2**62, size=self._BLOCK).tolist()
            for dataset, seed in zip(datasets, seeds, strict=True):
                yield Draw(dataset, next(orders[dataset]), seed)


def _shuffled(size: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(size).tolist()


class DrawnBatches(torch.utils.data.Sampler[list[Draw]]):
    """The draws of one process by iteration: the same, whether the training was interrupted before it or not."""

    def __init__(self, draws: MixtureSampler, size: int, portrait: Sequence[Sequence[bool]] | None = None) -> None:
        """
        Args:
            draws: of one process.
            size: draws of an iteration.
            portrait: by data set and record, whether a video is higher than wide: such are batched apart from others.
                None: all are batched as they come.
        """
        self.draws = draws
        self.size = size
        self.portrait = portrait
        self.start = 0  # the iteration to begin with

    def __iter__(self) -> Iterator[list[Draw]]:
        yield from islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[Draw]]:
        waiting: tuple[list[Draw], list[Draw]] = ([], [])
        for draw in self.draws:
            group = waiting[self.portrait is not None and self.portrait[draw.dataset][draw.record]]
            group.append(draw)
            if len(group) == self.size:
                yield group.copy()
                group.clear()


def is_portrait(record: VideoRecord) -> bool:
    """Whether a video is higher than wide, as far as that is known without opening its files."""
    if isinstance(record, DeferredRecord) and not (record.knows("height") and record.knows("width")):
        return False
    return record.height > record.width
