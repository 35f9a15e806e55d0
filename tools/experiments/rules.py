# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Rules that the paper leaves open: score of a track, unsure rows, detections that overlap tracked rows."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ausm_d2.data.build import get_records
from ausm_d2.data.video import VideoRecord
from ausm_d2.data.views import as_clips, as_objects, first_videos
from ausm_d2.engine import Trainer
from ausm_d2.errors import UserError
from ausm_d2.evaluation.paper import markdown_table
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.evaluation.tracks import track_overlaps, true_masks
from ausm_d2.streaming.settings import VideoSettings
from tools.experiments.report import Report, Row
from tools.experiments.setup import common_config, load_model

RULES: dict[str, dict[str, Any]] = {
    "default": {},
    "mean": {"TRACK_SCORE": "mean"},
    "visible frames": {"TRACK_SCORE": "visible"},
    "mask confidence": {"TRACK_SCORE": "mask"},
    "maximum": {"TRACK_SCORE": "max"},
    "hidden below 0.3": {"HIDE_BELOW": 0.3},
    "hidden below 0.5": {"HIDE_BELOW": 0.5},
    "hidden below 0.7": {"HIDE_BELOW": 0.7},
    "new to IoU 0.3": {"BIRTH_IOU": 0.3},
    "new to IoU 0.5": {"BIRTH_IOU": 0.5},
    "all new": {"BIRTH_IOU": 1.0},
    "no duplicates ended": {"DUPLICATE_OVERLAP": 1.0},
}
"""Keys of TEST.AUSM by the name of the rule."""
_FITS = 0.5  # IoU from which a track is of an object


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES), help="default: all")
    parser.add_argument("--as-objects", action="store_true", help="all classes as one, in the label set 'object'")
    parser.add_argument(
        "--clips",
        type=int,
        metavar="N",
        help="of data sets of images: N clips made of images, as for training, played forward and backward",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the clips' motion (default: %(default)s)")


def run(args: argparse.Namespace) -> Report:
    """Evaluate unprompted data sets with the default rules and with others (docs/deviations.md, 12)."""
    if args.clips is not None and args.clips < 1:
        raise UserError(f"--clips: {args.clips}, expected 1 or more")
    cfg = common_config(args, as_objects if args.as_objects else None)
    unprompted = [name for name in cfg.DATASETS.TEST if MetadataCatalog.get(name).task != "vos"]
    if not unprompted:
        raise UserError(f"DATASETS.TEST: {list(cfg.DATASETS.TEST)}; only unprompted data sets have tracks to judge")
    views = [_view(name, args, cfg) for name in unprompted]
    model = load_model(cfg)
    report = Report("Rules of tracks", "rule", ordered=False)
    for shown, by_seed in views:
        for rule in args.rules:
            for seed, name in by_seed.items():
                own = cfg.clone()
                own.DATASETS.TEST = [name]
                own.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR, rule.replace(" ", "_")))
                own.merge_from_list(
                    [part for key, value in RULES[rule].items() for part in (f"TEST.AUSM.{key}", value)]
                )
                model.video = VideoSettings.from_config(own)
                scores = Trainer.test(own, model)
                results = ResultFolder(Path(own.OUTPUT_DIR, "inference", name, "videos"))
                scores["tracks"] = count_tracks(get_records(name), results)
                report.rows.append(Row(shown, rule, scores, seed if len(by_seed) > 1 else None))
    report.notes.append(_track_table(report.rows))
    return report


def _view(name: str, args: argparse.Namespace, cfg: CfgNode) -> tuple[str, dict[int, str]]:
    """What of a data set is evaluated: its name in the report, and the name of a data set by seed."""
    name = first_videos(name, args.videos)
    view: Callable[[str], str] = as_objects if args.as_objects else str
    if args.clips is None:
        return view(name), {0: view(name)}
    clips = partial(as_clips, name, cfg, args.clips, back=True)
    return f"{view(name)}_clips", {seed: view(clips(seed=seed)) for seed in args.seeds}


def count_tracks(records: Sequence[VideoRecord], results: ResultFolder) -> dict[str, float]:
    """How many tracks an evaluation returned; how many are false: no object has an IoU of 0.5 or more with them."""
    shown = false = frames = 0
    for record in records:
        tracks = [track["segmentations"] for track in results.read(record).best_classes()]
        overlaps = track_overlaps(tracks, list(true_masks(record).values()))
        shown += len(tracks)
        false += sum(not (of_one >= _FITS).any() for of_one in overlaps)
        frames += record.length
    return {"shown": shown, "false": false, "frames": frames}


def _track_table(rows: Sequence[Row]) -> str:
    """Tracks shown and false ones by data set and rule, summed over seeds, as Markdown."""
    sums: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        sums.setdefault((row.dataset, row.setting), Counter()).update(row.scores["tracks"])
    lines = [
        [*key, f"{of['shown']:.0f}", f"{of['false']:.0f}", f"{100 * of['false'] / of['frames']:.1f}"]
        for key, of in sums.items()
    ]
    return markdown_table(["Data set", "Rule", "Tracks shown", "false", "false per 100 frames"], lines)
