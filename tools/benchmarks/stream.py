# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Streaming: time per frame against the number of objects; memory of a long stream.

Shape shorthand:
    H, W: frame size in pixels, at which the model works
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ausm_d2.config import load_config
from ausm_d2.errors import UserError
from ausm_d2.meta_arch import AUSM
from ausm_d2.streaming.ahead import encode_ahead
from ausm_d2.streaming.inference import prepare_for_inference
from ausm_d2.streaming.output import FrameOutput
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.stream import Stream
from tools.benchmarks import measure
from tools.benchmarks.model import random_model

_SETTLED = 100  # frame from which memory is monitored
_LATER = 1000  # frame whose state is compared with that of frame 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    measure.add_device_arguments(parser)
    parser.add_argument("--config-file", nargs="+", default=["configs/synth/ausm_nano.yaml"])
    parser.add_argument("--variants", nargs="+", default=[""], help='of every config, each one "KEY VALUE ..."')
    parser.add_argument("--cuda-graph", action="store_true", help="capture the step (on CUDA only)")
    parser.add_argument("--size", type=measure.positive, nargs=2, default=[96, 160], help="height and width")
    parser.add_argument("--objects", type=measure.positive, nargs="+", default=[1, 10])
    parser.add_argument("--repeats", type=measure.positive, default=40, help="measured frames of each, alternating")
    parser.add_argument(
        "--file",
        type=measure.not_negative,
        default=0,
        help="frames of a file that are encoded ahead in a second thread, beside the same one by one; by the clock",
    )
    parser.add_argument(
        "--frames", type=measure.not_negative, default=2000, help="of the long stream, over 1,000; 0: none"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Three tables.

    frame: median and quartiles of the time of a step and of its full-size masks (ms), frames/s of both together, and
    the ratio of their time to that for the first number of objects; configs and variants alternate.
    file: frames/s if the frames of a file are processed one by one, and the gain if they are encoded ahead, singly or
    in batches.
    memory: bytes of the state, their ratio between frames 1000 and 2, and growth of the process (MB) after frame 100.

    Raises:
        UserError: if the long stream is too short.
    """
    if 0 < args.frames <= _LATER:
        raise UserError(f"--frames {args.frames}: state and memory are compared after {_LATER} frames; expected more")
    size = tuple(args.size)
    timed: dict[str, Callable[[], Any]] = {}
    models = {}
    if args.cuda_graph and measure.device_of(args).type != "cuda":
        raise UserError(f"--cuda-graph: there is none on {args.device}, only on cuda")
    for config_name, config in measure.by_name(args.config_file).items():
        for variant in args.variants:
            name = f"{config_name} {variant}".strip()
            models[name] = model, settings = _build(config, variant.split(), args)
            for n in args.objects:
                step, masks = _timed(prompted(model, settings, n, size), noise(size))
                timed |= {f"{name} {n} step": step, f"{name} {n} masks": masks}
    times = measure.interleaved(timed, args.repeats, measure.device_of(args), cpu_time=args.cpu_time)
    frame, file, memory = [], [], []
    for name, (model, settings) in models.items():
        first = None
        for n in args.objects:
            step, masks = times[f"{name} {n} step"], times[f"{name} {n} masks"]
            whole = [sum(pair) for pair in zip(step, masks, strict=True)]
            first = first or whole
            row = {"model": name, "objects": n, **measure.spread(step), "masks_ms": measure.spread(masks)["ms"]}
            # Interleaved, so that background load affects all of them equally.
            ratio = statistics.median(a / b for a, b in zip(whole, first, strict=True))
            frame.append({**row, "fps": 1 / statistics.median(whole), "over_first": ratio})
        if args.file:
            file.append({"model": name, **_from_file(model, settings, args)})
        if args.frames:
            watched = prompted(model, settings, args.objects[0], size)
            memory.append({"model": name, **_long(watched, args)})
    for table in (frame, file, memory):
        if table:
            measure.print_table(table)
    return {"frame": frame, "file": file, "memory": memory}


def plot(figures: dict[str, Any], path: Path) -> None:
    """Plot time per frame over number of objects."""
    with measure.picture(path, "objects", "seconds a frame") as axes:
        for name in dict.fromkeys(row["model"] for row in figures["frame"]):
            rows = [row for row in figures["frame"] if row["model"] == name]
            measure.draw(axes, name, [row["objects"] for row in rows], rows)
        axes.set_ylim(bottom=0)


def prompted(model: AUSM, settings: VideoSettings, objects: int, size: tuple[int, int]) -> Stream:
    """A stream after one frame, with squares as prompted objects."""
    stream = Stream(model, settings, label_set=settings.prompt_label_set, detect=False)
    stream.step(noise(size), squares(objects, size))
    return stream


def squares(objects: int, size: tuple[int, int]) -> dict[int, np.ndarray]:
    """bool (H, W) masks by id, along the diagonal."""
    masks = {}
    for i in range(objects):
        top, left = ((side - side // 4) * i // max(objects - 1, 1) for side in size)
        masks[i + 1] = np.zeros(size, dtype=bool)
        masks[i + 1][top : top + size[0] // 4, left : left + size[1] // 4] = True
    return masks


def noise(size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def _build(config: str, variant: list[str], args: argparse.Namespace) -> tuple[AUSM, VideoSettings]:
    opts = ("INPUT.MIN_SIZE_TEST", 0, "TEST.AUSM.AMP", args.amp, "TEST.AUSM.CUDA_GRAPH", args.cuda_graph, *variant)
    model = random_model(config, measure.device_of(args), opts).eval()
    settings = VideoSettings.from_config(load_config(config, opts))
    prepare_for_inference(model, settings)
    return model, settings


def _timed(stream: Stream, frame: np.ndarray) -> tuple[Callable[[], Any], Callable[[], Any]]:
    latest: list[FrameOutput] = []

    def step() -> None:
        latest[:] = [stream.step(frame)]

    return step, lambda: stream.logits(latest[0]) > 0


def _from_file(model: AUSM, settings: VideoSettings, args: argparse.Namespace) -> dict[str, float]:
    size = tuple(args.size)
    frames = [np.roll(noise(size), 4 * t, axis=1) for t in range(args.file)]
    stream = prompted(model, settings, args.objects[0], size)  # not part of the time

    def run(at_once: int | None) -> None:
        source = frames if at_once == 0 else encode_ahead(model, settings, frames, at_once=at_once)
        for frame in source:
            stream.logits(stream.step(frame)) > 0  # noqa: B015  computes the masks

    ways = {"live": 0, "ahead_1": 1, "ahead": None}
    timed = {name: functools.partial(run, at_once) for name, at_once in ways.items()}
    times = measure.interleaved(timed, 5, measure.device_of(args))
    over = {name: [a / b for a, b in zip(times["live"], times[name], strict=True)] for name in ("ahead_1", "ahead")}
    ratios = {f"{name}_over_live": statistics.median(each) for name, each in over.items()}
    return {"live_fps": args.file / statistics.median(times["live"]), **ratios}


def _long(stream: Stream, args: argparse.Namespace) -> dict[str, float]:
    frame, state_bytes, resident = noise(tuple(args.size)), {}, {}
    for t in range(1, args.frames + 1):
        stream.logits(stream.step(frame))
        assert stream.state is not None
        if t in (2, _LATER):
            state_bytes[t] = stream.state.num_bytes()
        if t in (_SETTLED, args.frames):
            resident[t] = measure.resident()
    return {
        "state_mb": state_bytes[2] / 1e6,
        "state_1000_over_2": state_bytes[_LATER] / state_bytes[2],
        "growth_mb": (resident[args.frames] - resident[_SETTLED]) / 1e6,
        "frames": args.frames,
    }
