# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Runs ``ausm track`` after its command line is parsed by track.py, which has no slow imports."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode

from ausm_d2.cli.model import model_config
from ausm_d2.cli.progress import ProgressBar, show_warnings
from ausm_d2.errors import UserError
from ausm_d2.jobs.folder import find_videos, track_all
from ausm_d2.jobs.prompt_file import PromptPlan, read_prompt_file, read_prompts
from ausm_d2.jobs.report import REPORT
from ausm_d2.jobs.track import Request, track
from ausm_d2.stopping import StopRequest
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.prompts import Box, Mask, Points
from ausm_d2.video.files import RawFormat


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    cfg = model_config(options)
    videos = find_videos(options.input, Path(options.output))
    if videos is not None:
        return track_many(cfg, videos, request(options), options.workers)
    if options.workers != 1:
        raise UserError(f"--workers: {options.workers} for one video, expected a folder of videos")
    return track_one(cfg, request(options))


def request(options: argparse.Namespace) -> Request:
    """The request that the command line describes.

    Raises:
        UserError: if prompts are invalid.
    """
    plan = read_prompt_file(options.prompts) if options.prompts else PromptPlan()
    for object_id, mask in (read_prompts(options.mask) if options.mask else {}).items():
        plan.add(0, object_id, Mask(mask))
    for frame, object_id, box in options.box:
        plan.add(frame, object_id, Box(*box))
    for frame, object_id, (x, y, *label) in options.point:
        plan.add(frame, object_id, Points([(x, y)], [int(each) for each in label] or [1]))
    return Request(
        source=options.input,
        output=Path(options.output),
        prompts=plan.prompts,
        names=plan.names,
        given_by=options.mask or options.prompts or "the prompts",
        find=options.find or plan.find or not plan.prompts,
        save=options.save,
        frames=options.frames,
        fps=options.fps,
        raw=options.raw and RawFormat(*options.raw),
        resume=options.resume,
    )


def track_one(cfg: CfgNode, asked: Request, say: Callable[[str], None] = print) -> int:
    """Track one video, with a progress bar. Ctrl-C and SIGTERM stop it cleanly.

    Returns:
        The exit code: 130 after Ctrl-C, 0 after SIGTERM, whose sender expects the interruption.
    """
    show_warnings()
    with StopRequest() as stop, ProgressBar() as bar:
        summary = track(lambda: VideoPredictor(cfg), asked, progress=bar, stopped=stop)
    say(f"{summary}: see {asked.output}")
    if summary.complete:
        return 0
    print("stopped; --resume continues", file=sys.stderr)
    return 130 if stop.signal == signal.SIGINT else 0


def track_many(cfg: CfgNode, videos: dict[str, Path], asked: Request, workers: int) -> int:
    """Track the videos of a folder; returns the exit code: 130 after Ctrl-C, else 1 if a video failed."""
    show_warnings()
    with StopRequest() as stop, ProgressBar(unit="video") as bar:
        report = track_all(cfg, videos, asked, workers=workers, progress=bar, stopped=stop)
    print(report.table())
    waiting = len(videos) - report.count("done") - report.count("failed")
    left = f", {waiting} not done: the same command continues" if waiting else ""
    print(f"{report.count('done')} done, {report.count('failed')} failed{left}: see {asked.output / REPORT}")
    if stop.signal == signal.SIGINT and waiting:
        return 130
    return 1 if report.count("failed") else 0
