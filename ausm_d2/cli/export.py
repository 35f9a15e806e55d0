# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Write the streaming step of a model as one ONNX file, for frames of one size (docs/export.md).

examples:
  ausm export --config ausm_edge --size 854x480 -o ausm_edge.onnx
  ausm export --config ausm_edge --size 854x480 -o ausm_edge.onnx --check clip.mp4 --mask first.png
"""

from __future__ import annotations

import argparse
import re
from itertools import islice
from pathlib import Path

HELP = "write a model as an ONNX file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the ONNX file")
    parser.add_argument(
        "--config",
        default="ausm_edge",
        metavar="NAME",
        help="ausm_edge, ausm_nano, a packaged config or a file (default: %(default)s)",
    )
    parser.add_argument("--weights", metavar="FILE", help="instead of those that the config names")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys to change")
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
    """Do it; returns the exit code: 1 if the comparison finds other masks."""
    from ausm_d2.cli.tracking import config
    from ausm_d2.errors import UserError
    from ausm_d2.export.graph import export_step, require_packages
    from ausm_d2.streaming.predictor import VideoPredictor

    require_packages()
    if Path(options.output).is_dir():
        raise UserError(f"'{options.output}' is a folder; a file expected, such as model.onnx")
    if options.mask and not options.check:
        raise UserError("--mask: only with --check")
    changes = [*options.opts, "MODEL.DEVICE", "cpu", "TEST.AUSM.AMP", False, "TEST.AUSM.SMALL_PROMPT_CELLS", 0]
    changes += ["MODEL.WEIGHTS", options.weights] if options.weights else []
    predictor = VideoPredictor(config(options.config, changes))
    label_set = options.label_set or predictor.label_set
    height, width = options.size
    export_step(predictor, options.size, label_set, Path(options.output))
    size = Path(options.output).stat().st_size / 1e6
    print(f"{options.output}: {size:.1f} MB, for frames of {width}x{height} pixels, label set '{label_set}'")
    return _check(predictor, label_set, options) if options.check else 0


def _check(predictor, label_set: str, options: argparse.Namespace) -> int:  # type: ignore[no-untyped-def]
    import torch

    from ausm_d2.errors import UserError
    from ausm_d2.export.check import LEAST, compare
    from ausm_d2.jobs.prompt_file import read_prompts
    from ausm_d2.video.inputs import open_source, with_first

    torch.set_num_threads(options.threads)
    prompts = read_prompts(options.mask) if options.mask else None
    if prompts is not None and label_set != predictor.settings.prompt_label_set:
        raise UserError(f"--mask: prompts are of label set '{predictor.settings.prompt_label_set}'; add --label-set")
    first, source = with_first(open_source(options.check))
    height, width = first.image.shape[:2]
    if (height, width) != options.size:
        raise UserError(f"--check {options.check}: frames of {width}x{height} pixels; add --size {width}x{height}")
    frames = (frame.image for frame in islice(source.frames, options.frames))
    found = compare(predictor, Path(options.output), frames, prompts, threads=options.threads)
    print(found)
    if found.mean_iou < LEAST:
        raise UserError(f"the exported step has other masks than PyTorch: mean IoU {found.mean_iou:.4f}")
    return 0
