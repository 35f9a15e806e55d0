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

_SHARD = 64  # frames of a file
_BARREN = 200  # clips in a row without an object, after which there is nothing to learn

logger = logging.getLogger(__name__)


class Recorder:
    """The frames of clips of DATASETS.TRAIN, recorded with MODEL.WEIGHTS: a function of the seed and the clip's number.

    It has a model of its own, so that what it records does not depend on how far a training is.
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
        """The frames of each clip, endlessly, from the clip ``start`` on. Some clips have none (nothing to learn).

        Raises:
            UserError: many clips in a row have none.
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
    """Endless batches of frames from a pool that is renewed while it is drawn from: a function of seed and iteration.

    At iteration i it holds the frames of the clips ``fresh * i`` to ``fresh * i + pool - 1``, in memory.
    """

    def __init__(self, cfg: CfgNode, *, pool: int, fresh: int) -> None:
        """
        Args:
            cfg: SOLVER.IMS_PER_BATCH frames are a batch.
            pool: clips held at a time.
            fresh: clips that are replaced at each iteration.
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
    """Frames of one size, as far as there are so many: of several sizes an iteration takes longer."""
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
