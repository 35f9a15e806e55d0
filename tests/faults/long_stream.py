# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Streams a still scene for a long time and measures what changes.

python -m tests.faults.long_stream [--steps 50000] [--seconds S] [--prompted]

The scene is a frame of the embedded data, the model the smallest one that is shipped. The state has to stay finite and
of one size; masks and scores are compared with those after the first 100 steps.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ausm_d2.data.synthvis import SynthVis
from ausm_d2.masks.rle import decode, to_rle
from ausm_d2.streaming.output import FrameOutput
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.stream import Stream

SETTLED = 100  # steps after which the scene is compared with itself


class Drift(NamedTuple):
    """What has changed since step 100."""

    steps: int
    least_overlap: float  # IoU of the masks of an object, the least of any object and step
    most_score: float  # difference of a track's score in this frame, the largest
    tracks: list[int]  # at the end
    num_bytes: int  # of the state


def scene() -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """A frame uint8 (H, W, 3), and the bool (H, W) masks of its objects by id."""
    record = next(iter(SynthVis(3, 1, 5, complete=True)))
    masks = {}
    for object_id, stored in (record.masks.read(0) if record.masks else {}).items():
        rle = to_rle(stored, record.height, record.width)
        if rle is not None:
            masks[object_id + 1] = decode(rle)
    return record.frames[0], masks


def _overlap(one: Tensor, other: Tensor) -> float:
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else 1.0


def _by_track(output: FrameOutput) -> dict[int, tuple[Tensor, float]]:
    best = output.probabilities.amax(dim=1).tolist()
    return dict(zip(output.track_ids, zip(output.mask_logits > 0, best, strict=True), strict=True))


def run(steps: int, *, prompted: bool, seconds: float = float("inf"), every: int = 0) -> Drift:
    """Stream the scene.

    Args:
        steps: at most.
        prompted: its objects are given; otherwise they are detected.
        seconds: at most.
        every: steps after which to print; 0: never.

    Raises:
        AssertionError: the state grew, or is not finite.
    """
    predictor = VideoPredictor.from_pretrained("ausm_nano", ["MODEL.DEVICE", "cpu"])
    settings = predictor.settings
    label_set = settings.prompt_label_set if prompted else predictor.label_set
    stream = Stream(predictor.model, settings, label_set=label_set, detect=not prompted)
    frame, masks = scene()
    reference: dict[int, tuple[Tensor, float]] = {}
    overlap, score, size = 1.0, 0.0, 0
    until = time.monotonic() + seconds
    t = 0
    for t in range(steps):
        output = stream.step(frame, masks if prompted and t == 0 else None)
        assert stream.state is not None
        if t == SETTLED:
            reference, size = _by_track(output), stream.state.num_bytes()
            assert reference, "the model finds nothing in the scene"
        elif t > SETTLED:
            now = _by_track(output)
            overlap = min([overlap, *(_overlap(now[i][0], reference[i][0]) for i in reference if i in now)])
            score = max([score, *(abs(now[i][1] - reference[i][1]) for i in reference if i in now)])
            assert reference.keys() <= now.keys(), f"step {t}: tracks {reference.keys() - now.keys()} are gone"
        if t >= SETTLED and (t % 100 == 0 or t == steps - 1):
            assert stream.state.num_bytes() == size
            assert all(each.isfinite().all() for each in stream.state.tensors().values() if each.is_floating_point())
        if every and t and t % every == 0:
            print(f"step {t}: least IoU {overlap:.4f}, largest change of a score {score:.5f}", flush=True)
        if time.monotonic() > until:
            break
    return Drift(t + 1, overlap, score, stream.track_ids, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--prompted", action="store_true", help="the objects are given; otherwise they are found")
    args = parser.parse_args()
    print(run(args.steps, prompted=args.prompted, seconds=args.seconds, every=1000))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
