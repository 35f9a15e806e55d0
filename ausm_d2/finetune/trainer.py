# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The trainer of ``train_net.py``, with progress and a clean stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils.env import seed_all_rng

from ausm_d2.data.build import build_train_loader
from ausm_d2.engine import Trainer
from ausm_d2.meta_arch import AUSM
from ausm_d2.training.solver import build_optimizer

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


class FineTuning(Trainer):
    """The trainer of ``train_net.py``, without the evaluation at its end, which is left to the caller."""

    def build_hooks(self) -> list[Any]:
        return [hook for hook in super().build_hooks() if not isinstance(hook, EvalHook)]


def fine_tune(cfg: CfgNode, *, resume: bool, progress: Progress, stopped: Callable[[], bool]) -> tuple[int, Path]:
    """Train to ``SOLVER.MAX_ITER``, or until ``stopped`` says so.

    Returns:
        Iterations done, and the last checkpoint.
    """
    with _LogFile(Path(cfg.OUTPUT_DIR, "log.txt")):
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
        trainer = FineTuning(cfg)
        trainer.register_hooks([_Watch(progress, stopped)])
        trainer.resume_or_load(resume=resume)
        done = trainer.start_iter
        try:
            trainer.train()
            done = trainer.max_iter
        except _Stopped:
            done = trainer.iter + 1
        return done, Path(trainer.checkpointer.get_checkpoint_file())


def seconds_per_iteration(cfg: CfgNode, count: int = 4) -> float:
    """Time of an iteration: the median of ``count`` iterations after a warm-up (kernels are compiled, data read)."""
    model = AUSM(cfg).to(cfg.MODEL.DEVICE).train()
    optimizer = build_optimizer(cfg, model)
    times = []
    batches = iter(build_train_loader(cfg))
    for _ in range(count + 1):
        start = time.perf_counter()
        loss = torch.stack([*model(next(batches)).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return median(times[1:])


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
