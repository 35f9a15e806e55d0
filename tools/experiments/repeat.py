# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Repeated input: videos forward, backward, forward; images also as a spatial traversal (Table 3)."""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ausm_d2.data.views import first_videos, stills
from ausm_d2.engine import Trainer
from ausm_d2.errors import UserError
from ausm_d2.evaluation.paper import TABLE_3
from ausm_d2.meta_arch import AUSM
from ausm_d2.streaming.settings import VideoSettings
from tools.experiments.report import Paper, Report, Row
from tools.experiments.setup import common_config, load_model

PAPER = Paper(
    source="Table 3 and Appendix A, Swin-B; COCO at threshold 0.9",
    measure="AP",
    values=TABLE_3,
)
_TRAVERSAL = "traversal"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, nargs="+", default=[1, 2, 3], help="default: %(default)s")
    parser.add_argument(
        "--stills", action="store_true", help="also the middle frames of the unprompted videos, as images"
    )
    parser.add_argument(
        "--image-threshold", type=float, default=0.9, help="TEST.AUSM.FG_THRESHOLD for images (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> Report:
    """Evaluate every data set with the input shown once, twice, ..."""
    if min(args.repeats) < 1:
        raise UserError(f"--repeats: {min(args.repeats)}, expected 1 or more")
    cfg = common_config(args)
    names = [first_videos(name, args.videos) for name in cfg.DATASETS.TEST]
    if args.stills:
        names += [stills(name) for name in names if MetadataCatalog.get(name).task == "vis"]
    model = load_model(cfg)
    report = Report("The input repeated", "times shown", paper=PAPER)
    for name in names:
        is_image = MetadataCatalog.get(name).task == "image"
        for setting in [*(f"x{repeat}" for repeat in args.repeats), *([_TRAVERSAL] if is_image else [])]:
            own = cfg.clone()
            own.DATASETS.TEST = [name]
            own.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR, setting))
            own.TEST.AUSM.SPATIAL_TRAVERSAL = setting == _TRAVERSAL
            own.TEST.AUSM.REPEAT = 1 if setting == _TRAVERSAL else int(setting[1:])
            if is_image:
                own.TEST.AUSM.FG_THRESHOLD = args.image_threshold
            report.rows.append(Row(name, setting, _evaluate(own, model)))
    return report


def _evaluate(cfg: CfgNode, model: AUSM) -> dict[str, dict[str, float]]:
    model.video = VideoSettings.from_config(cfg)
    return Trainer.test(cfg, model)
