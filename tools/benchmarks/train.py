# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A training step: the parallel against the iterative form, with the same model and kernels, losses included.

Shape shorthand:
    T: frames of a clip; N: objects
    H, W: frame size in pixels
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ausm_d2.config import load_config
from ausm_d2.errors import UserError
from tools.benchmarks import measure
from tools.benchmarks.model import random_model

CHECKPOINTED = "parallel, checkpointed"
VARIANTS = ("iterative", "parallel", CHECKPOINTED)
_ITERATIONS = 4  # iterations per measurement with --as-trained, since they draw different numbers of own passes
_PAPER = "configs/paper/stage3_long_swin_t.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    measure.add_device_arguments(parser)
    parser.add_argument("--config-file", default=_PAPER)
    parser.add_argument(
        "--size", type=measure.positive, nargs=2, default=[128, 192], help="height and width; 8 times the grid"
    )
    parser.add_argument("--frames", type=measure.positive, nargs="+", default=[1, 4, 8, 16], help="frames of a clip")
    parser.add_argument("--objects", type=measure.positive, default=5, help="of a clip")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS[:2]))
    parser.add_argument("--memory", action="store_true", help="also measure the peak, in a process for each")
    parser.add_argument("--repeats", type=measure.positive, default=3, help="measurements of each, alternating")
    parser.add_argument(
        "--as-trained",
        action="store_true",
        help="frozen is what the config freezes, its batch size, its own passes: the mean of four iterations",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Forward, losses and backward of one clip (batch 1, nothing frozen, unless --as-trained), by clip length and
    variant: median and quartiles of the time (ms), and the ratio of the iterative step's time to it; with --memory the
    peak beyond the weights (MB). Clips that do not fit into the GPU's memory are left out.

    Raises:
        UserError: if the config is missing or invalid, or there are more objects than its NUM_ID.
    """
    device = measure.device_of(args)
    most = load_config(args.config_file).MODEL.AUSM.NUM_ID
    if args.objects > most:
        raise UserError(f"--objects {args.objects}: {args.config_file} follows {most} at the most (MODEL.AUSM.NUM_ID)")
    peaks = {}
    if args.memory:  # before timing, which allocates memory in this process only
        for frames, name in itertools.product(args.frames, args.variants):
            with _left_out_if_too_large(frames, name):
                peaks[frames, name] = measure.in_new_process(_peak, name, frames, args) / 1e6
    rows = []
    for frames in args.frames:
        steps = {}
        for name in args.variants:
            step = _step(name, frames, args)
            with _left_out_if_too_large(frames, name):
                step()
                steps[name] = step
        times = measure.interleaved(steps, args.repeats, device, cpu_time=args.cpu_time, warm_up=False)
        if args.as_trained:
            times = {name: [each / _ITERATIONS for each in of] for name, of in times.items()}
        for name in steps:
            row = {"T": frames, "variant": name, **measure.spread(times[name])}
            if "iterative" in times:
                row["speed_over_iterative"] = statistics.median(times["iterative"]) / statistics.median(times[name])
            if args.memory:
                row["peak_mb"] = peaks.get((frames, name))
            rows.append(row)
        if steps:
            measure.print_table(rows[-len(steps) :])
    return {"rows": rows}


@contextmanager
def _left_out_if_too_large(frames: int, name: str) -> Iterator[None]:
    try:
        yield
        return
    except torch.OutOfMemoryError:
        print(f"T = {frames}, {name}: does not fit into the GPU's memory", flush=True)
    torch.cuda.empty_cache()  # after the exception has released its tensors


def plot(figures: dict[str, Any], path: Path) -> None:
    """Plot time of a step over clip length."""
    with measure.picture(path, "frames of a clip", "seconds of a training step") as axes:
        for name in VARIANTS:
            rows = [row for row in figures["rows"] if row["variant"] == name]
            if rows:
                measure.draw(axes, name, [row["T"] for row in rows], rows)
        axes.set_ylim(bottom=0)


def _step(name: str, frames: int, args: argparse.Namespace) -> Callable[[], None]:
    device = measure.device_of(args)
    opts = ["MODEL.AUSM.TRAIN.CHECKPOINTING", name == CHECKPOINTED, "MODEL.AUSM.TRAIN.MODE", name.split(",")[0]]
    if not args.as_trained:
        opts += ["MODEL.AUSM.FRAME_ENCODER.FREEZE_AT", "none", "MODEL.BACKBONE.FREEZE_AT", 0]
        opts += ["MODEL.AUSM.TRAIN.OWN_PASSES", 0]
    elif name == "iterative":
        opts += ["MODEL.AUSM.TRAIN.OWN_PASSES", 0]  # they need the parallel form
    model = random_model(args.config_file, device, tuple(opts)).train()
    batch = load_config(args.config_file).SOLVER.IMS_PER_BATCH if args.as_trained else 1
    items = [_clip(frames, args.objects, args.size, next(iter(model.label_sets))) for _ in range(batch)]

    def forward_and_backward(seed: int = 0) -> None:
        torch.manual_seed(seed)  # the same switch times, noise and own passes for all
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
            losses = model(items)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        model.zero_grad(set_to_none=True)

    def iterations() -> None:
        for seed in range(_ITERATIONS):
            forward_and_backward(seed)

    return iterations if args.as_trained else forward_and_backward


def _peak(name: str, frames: int, args: argparse.Namespace) -> int:
    """Peak memory of a step in bytes, beyond weights and clip."""
    _step(name, 1, args)()  # kernels and workspaces
    return measure.peak_memory(_step(name, frames, args), measure.device_of(args))


def _clip(frames: int, objects: int, size: list[int], label_set: str) -> dict[str, Any]:
    """A training item: squares that drift over noise."""
    height, width = size
    rng = torch.Generator().manual_seed(0)
    masks = torch.zeros(objects, frames, height, width, dtype=torch.bool)
    side = min(size) // 4
    for i in range(objects):
        y, x = (int(torch.randint(0, length - side, (), generator=rng)) for length in size)
        for t in range(frames):
            left = min(x + 2 * t, width - side)
            masks[i, t, y : y + side, left : left + side] = True
    return {
        "image": torch.randint(0, 256, (frames, 3, height, width), generator=rng, dtype=torch.uint8),
        "masks": masks,
        "classes": torch.zeros(objects, dtype=torch.int64),
        "labelled": torch.ones(frames, dtype=torch.bool),
        "label_set": label_set,
        "exhaustive": True,
        "task": "vis",
        "prompted": False,
        "dataset_name": "benchmark",
        "video_id": 0,
        "frame_indices": list(range(frames)),
        "height": height,
        "width": width,
    }
