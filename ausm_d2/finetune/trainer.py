# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The trainer of the decoder (ausm_d2/recorded), with progress and a clean stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils.env import seed_all_rng

from ausm_d2.recorded.decoder import AUSMDecoder
from ausm_d2.recorded.frames import Frame
from ausm_d2.recorded.recorder import PooledBatches, Recorder
from ausm_d2.recorded.trainer import DecoderTrainer
from ausm_d2.training.solver import build_optimizer

POOL, FRESH = 96, 2  # clips whose frames are held in memory, and clips of them that an iteration replaces

Progress = Callable[[int, int], None]  # iterations done, and all


class _Stopped(BaseException):
    """Ends the training before its last iteration. Not an Exception, since Detectron2 logs those with a traceback."""


class _Watch(HookBase):
    """Reports progress, and stops with a checkpoint when asked to."""

    def __init__(self, progress: Progress, stopped: Callable[[], bool]) -> None:
        self._progress, self._stopped = progress, stopped

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        self._progress(done, self.trainer.max_iter)
        if done < self.trainer.max_iter and self._stopped():
            self.trainer.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
            raise _Stopped


class FineTuning(DecoderTrainer):
    """The trainer, without the evaluation at its end, which is left to the caller."""

    def build_hooks(self) -> list[Any]:
        return [hook for hook in super().build_hooks() if not isinstance(hook, EvalHook)]


def fine_tune(cfg: CfgNode, *, resume: bool, progress: Progress, stopped: Callable[[], bool]) -> tuple[int, Path]:
    """Train to ``SOLVER.MAX_ITER``, or until ``stopped`` says so.

    Returns:
        Iterations done, and the last checkpoint.
    """
    with _LogFile(Path(cfg.OUTPUT_DIR, "log.txt")):
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
        trainer = FineTuning(cfg, PooledBatches(cfg, pool=POOL, fresh=FRESH))
        trainer.register_hooks([_Watch(progress, stopped)])
        trainer.resume_or_load(resume=resume)
        done = trainer.start_iter
        try:
            trainer.train()
            done = trainer.max_iter
        except _Stopped:
            done = trainer.iter + 1
        return done, Path(trainer.checkpointer.get_checkpoint_file())


class Pace(NamedTuple):
    """Seconds that a training takes on this machine."""

    start: float  # before the first iteration: the pool is filled
    iteration: float

    def iterations(self, minutes: float) -> int:
        """How many fit into a time."""
        return max(0, int((60 * minutes - self.start) / self.iteration))


def measure_pace(cfg: CfgNode, count: int = 4) -> Pace:
    """The medians over ``count`` clips and iterations, each after a warm-up (kernels are compiled, data read)."""
    clips = Recorder(cfg).clips(0, max(cfg.SEED, 0))
    frames: list[Frame] = []
    of_clips: list[float] = []
    of_steps: list[float] = []
    while len(of_clips) <= count or not frames:
        start = time.perf_counter()
        frames += next(clips)
        of_clips.append(time.perf_counter() - start)
    model = AUSMDecoder(cfg).to(cfg.MODEL.DEVICE).train()
    optimizer = build_optimizer(cfg, model)
    batch = (frames * cfg.SOLVER.IMS_PER_BATCH)[: cfg.SOLVER.IMS_PER_BATCH]
    for _ in range(count + 1):
        start = time.perf_counter()
        loss = torch.stack([*model(batch).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        of_steps.append(time.perf_counter() - start)
    clip, step = median(of_clips[1:]), median(of_steps[1:])
    return Pace(POOL * clip, step + FRESH * clip)


class _LogFile:
    """A context in which Detectron2 and this package log to a file, and only warnings appear on the screen."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = logging.FileHandler(path, encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("[%(asctime)s %(name)s]: %(message)s"))
        self._loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "ausm_d2")]

    def __enter__(self) -> None:
        self._before = [(each.level, each.propagate) for each in self._loggers]
        for each in self._loggers:
            each.setLevel(logging.INFO)
            each.propagate = False
            each.addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        for each, (level, propagate) in zip(self._loggers, self._before, strict=True):
            each.removeHandler(self._handler)
            each.setLevel(level)
            each.propagate = propagate
        self._handler.close()
