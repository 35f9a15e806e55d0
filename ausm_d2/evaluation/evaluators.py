# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The evaluators, selected by a data set's ``evaluator_type``.

Shape shorthand:
    T: frames of a video
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators

from ausm_d2.checkpoint.fingerprint import fingerprint
from ausm_d2.cores import available_cores
from ausm_d2.data.build import scored_records
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.evaluation import vos, ytvis
from ausm_d2.evaluation.average_precision import distinct_names
from ausm_d2.evaluation.parallel import in_parallel
from ausm_d2.evaluation.reappearance import Reappearances, count_reappearances
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.evaluation.submission import archive
from ausm_d2.evaluation.submission.base import DataSet
from ausm_d2.evaluation.tracks import Track, true_masks, true_tracks
from ausm_d2.evaluation.video_evaluator import Scores, VideoEvaluator

logger = logging.getLogger(__name__)


class YTVISEvaluator(VideoEvaluator):
    """AP of YouTube-VIS and OVIS (key ``segm``), in percent; writes ``results.json``."""

    measure: type[ytvis.TrackEval] = ytvis.TrackEval

    def score(self) -> Scores:
        data = DataSet.of(self.dataset_name, self.records)
        thing_classes = self.metadata.thing_classes
        class_names = distinct_names({data.category_ids[i]: name for i, name in enumerate(thing_classes)})
        evaluation = self.measure(range(len(class_names)))
        for record in self.records:
            evaluation.add(record.video_id, true_tracks(record), predicted_tracks(self.results, record))
        scores = evaluation.scores(class_names)
        logger.info("AP on %s:\n%s", self.dataset_name, ytvis.table(scores))
        form = archive.FORMATS[self.metadata.evaluator_type]
        archive.write(self.output_dir / "results.json", form.members(data, self.results))
        per_category = {f"AP-{name}": value for name, value in scores.pop("per_category").items()}
        return {"segm": {name: value for name, value in {**scores, **per_category}.items() if value is not None}}


def predicted_tracks(results: ResultFolder, record: VideoRecord) -> list[Track]:
    """The predicted (track, class) pairs of a video."""
    return as_tracks(record, results.read(record).tracks)


def as_tracks(record: VideoRecord, entries: Iterable[Mapping[str, Any]]) -> list[Track]:
    """Entries of a model's output for a video, to be scored."""
    return [
        Track(
            video_id=record.video_id,
            category_id=entry["category_id"],
            masks=entry["segmentations"],
            score=entry["score"],
        )
        for entry in entries
    ]


class COCOEvaluator(YTVISEvaluator):
    """COCO's mask AP (key ``segm``), in percent, for images as one-frame videos."""

    measure = ytvis.ImageEval


class VOSEvaluator(VideoEvaluator):
    """J&F (key ``vos``), in percent; writes ``objects.csv``. Metadata ``skip_last_frame``: DAVIS's rule."""

    def score(self) -> Scores:
        videos = self.score_videos()
        vos.write_table(self.output_dir / "objects.csv", videos)
        scores = self.summary(videos)
        logger.info("J&F on %s: %s", self.dataset_name, "  ".join(f"{name} {v:.2f}" for name, v in scores.items()))
        return {"vos": scores}

    def score_videos(self) -> list[vos.VideoScore]:
        """The scores of all objects, by video."""
        score = partial(_score_video, self.results, self.metadata.get("skip_last_frame", False))
        return in_parallel(score, self.records, workers=self._workers, label="J&F")

    def summary(self, videos: Sequence[vos.VideoScore]) -> dict[str, float]:
        """The scores of the data set."""
        return {name: value for name, value in vos.summary(videos).items() if value is not None}


def _score_video(results: ResultFolder, skip_last_frame: bool, record: VideoRecord) -> vos.VideoScore:
    return vos.score_record(record, results.read(record).objects or {}, skip_last_frame=skip_last_frame)


class YTVOSEvaluator(VOSEvaluator):
    """YouTube-VOS's G, with J and F of categories seen and unseen in training, and J&F.

    Category names are in ``record.extra["object_categories"]`` (by object id), those of the training set in metadata
    ``seen_categories``. Without the latter, J&F only.
    """

    def summary(self, videos: Sequence[vos.VideoScore]) -> dict[str, float]:
        seen = self.metadata.get("seen_categories")
        if seen is None:
            logger.warning("%s: no G: it is not known which categories are seen in training", self.dataset_name)
            return super().summary(videos)
        categories = {record.name: record.extra["object_categories"] for record in self.records}
        is_seen = {
            (video.name, object_id): categories[video.name][object_id] in seen
            for video in videos
            for object_id in video.objects
        }
        return {**vos.seen_and_unseen(videos, is_seen), **super().summary(videos)}


class ReappearanceEvaluator(VideoEvaluator):
    """How many hidden objects are found again by their track (key ``reappearance``): counts and percent."""

    def score(self) -> Scores:
        counts = Reappearances()
        for record in self.records:
            counts += self._count(record)
        return {"reappearance": counts.results()}

    def submit(self) -> None:
        """Nothing: the other evaluator of the data set does."""

    def _count(self, record: VideoRecord) -> Reappearances:
        counts = Reappearances()
        frames = record.labelled_frames
        output = self.results.read(record)
        unprompted = [track["segmentations"] for track in output.best_classes()]
        for object_id, masks in true_masks(record).items():
            if output.objects is not None and object_id not in output.objects:
                continue  # labelled, but not prompted
            # A prompted object is compared with its own track only.
            tracks = unprompted if output.objects is None else [output.objects[object_id]]
            counts += count_reappearances(
                [masks[frame] for frame in frames], [[track[frame] for frame in frames] for track in tracks]
            )
        return counts


class AreaEvaluator(VideoEvaluator):
    """J of prompted objects by their area in the frame (key ``area``), in percent.

    ``J<=0.5%`` is the mean over all objects and frames in which the object covers at most 0.5 percent, ``J<=2%`` over
    those from there to 2 percent, and so on.
    """

    def score(self) -> Scores:
        by_area: dict[float, list[float]] = {edge: [] for edge in vos.AREAS}
        for record in self.records:
            for edge, values in vos.overlaps_by_area(record, self.results.read(record).objects or {}).items():
                by_area[edge] += values
        return {"area": {f"J<={edge:g}%": 100 * fmean(values) for edge, values in by_area.items() if values}}

    def submit(self) -> None:
        """Nothing: the other evaluator of the data set does."""


class TrackingEvaluator(VideoEvaluator):
    """HOTA and track mAP by ``trackeval`` (key ``tracking``), in percent."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        try:  # an optional dependency
            from ausm_d2.evaluation.tracking import TrackingScores
        except ModuleNotFoundError as error:
            raise UserError(f"TEST.AUSM.TRACKING: needs the package {error.name}: pip install trackeval") from None
        self._measure = TrackingScores

    def score(self) -> Scores:
        scores = self._measure(range(len(self.metadata.thing_classes)))
        for record in self.records:
            scores.add(str(record.video_id), true_tracks(record), predicted_tracks(self.results, record))
        return {"tracking": scores.results()}

    def submit(self) -> None:
        """Nothing: the other evaluator of the data set does."""


class VideoEvaluators(DatasetEvaluators):
    """Several evaluators of one data set."""

    def finished_video_ids(self) -> set[int | str]:
        """Videos that are finished for all evaluators."""
        return set.intersection(*(evaluator.finished_video_ids() for evaluator in self._evaluators))


_EVALUATORS: dict[str, type[VideoEvaluator]] = {
    "ytvis": YTVISEvaluator,
    "coco": COCOEvaluator,
    "vos": VOSEvaluator,
    "sav": VOSEvaluator,
    "ytvos": YTVOSEvaluator,
}


def build_evaluator(
    dataset_name: str, cfg: CfgNode, *, records: Sequence[VideoRecord] | None = None
) -> VideoEvaluators:
    """Build the evaluators of a data set from its metadata; they write to ``OUTPUT_DIR/inference/<dataset_name>``.

    Args:
        records: videos to score; None: all of the data set.

    Raises:
        UserError: if ``evaluator_type`` is unknown.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind not in _EVALUATORS:
        raise UserError(f"{dataset_name}: metadata evaluator_type is {kind!r}, expected one of {sorted(_EVALUATORS)}")
    kinds = [_EVALUATORS[kind]]
    if metadata.task != "image":
        kinds.append(ReappearanceEvaluator)
    if metadata.task == "vos" and cfg.TEST.AUSM.J_BY_AREA:
        kinds.append(AreaEvaluator)
    if metadata.task == "vis" and cfg.TEST.AUSM.TRACKING:
        kinds.append(TrackingEvaluator)
    run_id = fingerprint(cfg)
    if records is None and cfg.TEST.AUSM.EVERY_NTH != 1:
        records = scored_records(cfg, dataset_name)
    return VideoEvaluators(
        [
            evaluator(
                dataset_name,
                Path(cfg.OUTPUT_DIR, "inference", dataset_name),
                records=records,
                resume=cfg.TEST.AUSM.RESUME,
                run_id=run_id,
                workers=available_cores() if cfg.DATALOADER.NUM_WORKERS else 0,
            )
            for evaluator in kinds
        ]
    )
