# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Serve a page on this machine: click on an object in a video and see it followed.

examples:
  ausm app                               then open the address that it prints
  ausm app --folder videos --open        choose from a folder; open the browser
  ausm app --config ausm_nano --port 0   another model; any free port
  ausm app --host 0.0.0.0                for others in the network too, who need the key in the address

Ctrl-C ends it. docs/app.md explains the page, its keys and its limits.
"""

from __future__ import annotations

import argparse

from ausm_d2.cli.options import add_model_arguments
from ausm_d2.errors import UserError

HELP = "a page to click on objects in videos"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--folder", default=".", metavar="DIR", help="videos in it and below may be chosen (default: this folder)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=_whole(0, 65535), default=7860, help="0: any (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    add_model_arguments(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-mb", type=_whole(1, 1 << 20), default=500, metavar="N", help="of a video file (default: %(default)s)"
    )
    limits.add_argument(
        "--max-frames", type=_whole(1, 10**7), default=20_000, metavar="N", help="of a video (default: %(default)s)"
    )
    limits.add_argument(
        "--sessions", type=_whole(1, 1000), default=4, metavar="N", help="pages at a time (default: %(default)s)"
    )
    limits.add_argument(
        "--idle-minutes",
        type=_whole(1, 10**6),
        default=30,
        metavar="N",
        help="a session that is not used for so long ends, and its files are removed (default: %(default)s)",
    )


class _whole:
    """Argument type: an integer within a range."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def __call__(self, text: str) -> int:
        if not text.isdecimal() or len(text) > 9 or not self._least <= int(text) <= self._most:
            raise argparse.ArgumentTypeError(f"'{text}', expected a whole number from {self._least} to {self._most}")
        return int(text)


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM; returns the exit code."""
    try:
        from ausm_d2.cli import serving
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UserError(f"{error.name} is not installed; pip install 'ausm_d2[app]'") from None
    return serving.run(options)
