# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Loader throughput: training clips from 1280x720 JPEG, against the cost of decoding those JPEGs alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import get_cfg

from ausm_d2.config import add_ausm_config
from ausm_d2.data.build import get_records, prepare_worker
from ausm_d2.data.catalog import register_ytvis_style
from ausm_d2.data.mapper import ClipMapper
from ausm_d2.data.video import VideoRecord
from ausm_d2.masks.rle import encode
from tools.benchmarks import measure

_NAME = "benchmark_data"
_SIZE = (720, 1280)  # pixels: height, width
_OBJECTS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clips", type=measure.positive, default=40, help="training clips per measurement")
    parser.add_argument("--frames", type=measure.positive, default=5, help="frames of a clip")
    parser.add_argument("--short-side", type=measure.positive, default=480, help="of the augmented frames, pixels")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Frames per second of one worker (one thread), and the time of a frame over that of decoding its JPEG.

    Times are CPU times of the thread, so background load does not count. "plain" only resizes; "full" also crops
    (probability 0.5), flips, rotates and changes colours.
    """
    prepare_worker()
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder), args)


def _measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    files = _write_video(folder, num_frames=2 * args.frames)
    register_ytvis_style(_NAME, str(folder / "labels.json"), str(folder))
    record = get_records(_NAME)[0]
    full = {
        "INPUT.AUGMENTATIONS": ["brightness", "contrast", "saturation", "rotation"],
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute_range",
        "INPUT.CROP.SIZE": [384, 600],
        "INPUT.CROP.DRIFT": 0.1,
        "INPUT.RANDOM_FLIP": "flip_by_clip",
    }
    mappers = {
        "plain": _mapper(args, {"INPUT.RANDOM_FLIP": "none"}),
        "without colour": _mapper(args, {**full, "INPUT.AUGMENTATIONS": ["rotation"]}),
        "full": _mapper(args, full),
    }
    unlabelled = dataclasses.replace(record, masks=None)
    encoded = [np.fromfile(file, np.uint8) for file in files]

    def decode(i: int) -> None:
        for data in encoded[: args.frames]:
            cv2.imdecode(data, cv2.IMREAD_COLOR)

    steps: dict[str, Callable[[int], Any]] = {"decoding alone": decode}
    for name, mapper in mappers.items():
        steps[name] = partial(_one_clip, mapper, record)
    steps["full, without masks"] = partial(_one_clip, mappers["full"], unlabelled)

    # Interleaved, so that background load affects all of them equally.
    seconds = dict.fromkeys(steps, 0.0)
    for i in range(-2, args.clips):
        for name, step in steps.items():
            start = time.thread_time()
            step(max(i, 0))
            if i >= 0:  # the first two warm up
                seconds[name] += time.thread_time() - start
    frames = args.clips * args.frames
    jpeg = f"{_SIZE[1]}x{_SIZE[0]}, quality 90, {np.mean([len(data) for data in encoded]) / 1000:.0f} kB"
    print(
        f"clips of {args.frames} frames, JPEG {jpeg}, {_OBJECTS} objects, to short side {args.short_side}; one worker:"
    )
    figures = {}
    for name, value in seconds.items():
        figures[name] = {
            "frames_per_second": frames / value,
            "ms_per_frame": 1000 * value / frames,
            "times_decoding": value / seconds["decoding alone"],
        }
        print(
            f"{name:<20} {frames / value:6.1f} frames/s  {1000 * value / frames:6.2f} ms a frame  "
            f"{figures[name]['times_decoding']:.2f} x decoding"
        )
    return {"jpeg": jpeg, "objects": _OBJECTS, **figures}


def _one_clip(mapper: ClipMapper, record: VideoRecord, seed: int) -> None:
    mapper(_NAME, record, np.random.default_rng(seed))


def _mapper(args: argparse.Namespace, keys: dict[str, Any]) -> ClipMapper:
    cfg = get_cfg()
    add_ausm_config(cfg)
    cfg.DATASETS.TRAIN = (_NAME,)
    cfg.INPUT.SAMPLING_FRAME_NUM = args.frames
    cfg.INPUT.MIN_SIZE_TRAIN = (args.short_side,)
    cfg.merge_from_list([part for item in keys.items() for part in item])
    return ClipMapper(cfg)


def _write_video(folder: Path, num_frames: int) -> list[Path]:
    """Write a textured scene with moving objects: JPEGs and a YouTube-VIS annotation file."""
    rng = np.random.default_rng(0)
    height, width = _SIZE
    scene = np.zeros((height, width, 3), np.float32)
    for octave in range(8):  # gives 0.28 bytes per pixel, like DAVIS frames at this quality
        noise = rng.standard_normal((3 * 2**octave, 5 * 2**octave, 3)).astype(np.float32)
        scene += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 50 / 1.34**octave
    scene = np.clip(scene + 120, 0, 255)
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    radii = 90 + 12 * np.sin(angles * rng.integers(3, 12, (_OBJECTS, 1))) + 10 * np.cos(2 * angles)
    outlines = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)
    starts, ways = rng.uniform((250, 150), (1000, 550), (_OBJECTS, 2)), rng.uniform(-12, 12, (_OBJECTS, 2))
    files = []
    segmentations: list[list[Any]] = [[] for _ in range(_OBJECTS)]
    for t in range(num_frames):
        frame = np.roll(scene, 3 * t, axis=1).astype(np.uint8)
        for i in range(_OBJECTS):
            mask = np.zeros((height, width), np.uint8)
            cv2.fillPoly(mask, [np.round(outlines[i] + starts[i] + t * ways[i]).astype(np.int32)], 1)
            frame[mask > 0] = frame[mask > 0] // 2 + rng.integers(0, 128, 3, dtype=np.uint8)
            segmentations[i].append(encode(mask))
        files.append(folder / f"{t:05d}.jpg")
        cv2.imwrite(str(files[-1]), frame, [cv2.IMWRITE_JPEG_QUALITY, 90])
    labels = {
        "categories": [{"id": 1, "name": "thing"}],
        "videos": [
            {"id": 1, "height": height, "width": width, "length": num_frames, "file_names": [f.name for f in files]}
        ],
        "annotations": [
            {"id": i + 1, "video_id": 1, "category_id": 1, "segmentations": segmentations[i]} for i in range(_OBJECTS)
        ],
    }
    (folder / "labels.json").write_text(json.dumps(labels))
    return files
