#!/usr/bin/env python
# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Segment an image, a folder of frames, a video file or a camera stream, with or without prompts.

    python demo/demo.py --config-file configs/synth/ausm_nano.yaml --input video.mp4 --output results
    python demo/demo.py --config-file ... --input frames/ --prompt-masks first.png --output results

Similar to Detectron2's demo. ``ausm track`` does the same and more. The results are described in demo/README.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2

from ausm_d2.cli.arguments import given_path
from ausm_d2.cli.model import config
from ausm_d2.cli.tracking import track_one
from ausm_d2.errors import UserError, cli
from ausm_d2.jobs.prompt_file import read_prompts
from ausm_d2.jobs.track import Request
from ausm_d2.video.inputs import open_source

__all__ = ["UserError", "cv2", "main", "open_source", "parse_args", "read_prompts", "run"]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the model; names its weights")
    parser.add_argument(
        "--input", required=True, metavar="PATH", help="video, folder of frames, image or camera number"
    )
    parser.add_argument("--prompt-masks", metavar="PNG", help="objects in the first frame, pixel = object id")
    parser.add_argument("--output", required=True, type=given_path, metavar="DIR", help="folder for the results")
    parser.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    parser.add_argument("--resume", action="store_true", help="continue incomplete results")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to change"
    )
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> str:
    """Run the command; returns a summary in one line.

    Raises:
        UserError: if an argument or the input is invalid.
    """
    said: list[str] = []
    _run(args, said)
    return said[0]


def _run(args: argparse.Namespace, said: list[str]) -> int:
    cfg = config(args.config_file, args.opts)
    prompts = {0: read_prompts(args.prompt_masks)} if args.prompt_masks else {}
    asked = Request(
        source=args.input,
        output=Path(args.output),
        prompts=prompts,
        given_by=args.prompt_masks or "",
        find=not prompts,
        frames=args.frames,
        resume=args.resume,
    )
    return track_one(cfg, asked, said.append)


def main() -> int:
    said: list[str] = []
    code = _run(parse_args(), said)
    print(*said)
    return code


if __name__ == "__main__":
    cli(main)
