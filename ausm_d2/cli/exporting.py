# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Runs ``ausm export`` after its command line is parsed by export.py, which has no slow imports."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch

from ausm_d2.cli.model import config
from ausm_d2.cli.progress import show_warnings
from ausm_d2.errors import UserError
from ausm_d2.export.check import LEAST, compare
from ausm_d2.export.graph import export_step, require_packages
from ausm_d2.io import require_room
from ausm_d2.jobs.prompt_file import read_prompts
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.video.inputs import open_source, with_first


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    require_packages()
    show_warnings()
    if Path(options.output).is_dir():
        raise UserError(f"'{options.output}' is a folder; a file expected, such as model.onnx")
    if options.mask and not options.check:
        raise UserError("--mask: only with --check")
    for name in ("frames", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: {getattr(options, name)}, expected 1 or more")
    changes = [*options.opts, "MODEL.DEVICE", "cpu", "TEST.AUSM.AMP", False, "TEST.AUSM.SMALL_PROMPT_CELLS", 0]
    changes += ["MODEL.WEIGHTS", options.weights] if options.weights else []
    predictor = VideoPredictor(config(options.config, changes))
    label_set = options.label_set or predictor.label_set
    height, width = options.size
    require_room(Path(options.output).absolute().parent)
    export_step(predictor, options.size, label_set, Path(options.output))
    size = Path(options.output).stat().st_size / 1e6
    print(f"{options.output}: {size:.1f} MB, for frames of {width}x{height} pixels, label set '{label_set}'")
    if options.check:
        _check(predictor, label_set, options)
    return 0


def _check(predictor: VideoPredictor, label_set: str, options: argparse.Namespace) -> None:
    """Compare with PyTorch on a video, and print the result.

    Raises:
        UserError: if the masks differ, or the video or the prompts do not fit.
    """
    torch.set_num_threads(options.threads)
    prompts = read_prompts(options.mask) if options.mask else None
    expected = predictor.label_set if prompts is None else predictor.settings.prompt_label_set
    if label_set != expected:
        raise UserError(f"--check: expected --label-set {expected}, that of {'prompts' if prompts else 'detections'}")
    first, source = with_first(open_source(options.check))
    height, width = first.image.shape[:2]
    if (height, width) != options.size:
        raise UserError(f"--check {options.check}: frames of {width}x{height} pixels; add --size {width}x{height}")
    frames = (frame.image for frame in islice(source.frames, options.frames))
    predictor.settings = predictor.settings.without_rules()  # the graph's driver has none
    found = compare(predictor, Path(options.output), frames, prompts, threads=options.threads)
    print(found)
    if found.mean_iou < LEAST:
        raise UserError(f"the exported step has other masks than PyTorch: mean IoU {found.mean_iou:.4f}")
