# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Streams a still scene for a long time and measures what changes.

python -m tests.faults.long_stream [--steps 50000] [--seconds S] [--prompted] [--size 96] [--every 5000] [--state FILE]

The scene is a frame of the embedded data, the model the smallest one that is shipped. The state has to stay finite and
of one size. Masks and scores are compared with those after the first 100 steps, the states of the Mamba layers with
the fixed point of their recurrence: what they would come to if their inputs stayed as they are (docs/reliability.md).

The frame is encoded once: the frame encoder has no state.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.data.synthvis import SynthVis
from ausm_d2.masks.rle import decode, to_rle
from ausm_d2.modeling import ssm
from ausm_d2.streaming.ahead import EncodedFrame, encode_ahead
from ausm_d2.streaming.output import FrameOutput
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.stream import Stream

Tracks = dict[int, tuple[Tensor, float]]  # by track: mask, bool (H4, W4), and score in this frame


class Drift(NamedTuple):
    """What has changed since the scene has settled."""

    steps: int
    least_overlap: float  # IoU of the masks of an object at stride 4, the least of any object and step
    beyond_border: int  # cells that changed and are not at the border of the object's mask, the most of any step
    most_score: float  # difference of a track's score in this frame, the largest
    tracks: list[int]  # at the end
    num_bytes: int  # of the state

    def beside(self, now: Tracks, reference: Tracks) -> Drift:
        """With the differences of one more step."""
        pairs = [(now[track], reference[track]) for track in reference]
        return self._replace(
            least_overlap=min([self.least_overlap, *(_overlap(one[0], other[0]) for one, other in pairs)]),
            beyond_border=max([self.beyond_border, *(_beyond_border(one[0], other[0]) for one, other in pairs)]),
            most_score=max([self.most_score, *(abs(one[1] - other[1]) for one, other in pairs)]),
        )


def scene() -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """A frame uint8 (H, W, 3), and the bool (H, W) masks of its objects by id."""
    record = next(iter(SynthVis(3, 1, 5, complete=True)))
    masks = {}
    for object_id, stored in (record.masks.read(0) if record.masks else {}).items():
        rle = to_rle(stored, record.height, record.width)
        if rle is not None:
            masks[object_id + 1] = decode(rle)
    return record.frames[0], masks


class StillStream:
    """The scene, again and again."""

    def __init__(self, *, prompted: bool, size: int = 96) -> None:
        """
        Args:
            prompted: its objects are given; otherwise they are detected.
            size: INPUT.MIN_SIZE_TEST.
        """
        opts = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", size]
        predictor = VideoPredictor.from_pretrained("ausm_nano", opts)
        settings = predictor.settings
        label_set = settings.prompt_label_set if prompted else predictor.label_set
        self.stream = Stream(predictor.model, settings, label_set=label_set, detect=not prompted)
        image, masks = scene()
        self._given = masks if prompted else None
        self._frame: EncodedFrame = next(encode_ahead(predictor.model, settings, [image], given=masks.values()))

    def step(self) -> FrameOutput:
        output = self.stream.step(self._frame, self._given)
        self._given = None
        return output

    def go_on(self, values: dict[str, Any]) -> None:
        """From what the stream's ``state_dict`` gave."""
        self.stream = Stream.from_state_dict(self.stream.network, self.stream.settings, values)
        self._given = None

    @property
    def scans(self) -> list[Tensor]:
        """float32 (P, E, d_state): the state of every Mamba layer's recurrence."""
        assert self.stream.state is not None
        return [state.ssm for state in self.stream.state.memory.ssm]

    def fixed_points(self) -> list[Tensor]:
        """Of every layer, for the inputs that the next step gives it; that step is done."""
        with _noted_scans() as calls:
            self.step()
        found = []
        for u, delta, A, B, bias in calls:
            dt = F.softplus(delta[:, 0].double() + bias.double())[..., None]  # (P, E, 1)
            growth = dt * A.double()
            found.append(dt * B[:, 0, None].double() * u[:, 0, :, None].double() / -torch.expm1(growth))
        return found

    def go_to_fixed_points(self, rounds: int) -> None:
        """What a long time does: the first layer's fixed point changes the inputs of the next one, so repeatedly."""
        for _ in range(rounds):
            for own, fixed in zip(self.scans, self.fixed_points(), strict=True):
                own.copy_(fixed)

    def distances(self) -> list[float]:
        """How far every layer's state is from its fixed point, relative to the fixed point."""
        pairs = zip(self.fixed_points(), self.scans, strict=True)
        return [float((own - fixed).norm() / fixed.norm()) for fixed, own in pairs]


@contextlib.contextmanager
def _noted_scans() -> Iterator[list[tuple[Tensor, ...]]]:
    """u, delta, A, B and delta_bias of the scans while this lasts."""
    calls: list[tuple[Tensor, ...]] = []
    scan = ssm.selective_scan

    def noted(*args: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        calls.append(tuple(args[i].clone() for i in (0, 1, 2, 3, 7)))
        return scan(*args, **options)  # type: ignore[arg-type]

    ssm.selective_scan = noted
    try:
        yield calls
    finally:
        ssm.selective_scan = scan


def by_track(output: FrameOutput) -> Tracks:
    best = output.probabilities.amax(dim=1).tolist()
    return dict(zip(output.track_ids, zip(output.mask_logits > 0, best, strict=True), strict=True))


def _overlap(one: Tensor, other: Tensor) -> float:
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else 1.0


def _beyond_border(mask: Tensor, reference: Tensor) -> int:
    """Cells in which the masks differ, but for those beside the edge of the reference, on either side of it."""
    inside = reference.float()[None]
    around = F.max_pool2d(inside, 3, stride=1, padding=1)[0] > 0
    core = F.max_pool2d(1 - inside, 3, stride=1, padding=1)[0] == 0
    return int((mask & ~around).sum() + (core & ~mask).sum())


def run(
    steps: int,
    *,
    prompted: bool,
    size: int = 96,
    settled: int = 100,
    seconds: float = float("inf"),
    every: int = 0,
    saved: Path | None = None,
) -> Drift:
    """Stream the scene.

    Args:
        steps: at most.
        prompted, size: see :class:`StillStream`.
        settled: steps after which the scene is compared with itself.
        seconds: at most.
        every: steps after which to print; 0: never.
        saved: where the stream is saved at the end, and goes on from, if it is there.

    Raises:
        AssertionError: the state grew, or is not finite, or a track is gone.
    """
    still = StillStream(prompted=prompted, size=size)
    reference: Tracks = {}
    drift, first = Drift(0, 1.0, 0, 0.0, [], 0), 0
    if saved is not None and saved.exists():
        values = torch.load(saved, weights_only=True)
        still.go_on(values["stream"])
        reference, drift = values["reference"], Drift(*values["drift"])
        first = drift.steps
    until, t = time.monotonic() + seconds, first
    for t in range(first, steps):
        now = by_track(still.step())
        state = still.stream.state
        assert state is not None
        if t == settled:
            reference, drift = now, drift._replace(num_bytes=state.num_bytes())
            assert reference, "the model finds nothing in the scene"
        elif t > settled:
            assert reference.keys() <= now.keys(), f"step {t}: tracks {reference.keys() - now.keys()} are gone"
            drift = drift.beside(now, reference)
        if t >= settled and (t % 100 == 0 or t == steps - 1):
            assert state.num_bytes() == drift.num_bytes
            assert all(each.isfinite().all() for each in state.tensors().values() if each.is_floating_point())
        drift = drift._replace(steps=t + 1, tracks=still.stream.track_ids)
        if every and (t + 1) % every == 0:
            far = " ".join(f"{each:.1e}" for each in still.distances())
            objects = " ".join(f"{i}:{int(mask.sum())}:{score:.4f}" for i, (mask, score) in now.items())
            print(f"{drift}; from the fixed points: {far}; object:cells:score {objects}", flush=True)
        if time.monotonic() > until:
            break
    if saved is not None:
        torch.save({"stream": still.stream.state_dict(), "reference": reference, "drift": tuple(drift)}, saved)
    return drift


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--prompted", action="store_true", help="the objects are given; otherwise they are found")
    parser.add_argument("--size", type=int, default=96, help="INPUT.MIN_SIZE_TEST")
    parser.add_argument("--every", type=int, default=5000, help="steps after which to print")
    parser.add_argument(
        "--state", type=Path, help="file in which the stream is saved at the end, to go on another time"
    )
    args = parser.parse_args()
    options = {"size": args.size, "seconds": args.seconds, "every": args.every, "saved": args.state}
    print(run(args.steps, prompted=args.prompted, **options))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
