# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Speed and memory of scoring: AP against trackeval's YouTube-VIS, J&F against vos-benchmark, on generated files.

Shape shorthand:
    H, W: frame size in pixels
    T: frames of a video
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from vos_benchmark.evaluator import Evaluator

from ausm_d2.cores import available_cores
from ausm_d2.evaluation import ytvis
from ausm_d2.masks.png import read_labels, write_mask_png
from tools.benchmarks import measure

_CATEGORIES = 40
_OURS = "this project"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--videos", type=measure.positive, default=302, help="for AP; 302: as YouTube-VIS 2019 val")
    parser.add_argument("--vos-videos", type=measure.positive, default=30, help="for J&F, of 70 frames at 854x480")
    parser.add_argument("--workers", type=measure.positive, default=available_cores(), help="processes for J&F")
    parser.add_argument(
        "--repeats", type=measure.positive, default=3, help="of each, in turns; the figures are medians"
    )
    parser.add_argument("--no-reference", action="store_true", help="measure this project only")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds ("cpu", if those of all processes can be counted) and elapsed seconds ("wall"): median, quartiles.

    The scores agree to 1e-6.
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = {"AP": _measure_ap(Path(folder, "ap"), args), "J&F": _measure_vos(Path(folder, "vos"), args)}
    for measure_name, of_one in figures.items():
        rows = [{"": measure_name, "by": name} | row for name, row in of_one.items() if isinstance(row, dict)]
        for row in rows:
            row["times ours"] = row["cpu, s"] and row["cpu, s"] / rows[0]["cpu, s"]
            row["by the clock"] = row["wall, s"] / rows[0]["wall, s"]
        measure.print_table(rows)
    return {**figures, "peak memory of this process, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}


def _in_turns(functions: dict[str, Callable[[], float]], repeats: int) -> dict[str, Any]:
    """Score and median seconds of each, interleaved, so that background load affects all equally."""
    scores: dict[str, float] = {}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            begin = _processor_seconds(), time.perf_counter()
            scores[name] = function()
            times[name].append((_processor_seconds() - begin[0], time.perf_counter() - begin[1]))
    return {name: {"score": scores[name], **_summary(np.array(times[name]))} for name in functions}


def _summary(seconds: np.ndarray) -> dict[str, float]:
    """(repeats, 2) CPU and wall seconds -> medians and quartiles."""
    (low, _), (median, wall), (high, _) = np.percentile(seconds, [25, 50, 75], axis=0).round(2).tolist()
    return {"cpu, s": median, "cpu q1": low, "cpu q3": high, "wall, s": wall}


def _processor_seconds() -> float:
    """CPU seconds of this process and its descendants, including ended ones (Linux)."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if os.getpid() in (int(path.parent.name), int(fields[1])):
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


# AP


def _measure_ap(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    truth, results = folder / "gt" / "youtube_vis_x", folder / "trackers" / "youtube_vis_x" / "us" / "data"
    _write_ytvis(truth / "truth.json", results / "results.json", args.videos)

    sizes = [round(path.stat().st_size / 2**20) for path in (truth / "truth.json", results / "results.json")]
    functions = {_OURS: lambda: ytvis.score_files(truth / "truth.json", results / "results.json")["AP"]}
    if not args.no_reference:
        functions["trackeval"] = lambda: _trackeval(folder)
    return {"videos": args.videos, "MiB of truth, results": sizes, **_in_turns(functions, args.repeats)}


def _trackeval(folder: Path) -> float:
    from trackeval.datasets import YouTubeVIS
    from trackeval.metrics import TrackMAP

    config = {"GT_FOLDER": f"{folder}/gt/", "TRACKERS_FOLDER": f"{folder}/trackers/", "SPLIT_TO_EVAL": "x"}
    limits = {"AREA_RANGES": [[0, 128**2], [128**2, 256**2], [256**2, 1e10]], "USE_TIME_RANGES": False}
    thresholds = {"IOU_THRESHOLDS": np.linspace(0.5, 0.95, 10), "MAX_DETECTIONS": 100}
    with contextlib.redirect_stdout(io.StringIO()):
        data_set = YouTubeVIS({**config, "PRINT_CONFIG": False})
        data_set.global_tid_counter = 1  # to TrackMAP id 0 means "not matched"
        metric = TrackMAP({**limits, **thresholds, "PRINT_CONFIG": False})
        by_class: dict[str, dict[str, Any]] = {name: {} for name in data_set.class_list}
        for video in data_set.seq_list:
            raw = data_set.get_raw_seq_data("us", video)
            for name, of_class in by_class.items():
                of_class[video] = metric.eval_sequence(data_set.get_preprocessed_seq_data(raw, name))
        combined = {name: metric.combine_sequences(of_class) for name, of_class in by_class.items()}
        return 100 * float(metric.combine_classes_class_averaged(combined)["AP_all"].mean())


def _write_ytvis(truth_path: Path, result_path: Path, num_videos: int) -> None:
    """1 to 4 objects, most of them of one category, and 5 to 10 predicted tracks in 20 to 36 frames of 1280x720."""
    rng = np.random.default_rng(0)
    height, width = 720, 1280
    truth: dict[str, Any] = {"videos": [], "annotations": []}
    truth["categories"] = [{"id": c + 1, "name": f"class{c}"} for c in range(_CATEGORIES)]
    results: list[dict[str, Any]] = []
    for video_id in range(1, num_videos + 1):
        length = int(rng.integers(20, 37))
        names = [f"v{video_id}/{t:05d}.jpg" for t in range(length)]
        size = {"height": height, "width": width}
        truth["videos"].append({"id": video_id, **size, "length": length, "file_names": names})
        objects = [_Blob(rng, height, width) for _ in range(rng.integers(1, 5))]
        categories = rng.integers(1, _CATEGORIES + 1, len(objects))
        categories[rng.random(len(objects)) < 0.75] = categories[0]
        for blob, category in zip(objects, categories, strict=True):
            counts = [blob.counts(t, 0.0) for t in range(length)]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "video_id": video_id,
                    "category_id": int(category),
                    "iscrowd": 0,
                    **size,
                    "segmentations": [{"size": [height, width], "counts": runs} for runs in counts],
                    "areas": [sum(runs[1::2]) for runs in counts],
                }
            )
        for index in range(rng.integers(5, 11)):
            place = index % len(objects)
            blob = objects[place] if index < 2 * len(objects) else _Blob(rng, height, width)
            offset = float(rng.exponential(0.06))
            masks: list[dict[str, Any]] = []
            for t in range(length):
                runs = {"size": [height, width], "counts": blob.counts(t, offset)}
                mask = coco_mask.frPyObjects(runs, height, width)
                masks.append({**mask, "counts": mask["counts"].decode()})
            category = int(categories[place]) if rng.random() < 0.8 else int(rng.integers(1, _CATEGORIES + 1))
            results.append(
                {"video_id": video_id, "category_id": category, "score": float(rng.random()), "segmentations": masks}
            )
    for path, data in ((truth_path, truth), (result_path, results)):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(data))


class _Blob:
    """An ellipse with a ragged edge on a straight path through the frame."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self._rng = rng
        self._size = height, width
        self._radii = rng.uniform(0.05, 0.3, 2) * height
        self._start, self._end = rng.uniform(0.25, 0.75, (2, 2)) * self._size

    def counts(self, frame: float, offset: float) -> list[int]:
        """Run lengths, column by column; the ellipse is shifted by ``offset`` times its radius."""
        height, width = self._size
        y, x = self._start + (self._end - self._start) * frame / 36 + offset * self._radii
        first, last = max(int(x - self._radii[1]) + 1, 0), min(int(x + self._radii[1]), width - 1)
        columns = np.arange(first, last + 1)
        half = self._radii[0] * np.sqrt(np.clip(1 - ((columns - x) / self._radii[1]) ** 2, 0, 1))
        noise = self._rng.normal(0, 1.5, (2, len(columns)))
        top = np.clip(y - half + noise[0], 0, height - 2).astype(int)
        bottom = np.clip(np.maximum(y + half + noise[1], top + 1), 1, height - 1).astype(int)
        edges = np.stack([columns * height + top, columns * height + bottom], axis=1).ravel()
        return [int(run) for run in np.diff(edges, prepend=0, append=height * width)]


# J&F


def _measure_vos(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    _write_davis(folder, args.vos_videos)
    cv2.setNumThreads(1)
    functions = {f"{_OURS}, 1 process": lambda: _j_and_f(folder, 0)}
    if args.workers > 1:
        functions[f"{_OURS}, {args.workers} processes"] = lambda: _j_and_f(folder, args.workers)
    if not args.no_reference:
        functions["vos-benchmark"] = lambda: _vos_benchmark(folder)
    figures = _in_turns(functions, args.repeats)
    for name, row in figures.items():
        if name.endswith("processes"):  # CPU time of fork-server workers cannot be measured
            row |= dict.fromkeys(("cpu, s", "cpu q1", "cpu q3"))
    return {"videos": args.vos_videos, **figures}


def _j_and_f(folder: Path, workers: int) -> float:
    """Runs as a command: worker processes started from a process that has imported PyTorch take seconds to start."""
    folders, report = (str(folder / "truth"), str(folder / "predicted")), folder / "scores.json"
    command = [
        sys.executable,
        "-m",
        "ausm_d2.evaluation.vos",
        *folders,
        "--workers",
        str(workers),
        "--json",
        str(report),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(report.read_text())["J&F"]


def _vos_benchmark(folder: Path) -> float:
    j: list[float] = []
    f: list[float] = []
    for video in sorted((folder / "truth").iterdir()):
        evaluator = Evaluator()
        for path in sorted(video.iterdir())[1:]:
            evaluator.feed_frame(read_labels(folder / "predicted" / video.name / path.name), read_labels(path))
        of_j, of_f = evaluator.conclude()
        j += of_j.values()
        f += of_f.values()
    return float(np.mean(j) + np.mean(f)) / 2


def _write_davis(folder: Path, num_videos: int) -> None:
    """Two objects in 70 frames of 854x480."""
    rng = np.random.default_rng(1)
    height, width = 480, 854
    for video in range(num_videos):
        blobs = [_Blob(rng, height, width) for _ in range(2)]
        for frame in range(70):
            for side, offset in (("truth", 0.0), ("predicted", 0.05)):
                ids = np.zeros((height, width), np.uint8)
                for object_id, blob in enumerate(blobs, start=1):
                    runs = {"size": [height, width], "counts": blob.counts(frame / 2, offset)}
                    ids[coco_mask.decode(coco_mask.frPyObjects(runs, height, width)) > 0] = object_id
                write_mask_png(folder / side / f"video{video:02d}" / f"{frame:05d}.png", ids)
