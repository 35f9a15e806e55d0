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
  ausm track videos/ -o out --workers 2                     every video once; run again to continue
  ausm track clip.mp4 -o out --resume                       continue after an interruption
"""

from __future__ import annotations

import argparse
import re
from fractions import Fraction

from ausm_d2.cli.arguments import given_path
from ausm_d2.cli.options import add_model_arguments

HELP = "follow objects in videos"

# A copy of the names in ausm_d2.video.results, which is slow to import; a test compares them.
OUTPUTS = ("overlay", "masks", "cutouts", "alpha", "mot", "mots", "sheet", "tracks", "ytvis", "coco", "timeline")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="video file, folder of pictures or of videos, picture (also with several pages), pattern, number of a "
        "camera, address (rtsp://...), or - for standard input",
    )
    parser.add_argument("-o", "--output", required=True, type=given_path, metavar="DIR", help="folder for the results")
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
    add_model_arguments(parser)
    results = parser.add_argument_group("results")
    results.add_argument(
        "--save",
        nargs="+",
        default=["overlay", "masks"],
        choices=OUTPUTS,
        metavar="OUTPUT",
        help=f"what is written beside tracks.json: {', '.join(OUTPUTS)} (default: overlay masks)",
    )
    results.add_argument("--resume", action="store_true", help="continue incomplete results")
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


def _raw(text: str) -> tuple[int, int, str]:
    """Width, height and pixel format."""
    found = re.fullmatch(r"(\d+)x(\d+)(?::(\w+))?", text)
    if not found or not int(found[1]) or not int(found[2]):
        raise argparse.ArgumentTypeError(f"'{text}', expected width and height, such as 640x480 or 640x480:rgb24")
    return int(found[1]), int(found[2]), found[3] or "bgr24"


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from ausm_d2.cli import tracking

    return tracking.run(options)
