# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Time per frame against J on real video, first masks given: models of this project and OpenCV's trackers.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from ausm_d2.config import load_config
from ausm_d2.data.catalog import register_from_config
from ausm_d2.errors import UserError
from ausm_d2.evaluation.references import FlowMasks
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.session import Session
from tools.benchmarks import measure
from tools.real_video import Masks, Scores, video_clips

_LINES = ["--", ":", "-.", (0, (1, 4)), (0, (8, 2))]  # of matplotlib
COPIED, FLOW, BOXES = "first mask copied", "DIS flow", "tracked box"


class Method(Protocol):
    """A tracking method."""

    def start(self, frame: np.ndarray, masks: Masks) -> None:
        """The first frame, uint8 (H, W, 3), BGR, and bool (H, W) masks by object."""

    def step(self, frame: np.ndarray) -> Masks:
        """The masks in the next frame."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    measure.add_clock_argument(parser)
    parser.add_argument("--config-file", nargs="+", default=["configs/edge/ausm_edge.yaml"], help="with weights")
    parser.add_argument("--data", required=True, help="a data set of prompted videos, such as davis_2017_val")
    parser.add_argument("--every", type=measure.positive, default=1, help="use every N-th frame")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE ... of every config, as to register the data")
    parser.add_argument("--references", nargs="*", choices=[COPIED, FLOW, BOXES], default=[COPIED, FLOW, BOXES])
    parser.add_argument(
        "--times", type=Path, nargs="*", default=[], help="JSON files of peers: their times are drawn as lines"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Median and quartiles (ms) of one frame, from full-size pixels to full-size masks, and J (percent), the
    mean over videos. The methods alternate on each frame.

    Raises:
        UserError: a config or a file of --times is missing or invalid, or a data set has no videos.
    """
    peers = [row for path in args.times for row in _peers(path)]
    configs = {name: load_config(path, args.opts) for name, path in measure.by_name(args.config_file).items()}
    makers: dict[str, Callable[[], Method]] = {}
    for name, cfg in configs.items():
        register_from_config(cfg)
        predictor = VideoPredictor(cfg)
        makers[name] = lambda predictor=predictor: Ours(predictor)  # type: ignore[misc]
    box = _box_tracker()[0]
    own: dict[str, tuple[str, Callable[[], Method]]] = {
        COPIED: (COPIED, _Copied),
        FLOW: (FLOW, _Flow),
        BOXES: (f"{BOXES} ({box})", _Boxes),
    }
    makers |= dict(own[name] for name in args.references)
    times, scores = _measured(makers, args)
    rows = []
    for name in makers:
        score = scores[name].summary()
        rows.append({"model": name, "J": score["mean"], **measure.spread(times[name])})
    measure.print_table(rows)
    return {"rows": rows, "peers": peers}


def plot(figures: dict[str, Any], path: Path) -> None:
    """Plot J over time per frame. Peers without weights have only a time, drawn as a line."""
    with measure.picture(path, "milliseconds a frame", "J, percent") as axes:
        axes.set_xscale("log")
        for row in figures["rows"]:
            label = row["model"] if row["ms"] >= 1 else f"{row['model']} (under 1 ms)"
            axes.plot([max(row["ms"], 1.0)], [row["J"]], marker="o", linestyle="", label=label)
        for i, row in enumerate(figures["peers"]):
            label = f"{row['model']}: time only"
            axes.axvline(row["ms"], color="gray", linestyle=_LINES[i % len(_LINES)], linewidth=1, label=label)
        axes.set_ylim(0, 100)


def _measured(
    makers: Mapping[str, Callable[[], Method]], args: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, Scores]]:
    clock = time.process_time if args.cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in makers}
    scores = {name: Scores() for name in makers}
    for _, clip in video_clips(args.data, args.every):
        methods = {name: make() for name, make in makers.items()}
        given: Masks = {}
        for t, (frame, masks) in enumerate(clip):
            if t == 0:
                given = {object_id: mask for object_id, mask in masks.items() if mask.any()}
                if not given:
                    raise UserError(f"{args.data}: '{clip.name}' has no object in its first frame")
                for method in methods.values():
                    method.start(frame, given)
                continue
            for name, method in methods.items():
                begin = clock()
                found = method.step(frame)
                times[name].append(clock() - begin)
                for object_id in given:
                    true = masks.get(object_id, np.zeros(frame.shape[:2], bool))
                    scores[name].add(clip.name, object_id, found[object_id], true)
    if not all(times.values()):
        raise UserError(f"--data {args.data}: no video of two frames or more")
    return times, scores


class Ours:
    """A model of this project."""

    def __init__(self, predictor: VideoPredictor) -> None:
        self._predictor = predictor
        self._session: Session | None = None

    def start(self, frame: np.ndarray, masks: Masks) -> None:
        self._session = self._predictor.start(frame, dict(masks))

    def step(self, frame: np.ndarray) -> Masks:
        assert self._session is not None
        found = self._session.step(frame).instances
        return dict(zip(found.track_ids.tolist(), found.pred_masks.cpu().numpy(), strict=True))


class _Copied:
    def start(self, frame: np.ndarray, masks: Masks) -> None:
        self._masks = {object_id: mask.copy() for object_id, mask in masks.items()}

    def step(self, frame: np.ndarray) -> Masks:
        return {object_id: mask.copy() for object_id, mask in self._masks.items()}


class _Flow:
    def start(self, frame: np.ndarray, masks: Masks) -> None:
        self._flow = FlowMasks()
        self._flow.step(frame[..., ::-1])
        self._flow.give(masks)

    def step(self, frame: np.ndarray) -> Masks:
        self._flow.step(frame[..., ::-1])
        return self._flow.masks()


class _Boxes:
    """The box of each object, tracked by OpenCV; the mask is the filled box."""

    def start(self, frame: np.ndarray, masks: Masks) -> None:
        self._trackers = {}
        for object_id, mask in masks.items():
            tracker = _box_tracker()[1]()
            tracker.init(frame, cv2.boundingRect(mask.astype(np.uint8)))
            self._trackers[object_id] = tracker

    def step(self, frame: np.ndarray) -> Masks:
        found = {}
        for object_id, tracker in self._trackers.items():
            mask = np.zeros(frame.shape[:2], bool)
            there, box = tracker.update(frame)
            if there:
                left, top, width, height = (round(side) for side in box)
                mask[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True
            found[object_id] = mask
        return found


def _box_tracker() -> tuple[str, Callable[[], Any]]:
    """CSRT, which only OpenCV's contrib package has; otherwise MIL."""
    if hasattr(cv2, "TrackerCSRT"):
        return "CSRT", cv2.TrackerCSRT.create
    return "MIL", cv2.TrackerMIL.create


def _peers(path: Path) -> list[dict[str, Any]]:
    """Rows of this project's peers in a file that ``peers --json`` wrote: one object, or unprompted."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        size, rows = report["arguments"]["size"], report["peers"]["rows"]
        own = {Path(name).stem for name in report["arguments"]["config_file"]}
        return [
            {**row, "model": f"{row['model']}, {size} pixels"}
            for row in rows
            if row["model"] not in own and row["objects"] in (1, None)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--times {path}: not a file of python -m tools.benchmark peers --json: {error}") from None
