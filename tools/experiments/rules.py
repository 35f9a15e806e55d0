# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Rules that the paper leaves open: score of a track, unsure rows, detections that overlap tracked rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from ausm_d2.data.views import as_objects, first_videos
from ausm_d2.engine import Trainer
from ausm_d2.errors import UserError
from ausm_d2.streaming.settings import VideoSettings
from tools.experiments.report import Report, Row
from tools.experiments.setup import common_config, load_model

RULES: dict[str, dict[str, Any]] = {
    "default": {},
    "visible frames": {"TRACK_SCORE": "visible"},
    "mask confidence": {"TRACK_SCORE": "mask"},
    "maximum": {"TRACK_SCORE": "max"},
    "hidden below 0.3": {"HIDE_BELOW": 0.3},
    "hidden below 0.5": {"HIDE_BELOW": 0.5},
    "hidden below 0.7": {"HIDE_BELOW": 0.7},
    "new to IoU 0.3": {"BIRTH_IOU": 0.3},
    "new to IoU 0.5": {"BIRTH_IOU": 0.5},
    "all new": {"BIRTH_IOU": 1.0},
}
"""Keys of TEST.AUSM by the name of the rule."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES), help="default: all")
    parser.add_argument("--as-objects", action="store_true", help="all classes as one, in the label set 'object'")


def run(args: argparse.Namespace) -> Report:
    """Evaluate unprompted data sets with the default rules and with others (docs/deviations.md, 12)."""
    cfg = common_config(args, as_objects if args.as_objects else None)
    unprompted = [name for name in cfg.DATASETS.TEST if MetadataCatalog.get(name).task != "vos"]
    if not unprompted:
        raise UserError(f"DATASETS.TEST: {list(cfg.DATASETS.TEST)}; only unprompted data sets have tracks to judge")
    model = load_model(cfg)
    report = Report("Rules of tracks", "rule", ordered=False)
    for name in (first_videos(name, args.videos) for name in unprompted):
        name = as_objects(name) if args.as_objects else name
        for rule in args.rules:
            own = cfg.clone()
            own.DATASETS.TEST = [name]
            own.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR, rule.replace(" ", "_")))
            own.merge_from_list([part for key, value in RULES[rule].items() for part in (f"TEST.AUSM.{key}", value)])
            model.video = VideoSettings.from_config(own)
            report.rows.append(Row(name, rule, Trainer.test(own, model)))
    return report
