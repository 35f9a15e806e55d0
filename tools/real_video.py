#!/usr/bin/env python
# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Scores on real video: prompted, unprompted and from coarse prompts; by video and by the area of the objects.

    python -m tools.real_video --config-file configs/edge/ausm_edge.yaml [--weights W.pth] [--every 2]
        [--json OUT.json] [--sheets DIR]
        [--parts prompted looks drawn unprompted references images] [--images NAME --count 24] --opts KEY VALUE ...

The prompted data sets (DAVIS's layout) of DATASETS.TEST are scored. With every n-th frame only (--every) it is cheap
enough to be run during a training. J is the mean IoU over frames 2 to the last, in percent.

    prompted    J by video, and by the area of the object in the frame
    looks       the same with degraded frames: grey, 120 pixels high, contrast 0.35
    drawn       IoU in the first frame from a box and from a disc, refined once; from three discs, refined twice
    unprompted  J of the track that fits an object best, and of the one with the best score; tracks per video
    references  for prompted: the first mask copied, and carried by DIS optical flow
    images      clips made of images (--images, INPUT.PSEUDO), prompted with all objects of the first frame: J by area

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ausm_d2.config import load_config
from ausm_d2.data.build import get_records
from ausm_d2.data.catalog import register_from_config
from ausm_d2.data.thinning import every_nth
from ausm_d2.data.video import VideoRecord
from ausm_d2.data.views import as_clips
from ausm_d2.errors import UserError, cli
from ausm_d2.evaluation.references import CopiedMask, FlowMask
from ausm_d2.evaluation.vos import AREAS, area_class
from ausm_d2.io import atomic_write
from ausm_d2.masks.drawn import box_mask, clicks_mask
from ausm_d2.masks.rle import decode, to_rle
from ausm_d2.streaming.predictor import VideoPredictor
from tools.sheets import Sheet

PARTS = ("prompted", "looks", "images", "drawn", "unprompted", "references")

Masks = Mapping[int, np.ndarray]  # bool (H, W), by object
Look = Callable[[np.ndarray], np.ndarray]


@dataclass
class Clip:
    """Frames of a video with the true masks of their objects."""

    name: str
    length: int
    read: Callable[[int], tuple[np.ndarray, Masks]]  # uint8 (H, W, 3), BGR

    def __iter__(self) -> Iterator[tuple[np.ndarray, Masks]]:
        return map(self.read, range(self.length))


def iou(found: np.ndarray, true: np.ndarray) -> float:
    """IoU of two masks; 1 if both are empty."""
    union = np.count_nonzero(found | true)
    return np.count_nonzero(found & true) / union if union else 1.0


class Scores:
    """IoUs of the objects of one data set, by video and by area."""

    def __init__(self) -> None:
        self._by_object: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._by_area: dict[float, list[float]] = defaultdict(list)

    def add(self, clip: str, object_id: int, found: np.ndarray, true: np.ndarray) -> None:
        value = iou(found, true)
        self._by_object[clip][object_id].append(value)
        if true.any():
            self._by_area[area_class(true)].append(value)

    def summary(self) -> dict[str, Any]:
        """In percent: the mean over videos, by video, and by area."""
        videos = {
            name: 100 * float(np.mean([np.mean(values) for values in objects.values()]))
            for name, objects in self._by_object.items()
        }
        areas = {f"<= {edge:g} %": 100 * float(np.mean(self._by_area[edge])) for edge in AREAS if self._by_area[edge]}
        return {"mean": float(np.mean(list(videos.values()))) if videos else None, "videos": videos, "areas": areas}


def video_clips(name: str, every: int) -> Iterator[tuple[VideoRecord, Clip]]:
    """Every ``every``-th frame of the videos of a prompted data set, as record and as clip."""
    for stored in get_records(name):
        record = every_nth(stored, every)

        def read(t: int, record: VideoRecord = record) -> tuple[np.ndarray, Masks]:
            assert record.masks is not None
            masks = record.masks.read(t) if record.is_labelled(t) else {}
            rles = {object_id: to_rle(mask, record.height, record.width) for object_id, mask in masks.items()}
            return (
                np.ascontiguousarray(record.frames[t][..., ::-1]),
                {object_id: decode(rle) for object_id, rle in rles.items() if rle is not None},
            )

        yield record, Clip(record.name, record.length, read)


def poor_camera(frame: np.ndarray) -> np.ndarray:
    """Grey, 120 pixels high, contrast 0.35."""
    height, width = frame.shape[:2]
    small = cv2.resize(frame, (round(width * 120 / height), 120), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    faint = np.asarray(np.clip(grey.astype(np.float32) * 0.35 + 80, 0, 255).astype(np.uint8))
    return cv2.resize(faint, (width, height), interpolation=cv2.INTER_LINEAR)


def follow(
    predictor: VideoPredictor,
    clip: Clip,
    scores: Scores,
    look: Look = lambda frame: frame,
    sheet: Path | None = None,
) -> None:
    """Prompt with all masks of the first frame that has any; score every later frame."""
    session = None
    given: Masks = {}
    pictures = Sheet(predictor, sheet)
    for frame, masks in clip:
        if session is None:
            given = {object_id: mask for object_id, mask in masks.items() if mask.any()}
            session = predictor.start(look(frame), given) if given else None
            continue
        instances = session.step(look(frame)).instances
        pictures.add(look(frame), instances)
        found = dict(zip(instances.track_ids.tolist(), instances.pred_masks.cpu().numpy(), strict=True))
        for object_id in given:
            true = masks.get(object_id, np.zeros(frame.shape[:2], bool))
            scores.add(clip.name, object_id, found[object_id], true)
    pictures.write()


def drawn(predictor: VideoPredictor, clip: Clip, scores: Mapping[str, Scores]) -> None:
    """Score masks refined from a box, a disc and three discs, in the first frame."""
    frame, masks = clip.read(0)
    for object_id, mask in masks.items():
        if not mask.any():
            continue
        size = (mask.shape[0], mask.shape[1])
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = box_mask(size, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        prompts = {
            "box": (box, 1),
            "disc": (clicks_mask(size, middles(mask, 1)), 1),
            "three discs": (clicks_mask(size, middles(mask, 3)), 2),
        }
        scores["box itself"].add(clip.name, object_id, box, mask)
        for kind, (prompt, times) in prompts.items():
            session = predictor.start(frame, {1: prompt})
            for _ in range(times):
                found = session.step(frame).instances.pred_masks[0].cpu().numpy()
            scores[kind].add(clip.name, object_id, found, mask)


def middles(mask: np.ndarray, count: int) -> list[tuple[float, float]]:
    """(x, y) of the innermost pixel of each of ``count`` parts of the object, cut across its longer side."""
    rows, columns = np.nonzero(mask)
    along = columns if np.ptp(columns) >= np.ptp(rows) else rows
    edges = np.quantile(along, np.linspace(0, 1, count + 1))
    points = []
    for low, high in pairwise(edges):
        part = np.zeros_like(mask, np.uint8)
        chosen = (along >= low) & (along <= high)
        part[rows[chosen], columns[chosen]] = 1
        depth = cv2.distanceTransform(np.pad(part, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        points.append((x + 0.5, y + 0.5))
    return points


class Found(NamedTuple):
    """An unprompted video; percent."""

    best: float  # J of the track that fits an object best, mean over objects
    surest: float  # J of the track that has the best score in the end, with the object that it fits best
    tracks: int


def found_by_itself(predictor: VideoPredictor, clip: Clip, sheet: Path | None = None) -> Found:
    """Find and follow everything; compare with the true objects."""
    pictures = Sheet(predictor, sheet)
    overlaps: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    scores: dict[int, float] = {}  # of every track, when it was last seen
    truth = [masks for _, masks in clip]
    for t, result in enumerate(predictor.stream(frame for frame, _ in clip)):
        instances = result.instances
        if sheet is not None:
            pictures.add(clip.read(t)[0], instances)
        found = dict(zip(instances.track_ids.tolist(), instances.pred_masks.cpu().numpy(), strict=True))
        scores |= zip(found, instances.scores.tolist(), strict=True)
        for object_id, true in truth[t].items() if t else ():
            for track_id, mask in found.items():
                overlaps[object_id][track_id].append(iou(mask, true))
    pictures.write()
    sums = [{track_id: sum(of) for track_id, of in overlaps[object_id].items()} for object_id in truth[0]]
    surest = max(scores, key=lambda track_id: scores[track_id], default=0)
    share = 100 / max(1, clip.length - 1)
    return Found(
        best=share * float(np.mean([max(of.values(), default=0.0) for of in sums])),
        surest=share * float(max((of.get(surest, 0.0) for of in sums), default=0.0)),
        tracks=len(scores),
    )


def references(name: str, every: int) -> dict[str, dict[str, Any]]:
    """Scores of the references on the same frames: the first mask copied, and carried by optical flow."""
    summaries = {}
    for kind, reference in (("first mask copied", CopiedMask()), ("DIS flow", FlowMask())):
        scores = Scores()
        for record, clip in video_clips(name, every):
            objects = reference([{"record": record}])[0]["objects"]
            for t, (_, masks) in enumerate(clip):
                for object_id, rles in objects.items() if t else ():
                    true = masks.get(object_id, np.zeros((record.height, record.width), bool))
                    rle = rles[t]
                    scores.add(clip.name, object_id, decode(rle) if rle is not None else np.zeros_like(true), true)
        summaries[kind] = scores.summary()
    return summaries


def score_videos(
    predictor: VideoPredictor, name: str, every: int, parts: Sequence[str], sheets: Path | None = None
) -> dict[str, Any]:
    """Score the requested parts on one data set."""
    result: dict[str, Any] = {}
    prompted, looks = Scores(), Scores()
    coarse = {kind: Scores() for kind in ("box itself", "box", "disc", "three discs")}
    found: dict[str, Found] = {}
    for _, clip in video_clips(name, every):
        if "prompted" in parts:
            follow(predictor, clip, prompted, sheet=sheets and sheets / f"{name}_{clip.name}_prompted.png")
        if "looks" in parts:
            follow(predictor, clip, looks, poor_camera)
        if "drawn" in parts:
            drawn(predictor, clip, coarse)
        if "unprompted" in parts:
            sheet = sheets and sheets / f"{name}_{clip.name}_unprompted.png"
            found[clip.name] = found_by_itself(predictor, clip, sheet)
    if "prompted" in parts:
        result["prompted"] = prompted.summary()
    if "looks" in parts:
        result["looks"] = looks.summary()
    if "drawn" in parts:
        result["drawn"] = {kind: each.summary() for kind, each in coarse.items()}
    if "unprompted" in parts:
        result["unprompted"] = {
            "mean": float(np.mean([each.best for each in found.values()])),
            "surest": float(np.mean([each.surest for each in found.values()])),
            "tracks": float(np.mean([each.tracks for each in found.values()])),
            "videos": {video: each.best for video, each in found.items()},
        }
    if "references" in parts:
        result["references"] = references(name, every)
    return result


def lines(result: dict[str, Any], title: str = "") -> Iterator[str]:
    """A result, one line for each table row."""
    for key, value in result.items():
        if isinstance(value, dict) and all(not isinstance(each, dict) for each in value.values()):
            cells = "  ".join(f"{name} {number:.1f}" for name, number in value.items() if number is not None)
            yield f"{title}{key}: {cells}"
        elif isinstance(value, dict):
            yield from lines(value, f"{title}{key} ")
        elif value is not None:
            yield f"{title}{key}: {value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", metavar="FILE", help="in place of MODEL.WEIGHTS")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["prompted"])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use every N-th frame")
    parser.add_argument("--images", metavar="NAME", help="data set of images, for the part images")
    parser.add_argument("--count", type=int, default=24, metavar="N", help="how many of its images")
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="contact sheets of prompted and unprompted")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="comes last")
    args = parser.parse_args()
    if args.every < 1 or args.count < 1:
        raise UserError(f"--every {args.every}, --count {args.count}: expected 1 or more")
    if ("images" in args.parts) != bool(args.images):
        raise UserError("the part images needs --images, the name of a data set of images, and the other way round")
    cfg = load_config(args.config_file, [*args.opts, *(("MODEL.WEIGHTS", args.weights) if args.weights else ())])
    register_from_config(cfg)
    predictor = VideoPredictor(cfg)
    names = [] if args.parts == ["images"] else list(cfg.DATASETS.TEST)
    results = {name: score_videos(predictor, name, args.every, args.parts, args.sheets) for name in names}
    if args.images:
        scores = Scores()
        for _, clip in video_clips(as_clips(args.images, cfg, args.count), every=1):
            follow(predictor, clip, scores)
        results[args.images] = {"images": scores.summary()}
    for line in lines(results):
        print(line)
    if args.json:
        with atomic_write(args.json) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli(main)
