# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""AP against the detection threshold (paper, Table 2): a table and a plot.

    python -m tools.sweep_threshold --config-file configs/synth/ausm_nano.yaml --output output/threshold

Detections above the threshold enter the history, so each threshold needs its own stream. Two thresholds agree until a
detection falls between them: until then they share a stream. Each frame is encoded once. The results are those of one
evaluation per threshold.

Shape shorthand:
    H, W: frame size in pixels
    T: frames of a video
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor
from tqdm import tqdm

from ausm_d2.data.video import VideoRecord
from ausm_d2.data.views import first_videos
from ausm_d2.engine import Trainer
from ausm_d2.errors import UserError, cli
from ausm_d2.meta_arch import AUSM
from ausm_d2.streaming.output import FrameOutput
from ausm_d2.streaming.segmenter import VideoTracks, best_tracks
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.stream import Stream
from ausm_d2.streaming.visits import crop, visits
from tools.experiments.report import Paper, Report, Row
from tools.experiments.setup import add_common_arguments, common_config, load_model, settings_of

PAPER = Paper(
    source="Table 2, Swin-B",
    measure="AP",
    values={
        "YouTube-VIS 2019": {"0.3": 62.4, "0.4": 62.6, "0.5": 62.6, "0.6": 61.8, "0.7": 61.6},
        "YouTube-VIS 2021": {"0.3": 57.8, "0.4": 58.1, "0.5": 58.6, "0.6": 58.1, "0.7": 57.9},
        "OVIS": {"0.3": 44.5, "0.4": 45.1, "0.5": 45.5, "0.6": 46.4, "0.7": 46.5},
    },
)


class _SharedEncoding:
    """A model that encodes each frame once for all streams."""

    def __init__(self, model: AUSM) -> None:
        self._model = model
        self._features: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def next_frame(self) -> None:
        """Discard the cached features, before the next frame."""
        self._features = None

    def encode(self, images: Tensor) -> Any:
        """As :meth:`AUSM.encode`, cached; ``images`` are the same for all streams."""
        if self._features is None:
            self._features = self._model.encode(images)
        return self._features


@dataclass
class _Branch:
    """A stream, and the thresholds (ascending) that have agreed on all its detections so far."""

    thresholds: list[float]
    stream: Stream
    tracks: VideoTracks


class ThresholdSweep:
    """Segments videos at several thresholds at once; counts frames and steps."""

    def __init__(self, model: AUSM, settings: VideoSettings, thresholds: Sequence[float]) -> None:
        """
        Args:
            model: in evaluation mode.
            settings: how videos are streamed; ``fg_threshold`` is not used.
            thresholds: foreground probabilities, ascending.
        """
        self._model: Any = _SharedEncoding(model)
        self._settings = settings
        self._thresholds = list(thresholds)
        self.frames = 0  # shown
        self.steps = 0  # of a stream

    def segment(self, item: dict[str, Any]) -> dict[float, dict[str, Any]]:
        """The result of ``segment_video`` for a test item, by threshold."""
        record: VideoRecord = item["record"]
        settings, label_set = self._settings.for_item(item), item["label_set"]
        branches = [_Branch(self._thresholds, self._stream(self._thresholds[0], label_set), VideoTracks(record.length))]
        for visit in visits(record.length, repeat=settings.repeat, spatial_traversal=settings.spatial_traversal):
            frame = record.read_frame(visit.frame)
            if visit.corner is not None:
                frame = crop(frame, visit.corner)
            self._model.next_frame()
            self.frames += 1
            stepped = [pair for branch in branches for pair in self._step(branch, frame)]
            for branch, output in stepped:
                branch.tracks.keep(output, branch.stream, visit)
            branches = [branch for branch, _ in stepped]
        return {
            threshold: {
                "video_id": record.video_id,
                "tracks": best_tracks(branch.tracks.masks, branch.tracks.scores, settings),
            }
            for branch in branches
            for threshold in branch.thresholds
        }

    def _stream(self, threshold: float, label_set: str) -> Stream:
        # A captured step would replay the features of the frame at which it was captured.
        settings = dataclasses.replace(self._settings, fg_threshold=threshold, cuda_graph=False)
        return Stream(self._model, settings, label_set=label_set, detect=True)

    def _step(self, branch: _Branch, frame: np.ndarray) -> list[tuple[_Branch, FrameOutput]]:
        """Step a branch by one frame, uint8 (H, W, 3). If a detection falls between its thresholds, those above it
        split off: they repeat the step from a copy of the state before."""
        stream = branch.stream
        before = stream.fork() if len(branch.thresholds) > 1 else stream
        newest = stream.state.slots.next_track_id if stream.state is not None else 1
        output = stream.step(frame)
        self.steps += 1
        new = [row for row, track_id in enumerate(output.track_ids) if track_id >= newest]
        foreground = output.probabilities[new].sum(-1).tolist()
        groups = [
            list(group)
            for _, group in itertools.groupby(branch.thresholds, lambda t: sum(found >= t for found in foreground))
        ]
        done = [(branch, output)]
        for thresholds in groups[1:]:
            other = _Branch(thresholds, before.fork(fg_threshold=thresholds[0]), branch.tracks.copy())
            done.append((other, other.stream.step(frame)))
            self.steps += 1
        branch.thresholds = groups[0]
        return done


@torch.no_grad()
def sweep(cfg: CfgNode, model: AUSM, thresholds: Sequence[float], report: Report) -> None:
    """Score every data set of ``DATASETS.TEST`` at each threshold; rows and a note go to ``report``."""
    for dataset_name in cfg.DATASETS.TEST:
        evaluators = {}
        for threshold in thresholds:
            own = cfg.clone()
            own.defrost()
            own.TEST.AUSM.FG_THRESHOLD = threshold
            own.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR, f"threshold_{threshold:g}"))
            evaluators[threshold] = Trainer.build_evaluator(own, dataset_name)
        finished = set.intersection(*(each.finished_video_ids() for each in evaluators.values()))
        for evaluator in evaluators.values():
            evaluator.reset()
        sweeper = ThresholdSweep(model, VideoSettings.from_config(cfg), thresholds)
        loader = Trainer.build_test_loader(cfg, dataset_name, finished)
        for [item] in tqdm(loader, desc=dataset_name, disable=None):
            results = sweeper.segment(item)
            for threshold, evaluator in evaluators.items():
                evaluator.process([item], [results[threshold]])
        for threshold, evaluator in evaluators.items():
            report.rows.append(Row(dataset_name, f"{threshold:g}", evaluator.evaluate()))
        if sweeper.frames:
            report.notes.append(
                f"{dataset_name}: {sweeper.steps} steps of a stream for {sweeper.frames} frames (one pass per "
                f"threshold: {sweeper.frames * len(thresholds)}); each frame was encoded once."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument(
        "--thresholds", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.6, 0.7], help="default: %(default)s"
    )
    args = parser.parse_args()
    thresholds = sorted(set(args.thresholds))
    if not 0 <= thresholds[0] <= thresholds[-1] <= 1:
        raise UserError(f"--thresholds: {thresholds}, expected probabilities")
    cfg = common_config(args)
    unprompted = [name for name in cfg.DATASETS.TEST if MetadataCatalog.get(name).task != "vos"]
    if not unprompted:
        raise UserError(f"DATASETS.TEST: {list(cfg.DATASETS.TEST)}; only unprompted data sets have a threshold")
    cfg.DATASETS.TEST = [first_videos(name, args.videos) for name in unprompted]
    report = Report("AP against the detection threshold", "foreground threshold", paper=PAPER)
    sweep(cfg, load_model(cfg), thresholds, report)
    report.write(Path(args.output), settings_of(args))
    print(report.markdown())


if __name__ == "__main__":
    cli(main)
