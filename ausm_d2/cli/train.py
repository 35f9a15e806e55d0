# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Teach a trained model your own objects, from some labelled images or one labelled video (docs/own_objects.md).

The labels are checked first; a part of them is held out, and AP on it is told before and after.

examples:
  ausm train --coco labels.json --images photos/ -o out          COCO JSON, as annotation tools export it
  ausm train --coco labels.json --images photos/ --val more.json -o out
  ausm train --coco labels.json --images photos/ --classes cup spoon --minutes 10 -o out
  ausm train --video frames/ --masks masks/ --names 1=cup 2=spoon -o out
  ausm train -o out --resume                                     go on where it was stopped
  ausm track clip.mp4 --config out/config.yaml -o results        use it
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ausm_d2.cli.arguments import given_path
from ausm_d2.errors import UserError

HELP = "teach a model your own objects"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "-o", "--output", required=True, type=given_path, metavar="DIR", help="new folder for everything that is made"
    )
    images = parser.add_argument_group("labelled images")
    images.add_argument("--coco", metavar="JSON", help="outlines of the objects, in COCO's form")
    images.add_argument("--images", metavar="DIR", help="the folder that its file names start from")
    images.add_argument("--val", metavar="JSON", help="labels to score on (default: a part of the images is held out)")
    images.add_argument("--val-images", metavar="DIR", help="their folder (default: that of --images)")
    images.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="learn these only (default: all)")
    images.add_argument("--boxes-as-masks", action="store_true", help="objects without an outline: take their boxes")
    video = parser.add_argument_group("or a labelled video")
    video.add_argument("--video", metavar="DIR", help="folder of its frames")
    video.add_argument("--masks", metavar="DIR", help="folder of masks, FRAME.png: pixel = object id")
    video.add_argument(
        "--names", nargs="+", default=[], type=_name, metavar="ID=CLASS", help="classes of the objects (default: one)"
    )
    how = parser.add_argument_group("training")
    how.add_argument(
        "--from",
        dest="start",
        default="ausm_edge",
        metavar="NAME",
        help="model to begin with: ausm_edge, ausm_nano, a packaged config or a file (default: %(default)s)",
    )
    length = how.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_minutes, default=6.0, help="of training (default: %(default)g)")
    length.add_argument("--iterations", type=_whole, metavar="N", help="instead of minutes")
    how.add_argument("--held-out", type=_share, default=0.2, metavar="SHARE", help="(default: %(default)g)")
    how.add_argument("--seed", type=int, default=1, help="(default: %(default)d)")
    how.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys to change")
    how.add_argument("--resume", action="store_true", help="go on with the training in DIR")


def _name(text: str) -> tuple[int, str]:
    number, equals, name = text.partition("=")
    if not equals or not number.isdecimal() or not name.strip():
        raise argparse.ArgumentTypeError(f"'{text}', expected an object's id and its class, such as 1=cup")
    return int(number), name.strip()


def _minutes(text: str) -> float:
    return _number(text, lambda value: 0 < value < 1e5, "minutes, such as 15")


def _share(text: str) -> float:
    return _number(text, lambda value: 0 < value < 1, "a share above 0 and below 1, such as 0.2")


def _whole(text: str) -> int:
    return int(_number(text, lambda value: value >= 1 and value == int(value), "a whole number from 1 on"))


def _number(text: str, fits: Callable[[float], bool], expected: str) -> float:
    try:
        if fits(float(text)):
            return float(text)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"'{text}', expected {expected}")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    _check(options)
    from ausm_d2.cli import training

    return training.run(options)


def _check(options: argparse.Namespace) -> None:
    """Raise UserError if the options do not say what to learn from."""
    if options.resume:
        return
    if bool(options.coco) == bool(options.video):
        raise UserError("expected either --coco JSON with --images DIR, or --video DIR with --masks DIR")
    given, need = ("coco", "images") if options.coco else ("video", "masks")
    if not getattr(options, need):
        raise UserError(f"--{given} needs --{need} DIR too")
    of_images = ("images", "val", "val_images", "classes", "boxes_as_masks")
    odd = [each for each in (("masks", "names") if options.coco else of_images) if getattr(options, each)]
    if odd:
        raise UserError(f"--{odd[0].replace('_', '-')} does not go with --{given}")
    if options.val_images and not options.val:
        raise UserError("--val-images goes with --val")
