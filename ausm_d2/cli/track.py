# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Follow objects in a video, or in every video of a folder, and write masks, a video and tables.

examples:
  ausm track clip.mp4 -o out                                find and follow everything
  ausm track clip.mp4 --mask first.png -o out               follow what is marked in the first frame
  ausm track clip.mp4 --box 1:120,80,260,300 -o out         ... in a box
  ausm track clip.mp4 --point 1:190,150 --point 1:20,20,0 -o out
  ausm track clip.mp4 --prompts prompts.json --find -o out  all kinds, objects and frames; and find the rest
  ausm track frames/ -o out --save overlay masks coco       a folder of pictures; COCO JSON too
  ausm track 'shots/*.png' --fps 10 -o out                  a pattern
  ausm track 0 -o out                                       camera 0, until Ctrl-C
  ausm track rtsp://host/stream -o out                      a network camera
  ffmpeg -i clip.mov -f yuv4mpegpipe - | ausm track - -o out
  ausm track videos/ -o out --workers 2                     every video once; run again to go on
  ausm track clip.mp4 -o out --resume                       go on where it was stopped
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ausm_d2.jobs.track import Request
    from ausm_d2.video.files import RawFormat

HELP = "follow objects in videos"

# As ausm_d2.video.results has them; that module takes time to import, and a test holds that they are the same.
OUTPUTS = ("overlay", "masks", "cutouts", "alpha", "mot", "mots", "sheet", "tracks", "ytvis", "coco", "timeline")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="video file, folder of pictures or of videos, picture (also with several pages), pattern, number of a "
        "camera, address (rtsp://...), or - for standard input",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the results")
    given = parser.add_argument_group("what to follow (default: find everything)")
    given.add_argument("--mask", metavar="PNG", help="objects in the first frame: pixel = object id")
    given.add_argument(
        "--box",
        action="append",
        default=[],
        type=_box,
        metavar="ID[@FRAME]:X0,Y0,X1,Y1",
        help="a box around an object: left, top, right, bottom, in pixels",
    )
    given.add_argument(
        "--point",
        action="append",
        default=[],
        type=_point,
        metavar="ID[@FRAME]:X,Y[,LABEL]",
        help="a click on an object (label 1) or where it is not (0)",
    )
    given.add_argument(
        "--prompts", metavar="JSON", help="prompts of all kinds, objects and frames (docs/command_line.md)"
    )
    given.add_argument("--find", action="store_true", help="beside the objects given, find all others")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--config",
        default="ausm_edge",
        metavar="NAME",
        help="ausm_edge, ausm_nano, a packaged config or a file (default: %(default)s)",
    )
    model.add_argument("--weights", metavar="FILE", help="instead of those that the config names")
    model.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    model.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys to change")
    results = parser.add_argument_group("results")
    results.add_argument(
        "--save",
        nargs="+",
        default=["overlay", "masks"],
        choices=OUTPUTS,
        metavar="OUTPUT",
        help=f"what is written beside tracks.json: {', '.join(OUTPUTS)} (default: overlay masks)",
    )
    results.add_argument("--resume", action="store_true", help="go on with results that were not completed")
    frames = parser.add_argument_group("frames")
    frames.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    frames.add_argument("--fps", type=_rate, metavar="R", help="frames a second of pictures without times")
    frames.add_argument("--raw", type=_raw, metavar="WxH[:FORMAT]", help="standard input is raw frames (bgr24)")
    frames.add_argument("--workers", type=int, default=1, metavar="N", help="processes, for a folder of videos")


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise argparse.ArgumentTypeError(f"'{text}', expected frames a second, such as 25 or 30000/1001")
    return rate


_GIVEN = re.compile(r"(\d+)(?:@(\d+))?:(.+)")  # object, frame, numbers

Given = tuple[int, int, list[float]]


def _given(text: str, counts: tuple[int, ...], expected: str) -> Given:
    """Frame, object id and numbers."""
    found = _GIVEN.fullmatch(text)
    try:
        numbers = [float(each) for each in found[3].split(",")] if found else []
    except ValueError:
        numbers = []
    if found is None or len(numbers) not in counts or not int(found[1]):
        raise argparse.ArgumentTypeError(f"'{text}', expected {expected}")
    return int(found[2] or 0), int(found[1]), numbers


def _box(text: str) -> Given:
    return _given(text, (4,), "object:left,top,right,bottom, such as 1:120,80,260,300")


def _point(text: str) -> Given:
    frame, object_id, numbers = _given(text, (2, 3), "object:x,y or object:x,y,label, such as 1:190,150,1")
    if len(numbers) == 3 and numbers[2] not in (0, 1):
        raise argparse.ArgumentTypeError(f"'{text}': label {numbers[2]:g}, expected 1 or 0")
    return frame, object_id, numbers


def _raw(text: str) -> RawFormat:
    from ausm_d2.video.files import RawFormat

    found = re.fullmatch(r"(\d+)x(\d+)(?::(\w+))?", text)
    if not found or not int(found[1]) or not int(found[2]):
        raise argparse.ArgumentTypeError(f"'{text}', expected width and height, such as 640x480 or 640x480:rgb24")
    return RawFormat(int(found[1]), int(found[2]), found[3] or "bgr24")


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from ausm_d2.jobs.folder import find_videos

    changes = list(options.opts)
    changes += ["MODEL.WEIGHTS", options.weights] if options.weights else []
    changes += ["MODEL.DEVICE", options.device] if options.device else []
    cfg = config(options.config, changes)
    videos = find_videos(options.input, Path(options.output))
    if videos is not None:
        return track_many(cfg, videos, request(options), options.workers)
    return track_one(cfg, request(options))


def config(name: str, changes: Sequence[str] = ()) -> CfgNode:
    """The config of a model by its name or file.

    Raises:
        UserError: there is none, or it names no weights.
    """
    from ausm_d2.config import load_config
    from ausm_d2.config.files import PRETRAINED
    from ausm_d2.errors import UserError

    cfg = load_config(PRETRAINED.get(name, name), changes)
    if not cfg.MODEL.WEIGHTS:
        raise UserError(f"MODEL.WEIGHTS: empty in '{name}'; add --opts MODEL.WEIGHTS FILE")
    return cfg


def request(options: argparse.Namespace) -> Request:
    """What the command line asks for.

    Raises:
        UserError: prompts that cannot be used.
    """
    from ausm_d2.jobs.prompt_file import PromptPlan, read_prompt_file, read_prompts
    from ausm_d2.jobs.track import Request
    from ausm_d2.streaming.prompts import Box, Mask, Points

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
        raw=options.raw,
        resume=options.resume,
    )


def track_one(cfg: CfgNode, asked: Request, say: Callable[[str], None] = print) -> int:
    """Track one video, with a progress bar; Ctrl-C and SIGTERM end it in good order.

    Returns:
        Exit code: 130 after Ctrl-C. After SIGTERM it is 0: who sent it knows that the video is not done.
    """
    from ausm_d2.cli.progress import ProgressBar, show_warnings
    from ausm_d2.jobs.track import track
    from ausm_d2.stopping import StopRequest
    from ausm_d2.streaming.predictor import VideoPredictor

    show_warnings()
    with StopRequest() as stop, ProgressBar() as bar:
        summary = track(lambda: VideoPredictor(cfg), asked, progress=bar, stopped=stop)
    say(f"{summary}: see {asked.output}")
    if summary.complete:
        return 0
    print("stopped; --resume goes on", file=sys.stderr)
    return 130 if stop.signal == signal.SIGINT else 0


def track_many(cfg: CfgNode, videos: dict[str, Path], asked: Request, workers: int) -> int:
    """Track the videos of a folder; returns the exit code: 1 if one of them failed."""
    from ausm_d2.cli.progress import ProgressBar, show_warnings
    from ausm_d2.jobs.folder import REPORT, track_all

    show_warnings()
    with ProgressBar(unit="video") as bar:
        report = track_all(cfg, videos, asked, workers=workers, progress=bar)
    print(report.table())
    waiting = len(videos) - report.count("done") - report.count("failed")
    left = f", {waiting} not done: the same command goes on" if waiting else ""
    print(f"{report.count('done')} done, {report.count('failed')} failed{left}: see {asked.output / REPORT}")
    return 1 if report.count("failed") else 0
