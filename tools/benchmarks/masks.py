# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Whether devices and kernels give the same masks: prompted videos, with the weights of the config."""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import numpy as np

from ausm_d2.config import load_config
from ausm_d2.data.catalog import register_from_config
from ausm_d2.errors import UserError
from ausm_d2.kernels.choice import use_kernels
from ausm_d2.streaming.predictor import VideoPredictor
from tools.benchmarks import measure
from tools.benchmarks.quality import Ours
from tools.real_video import Scores, video_clips


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", default="configs/synth/ausm_nano.yaml", help="with weights")
    parser.add_argument("--data", default="synthvis_val_vos", help="a data set of prompted videos")
    parser.add_argument("--every", type=measure.positive, default=1, help="use every N-th frame")
    parser.add_argument("--videos", type=measure.positive, default=5)
    parser.add_argument("--frames", type=measure.positive, default=16, help="of a video at the most")
    parser.add_argument(
        "--ways",
        nargs="+",
        default=["cpu:reference", "cpu:auto", "cuda:auto"],
        help="DEVICE:KERNELS ... (MODEL.AUSM.KERNELS); the others are compared with the first",
    )
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE ... of the config")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """For every way: J (percent), and the IoU of its masks with those of the first way: the mean, the smallest, and the
    number of masks that differ in any pixel, of all.

    Raises:
        UserError: if a way or a data set cannot be used.
    """
    predictors = {way: _predictor(way, args) for way in args.ways}
    scores = {way: Scores() for way in args.ways}
    overlaps: dict[str, list[float]] = {way: [] for way in args.ways}
    for _, clip in itertools.islice(video_clips(args.data, args.every), args.videos):
        methods = {way: Ours(predictor) for way, predictor in predictors.items()}
        given: dict[int, np.ndarray] = {}
        for t, (frame, masks) in enumerate(itertools.islice(clip, args.frames)):
            if t == 0:
                given = {object_id: mask for object_id, mask in masks.items() if mask.any()}
            found = {}
            for way, method in methods.items():
                with use_kernels(way.split(":")[-1]):
                    found[way] = method.step(frame) if t else method.start(frame, given)
            for way, object_id in itertools.product(args.ways if t else (), given):
                mask, first = found[way][object_id], found[args.ways[0]][object_id]
                scores[way].add(clip.name, object_id, mask, masks.get(object_id, np.zeros(mask.shape, bool)))
                overlaps[way].append(_iou(mask, first))
    if not overlaps[args.ways[0]]:
        raise UserError(f"--data {args.data}: no video of two frames or more with an object in its first frame")
    rows = [
        {
            "way": way,
            "J": scores[way].summary()["mean"],
            "iou_mean": float(np.mean(values)),
            "iou_min": min(values),
            "differ": sum(each < 1 for each in values),
            "masks": len(values),
        }
        for way, values in overlaps.items()
    ]
    measure.print_table(rows)
    return {"rows": rows}


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def _predictor(way: str, args: argparse.Namespace) -> VideoPredictor:
    device, separator, _ = way.rpartition(":")
    if not separator:
        raise UserError(f"--ways {way}: expected DEVICE:KERNELS, such as cpu:reference")
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", device])
    register_from_config(cfg)
    return VideoPredictor(cfg)
