# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Tracks a looped clip for a long time, with every output on, and measures memory and time.

python -m tests.faults.long_track [--frames 10000] [--json OUT.json]

The clip is a video of the embedded data, looped as a file of the asked length; the model is the smallest one that is
shipped. Five objects are given at the first frame, all others are looked for: ``ausm track`` with ``--find``. Memory
is what is resident of the process (Linux), at every hundredth frame, and once more after all files are complete.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ausm_d2.data.synthvis import SynthVis
from ausm_d2.io import atomic_write
from ausm_d2.jobs.track import Request, track
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.video.movie import MovieWriter
from ausm_d2.video.results import OUTPUTS
from tools.benchmarks.measure import resident

SETTLED = 200  # frame from which on memory is compared
OBJECTS = 5


def looped_clip(path: Path, frames: int) -> dict[int, np.ndarray]:
    """Write the video; returns the bool (H, W) masks of five objects of its first frame, by id."""
    for record in SynthVis(11, 50, 18):
        masks = record.masks.read(0) if record.masks else {}
        if len(masks) >= OBJECTS:
            break
    else:
        raise AssertionError(f"no video with {OBJECTS} objects in its first frame")
    pictures = [np.ascontiguousarray(record.frames[t][..., ::-1]) for t in range(len(record.frames))]
    with MovieWriter(path, 24) as movie:
        for picture in islice(cycle(pictures), frames):
            movie.write(picture)
    return {i: np.asarray(mask, bool) for i, mask in islice(masks.items(), OBJECTS)}


def run(frames: int, folder: Path, save: Sequence[str], *, every: int = 0, sample: int = 100) -> dict[str, Any]:
    """Track the looped clip.

    Args:
        folder: for the clip and the results.
        save: outputs.
        every: frames after which to print; 0: never.
        sample: frames after which memory is measured.

    Returns:
        The clock and the process's time (s) behind every frame, resident bytes by frame, and at the end.
    """
    masks = looped_clip(folder / "looped.mp4", frames)
    predictor = VideoPredictor.from_pretrained("ausm_nano", ["MODEL.DEVICE", "cpu"])
    clock, work, memory = [time.monotonic()], [time.process_time()], {}

    def watch(done: int, _: int | None) -> None:
        clock.append(time.monotonic())
        work.append(time.process_time())
        if done % sample == 0:
            memory[done] = resident()
        if every and done % every == 0:
            rate = every / (clock[-1] - clock[-1 - every])
            print(f"frame {done}: {memory[done] / 1e6:.1f} MB, {rate:.1f} frames/s", flush=True)

    asked = Request(folder / "looped.mp4", folder / "out", prompts={0: dict(masks)}, find=True, save=save)
    summary = track(lambda: predictor, asked, progress=watch)
    assert summary.complete and summary.frames == frames
    return {"clock": clock, "work": work, "memory": memory, "end": resident(), "objects": summary.objects}


def figures(found: dict[str, Any], settled: int = SETTLED) -> dict[str, Any]:
    """Growth of memory from a frame on, and the time of the last 1,000 frames over that of the first 1,000: by the
    clock, and of the process, which other programs hardly change."""
    steps, work = np.diff(found["clock"]), np.diff(found["work"])
    memory = {frame: size for frame, size in found["memory"].items() if frame >= settled}
    block = min(1000, len(steps) // 2)
    return {
        "frames": len(steps),
        "objects": found["objects"],
        "mb_settled": memory[settled] / 1e6,
        "mb_last": memory[max(memory)] / 1e6,
        "mb_most": max(memory.values()) / 1e6,
        "mb_when_complete": found["end"] / 1e6,
        "first_s": float(steps[:block].sum()),
        "last_s": float(steps[-block:].sum()),
        "last_over_first": float(steps[-block:].sum() / steps[:block].sum()),
        "work_last_over_first": float(work[-block:].sum() / work[:block].sum()),
        "median_last_over_first": statistics.median(steps[-block:]) / statistics.median(steps[:block]),
        "frames_per_s": len(steps) / float(steps.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = run(args.frames, Path(folder), list(OUTPUTS), every=500)
    report = figures(found)
    print(json.dumps(report, indent=1))
    if args.json:
        with atomic_write(args.json) as path:
            path.write_text(json.dumps({**report, "memory": found["memory"]}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
