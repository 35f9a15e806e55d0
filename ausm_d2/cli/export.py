# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Write the streaming step of a model as one ONNX file, for frames of one size (docs/export.md).

examples:
  ausm export --config ausm_edge --size 854x480 -o ausm_edge.onnx
  ausm export --config ausm_edge --size 854x480 -o ausm_edge.onnx --check clip.mp4 --mask first.png
"""

from __future__ import annotations

import argparse
import re

from ausm_d2.cli.arguments import given_path
from ausm_d2.cli.options import add_model_arguments

HELP = "write a model as an ONNX file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("-o", "--output", required=True, type=given_path, metavar="FILE", help="the ONNX file")
    add_model_arguments(parser, device=False)
    parser.add_argument(
        "--size", type=_size, default=(480, 854), metavar="WxH", help="of the frames, in pixels (default: 854x480)"
    )
    parser.add_argument("--label-set", metavar="NAME", help="of all objects (default: that of detections)")
    check = parser.add_argument_group("comparison with PyTorch")
    check.add_argument("--check", metavar="VIDEO", help="a video of that size: compare masks and speed on it")
    check.add_argument("--mask", metavar="PNG", help="objects in its first frame (default: detect objects)")
    check.add_argument("--frames", type=int, default=50, metavar="N", help="of it (default: %(default)s)")
    check.add_argument("--threads", type=int, default=1, metavar="N", help="of both (default: %(default)s)")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < width <= 8192 or not 0 < height <= 8192:
        raise argparse.ArgumentTypeError(f"'{text}', expected width and height up to 8192, such as 854x480")
    return height, width


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from ausm_d2.cli.exporting import run

    return run(options)
