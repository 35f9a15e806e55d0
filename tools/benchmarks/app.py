# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The page of `ausm app`: time from a click to its mask, and frames per second compared with `ausm track`.

Without a browser, the benchmark makes the requests of the page, pictures included. With ``--browser``, it clicks in a
headless Chromium (browser.py).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av

from ausm_d2.app.follower import Turns
from ausm_d2.app.limits import Limits
from ausm_d2.app.project import Project
from ausm_d2.cli.model import config
from ausm_d2.jobs.track import Request, track
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.prompts import Box
from tools.benchmarks import browser, measure

_WAIT = 0.005  # seconds between two looks of the page at what is new


def add_arguments(parser: argparse.ArgumentParser) -> None:
    measure.add_clock_argument(parser)
    parser.add_argument("--video", default="demo/clips/cars.mp4")
    parser.add_argument("--box", type=float, nargs=4, default=[320, 290, 492, 431], help="around an object in frame 0")
    parser.add_argument("--config", default="ausm_edge")
    parser.add_argument("--repeats", type=measure.positive, default=5, help="of each measurement")
    parser.add_argument(
        "--browser",
        action="store_true",
        help="only clicks, in a headless Chromium, by its clock: press to painted mask",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Two tables.

    click: median and maximum (s) of the time from a click to the masks that the page draws: on a new video, in the
    frame at which a run has ended (exact), and in the middle of the video (estimated).
    frames: frames a second of `ausm track` with all its default outputs and with tracks.json only, and of a run in
    the page with every picture and its masks sent.

    With ``--browser`` only one: median and maximum (s) of the time from the press of the mouse to the painted mask, and
    the median of the request in it that holds the model's work.
    """
    if args.browser:
        return _in_browser(args)
    predictor = VideoPredictor(config(args.config))
    clock = time.process_time if args.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as scratch:
        project = Project(predictor, Turns(), Path(scratch) / "session", Limits())
        clicks, frames = _measured(args, predictor, project, clock, Path(scratch))
        project.close()
    click = [
        {"where": where, "median": statistics.median(all_), "maximum": max(all_)} for where, all_ in clicks.items()
    ]
    rates = [{"what": what, "frames/s": statistics.median(all_)} for what, all_ in frames.items()]
    measure.print_table(click)
    measure.print_table(rates)
    return {"click": click, "frames": rates}


def _in_browser(args: argparse.Namespace) -> dict[str, Any]:
    video = Path(args.video).resolve()
    with av.open(str(video)) as container:
        width, height = container.streams.video[0].width, container.streams.video[0].height
    x, y = (args.box[0] + args.box[2]) / 2 / width, (args.box[1] + args.box[3]) / 2 / height
    found = browser.clicks(video, args.config, [(x, y), (x, y + 0.03)], args.repeats)
    rows = []
    for where, times in found.items():
        painted, request = zip(*times, strict=True)
        median = {"median": statistics.median(painted), "maximum": max(painted)}
        rows.append({"where": where, **median, "of it request": statistics.median(request), "clicks": len(times)})
    measure.print_table(rows)
    return {"browser": rows}


def _measured(
    args: argparse.Namespace, predictor: VideoPredictor, project: Project, clock: Callable[[], float], scratch: Path
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    clicks: dict[str, list[float]] = {"new": [], "at the end": [], "in the middle": []}
    frames: dict[str, list[float]] = {"track": [], "track, tracks.json only": [], "app": []}
    x, y = (args.box[0] + args.box[2]) / 2, (args.box[1] + args.box[3]) / 2

    def timed(action: Callable[..., Any], *arguments: Any) -> float:
        begin = clock()
        action(*arguments)
        return clock() - begin

    def clicked(frame: int, object_id: int | None, shift: int) -> None:
        project.click(frame, object_id, x + shift, y, 1)
        project.masks(frame)

    for repeat in range(args.repeats):
        with project.incoming() as folder:
            project.open(Path(args.video), "video", folder)
        count = project.clip.count
        project.clip.jpeg(0)
        clicks["new"].append(timed(clicked, 0, None, 0))
        project.undo(0, 1)
        project.drag(0, None, args.box)
        frames["app"].append((count - 1) / timed(_follow, project, count))
        clicks["at the end"].append(timed(clicked, count - 1, 1, 0))
        clicks["in the middle"].append(timed(clicked, count // 2 + 5, 1, 1))
        for what, save in (("track", ["overlay", "masks"]), ("track, tracks.json only", [])):
            prompts = {0: {1: [Box(*args.box)]}}
            asked = Request(args.video, scratch / f"{what} {repeat}", prompts=prompts, find=False, save=save)
            frames[what].append(count / timed(track, lambda: predictor, asked))
    return clicks, frames


def _follow(project: Project, count: int) -> None:
    """Run, and request the newest frame whenever there is one, as the page does."""
    project.run()
    shown = 0
    while shown < count:
        done = project.done
        if done > shown:
            project.clip.jpeg(done - 1)
            project.masks(done - 1)
            shown = done
        else:
            time.sleep(_WAIT)
