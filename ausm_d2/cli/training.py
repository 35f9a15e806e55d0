# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Runs ``ausm train`` after its command line is parsed by train.py, which has no slow imports."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ausm_d2.cli.progress import ProgressBar, show_warnings
from ausm_d2.errors import UserError
from ausm_d2.finetune.coco import read_coco
from ausm_d2.finetune.labels import Labels
from ausm_d2.finetune.run import Asked, Work, train
from ausm_d2.finetune.video import read_video
from ausm_d2.stopping import StopRequest


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 130 after Ctrl-C, 0 after SIGTERM."""
    show_warnings()
    asked = Asked(
        output=Path(options.output),
        labels=None if options.resume else _labels(options),
        start=options.start,
        minutes=options.minutes,
        iterations=options.iterations,
        opts=options.opts,
        seed=options.seed,
        resume=options.resume,
    )
    bars: list[ProgressBar] = []

    def bar(unit: str) -> ProgressBar:
        close()
        bars.append(ProgressBar(unit))
        return bars[-1]

    def close() -> None:
        while bars:
            bars.pop().__exit__(None, None, None)

    def say(text: str) -> None:
        close()
        print(text, flush=True)

    try:
        with StopRequest() as stop:
            if train(asked, Work(say, bar, stop)):
                return 0
    finally:
        close()
    print("stopped; --resume goes on", file=sys.stderr)
    return 130 if stop.signal == signal.SIGINT else 0


def _labels(options: argparse.Namespace) -> Callable[[], Labels]:
    """Read the labels that the options name."""
    if options.coco:
        return lambda: read_coco(
            Path(options.coco),
            Path(options.images),
            classes=options.classes,
            boxes_as_masks=options.boxes_as_masks,
            val=Path(options.val) if options.val else None,
            val_images=Path(options.val_images) if options.val_images else None,
            held_out=options.held_out,
            seed=options.seed,
        )
    names = dict(options.names)
    if len(names) < len(options.names):
        raise UserError("--names: an object has two classes")
    return lambda: read_video(Path(options.video), Path(options.masks), names=names, held_out=options.held_out)
