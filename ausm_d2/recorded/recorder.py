# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Records frames: to files (tools/train_decoder.py), or into the pool of a training (``ausm train``)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.data.build import build_train_loader
from ausm_d2.engine import check_datasets
from ausm_d2.errors import UserError
from ausm_d2.recorded.decoder import AUSMDecoder
from ausm_d2.recorded.frames import Frame, by_size, padded_size, write_frames
from ausm_d2.seeds import seeded

_SHARD = 64  # frames per file
_BARREN = 200  # after so many consecutive clips without an object the recording fails

logger = logging.getLogger(__name__)


class Recorder:
    """Records the frames of clips of DATASETS.TRAIN with MODEL.WEIGHTS.

    A clip's frames depend only on the seed and the clip's number: the recorder has a model of its own, which is not
    trained.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Raises:
            UserError: the weights or data sets cannot be used.
        """
        check_datasets(cfg, cfg.DATASETS.TRAIN)
        self._cfg = cfg.clone()
        self._cfg.defrost()
        self._cfg.SOLVER.IMS_PER_BATCH = 1
        self._model = AUSMDecoder(cfg).to(cfg.MODEL.DEVICE).eval()
        AUSMCheckpointer(self._model).load(cfg.MODEL.WEIGHTS)

    def clips(self, start: int, seed: int) -> Iterator[list[Frame]]:
        """Yield the frames of each clip, endlessly, from clip ``start`` on. A clip without objects yields [].

        Raises:
            UserError: many consecutive clips have no objects.
        """
        barren = 0
        loader = build_train_loader(self._cfg)
        loader.continue_from(start, seed)
        for number, clips in enumerate(loader, start=start):
            with seeded(seed, number):
                frames = list(self._model.record(clips))
            barren = 0 if frames else barren + 1
            if barren >= _BARREN:
                cells = self._cfg.MODEL.AUSM.TRAIN.DETECT_CELLS
                raise UserError(
                    f"{', '.join(self._cfg.DATASETS.TRAIN)}: {barren} clips in a row without an object to learn; one "
                    f"of {cells} cells of stride 4 or more expected (MODEL.AUSM.TRAIN.DETECT_CELLS)"
                )
            yield frames


class PooledBatches:
    """Endless batches of frames from a pool in memory, part of which is replaced at every iteration.

    At iteration i the pool holds the frames of clips ``fresh * i`` to ``fresh * i + pool - 1``. A batch depends only on
    seed and iteration.
    """

    def __init__(self, cfg: CfgNode, *, pool: int, fresh: int) -> None:
        """
        Args:
            cfg: SOLVER.IMS_PER_BATCH is the number of frames per batch.
            pool: number of clips in the pool.
            fresh: number of clips replaced at each iteration.
        """
        self.seed, self._start = max(cfg.SEED, 0), 0
        self._batch, self._pool, self._fresh = cfg.SOLVER.IMS_PER_BATCH, pool, fresh
        self._recorder = Recorder(cfg)

    def continue_from(self, iteration: int, seed: int) -> None:
        """Begin with the batch of an iteration, counted from 0."""
        self._start, self.seed = iteration, seed

    def __iter__(self) -> Iterator[list[Frame]]:
        clips = self._recorder.clips(self._start * self._fresh, self.seed)
        pool: deque[list[Frame]] = deque(maxlen=self._pool)
        iteration, wanted = self._start, self._pool
        while True:
            for _ in range(wanted):
                pool.append(next(clips))
            frames = [frame for of_clip in pool for frame in of_clip]
            if frames:  # else none of the clips has an object
                yield _draw(frames, self._batch, np.random.default_rng([self.seed, iteration]))
                iteration += 1
            wanted = self._fresh


def _draw(frames: list[Frame], count: int, rng: np.random.Generator) -> list[Frame]:
    """Draw a batch of one size; frames of other sizes fill it up, although a batch of several sizes takes longer."""
    first = frames[int(rng.integers(len(frames)))]
    same = by_size(frames)[padded_size(first)]
    others = [frame for frame in frames if padded_size(frame) != padded_size(first)]
    chosen = [same[i] for i in rng.permutation(len(same))[:count]]
    missing = count - len(chosen)
    chosen += [others[i] for i in rng.permutation(len(others))[:missing]]
    return chosen


def record(cfg: CfgNode, folder: Path, count: int) -> None:
    """Write at least ``count`` frames into files of a folder, for
    :class:`~ausm_d2.recorded.frames.RecordedBatches`."""
    folder.mkdir(parents=True, exist_ok=True)
    shard: list[Frame] = []
    written = 0
    for frames in Recorder(cfg).clips(0, max(cfg.SEED, 0)):
        shard += frames
        while len(shard) >= _SHARD:
            write_frames(shard[:_SHARD], folder / f"{cfg.SEED}_{written:06d}.pt")
            shard, written = shard[_SHARD:], written + _SHARD
            logger.info("%d of %d frames", written, count)
        if written >= count:
            return
