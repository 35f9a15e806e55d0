# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The evaluators that Detectron2's ``inference_on_dataset`` drives, one for each ``evaluator_type``.

What the model says of a video is written to a file of its own as soon as it is made, so nothing grows in memory, and an
evaluation that was interrupted goes on with the videos that are missing.

Shape shorthand:
    T: frames of a video
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

from ausm_d2.data.build import get_records
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.evaluation import vos, ytvis
from ausm_d2.evaluation.reappearance import Reappearances, count_reappearances
from ausm_d2.evaluation.rle import areas
from ausm_d2.io import atomic_write

logger = logging.getLogger(__name__)

VideoId = int | str
Scores = dict[str, dict[str, float]]


class ResultFolder:
    """One JSON file for each video that is done: the model's output as it came."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, video_id: VideoId) -> Path:
        return self.folder / f"{quote(str(video_id), safe='')}.json"

    def write(self, video_id: VideoId, text: str) -> None:
        with atomic_write(self.path(video_id)) as path:
            path.write_text(text, encoding="utf-8")

    def read(self, video_id: VideoId) -> dict[str, Any]:
        return json.loads(self.path(video_id).read_text(encoding="utf-8"))

    def clear(self) -> None:
        for path in self.folder.glob("*.json"):
            path.unlink()


class VideoEvaluator(DatasetEvaluator):
    """Keeps the model's outputs of one data set in ``output_dir/videos``; subclasses score them.

    Several evaluators of one data set may share an ``output_dir``. With several processes, each hands its videos to the
    first one, which scores them in the order of the data set: the numbers do not depend on who did which video.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike[str],
        *,
        records: Sequence[VideoRecord] | None = None,
        resume: bool = False,
        run_id: str = "",
        workers: int = 0,
    ) -> None:
        """
        Args:
            output_dir: of this data set alone.
            records: the videos to score, where they are not all of the data set.
            resume: keep results that ``output_dir`` holds already.
            run_id: text that differs where results must not be mixed (another model, other settings).
            workers: processes that score, beside this one.
        """
        self.dataset_name = dataset_name
        self.metadata = MetadataCatalog.get(dataset_name)
        self.output_dir = Path(output_dir)
        self.results = ResultFolder(self.output_dir / "videos")
        self._records = records
        self._resume = resume
        self._run_id = run_id
        self._workers = workers
        self._processed: list[VideoId] = []

    @cached_property
    def records(self) -> Sequence[VideoRecord]:
        """The videos to score."""
        return get_records(self.dataset_name) if self._records is None else self._records

    def finished_video_ids(self) -> set[VideoId]:
        """Videos that need not be run again.

        Raises:
            UserError: ``resume`` was asked for, but the results are another run's.
        """
        if not self._resume or not self._run_file.exists():
            return set()
        found = self._run_file.read_text(encoding="utf-8")
        if found != self._run_id:
            raise UserError(
                f"{self.output_dir}: TEST.AUSM.RESUME is on, but the results here come from other weights or settings: "
                f"run {found!r}, expected {self._run_id!r}. Remove the folder, or resume with what it was begun with"
            )
        return {record.video_id for record in self.records if self.results.path(record.video_id).exists()}

    @property
    def _run_file(self) -> Path:
        return self.output_dir / "run.txt"

    def reset(self) -> None:
        """Begin an evaluation: without ``resume``, the results of an earlier one are removed."""
        self._processed = []
        if comm.is_main_process():
            if not self.finished_video_ids():
                self.results.clear()
            with atomic_write(self._run_file) as path:
                path.write_text(self._run_id, encoding="utf-8")
        comm.synchronize()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Write the outputs for some videos (the model's output in evaluation mode)."""
        for item, output in zip(inputs, outputs, strict=True):
            video_id = item["record"].video_id
            self._processed.append(video_id)
            if not self.results.path(video_id).exists():  # another evaluator of this folder may have come first
                self.results.write(video_id, json.dumps(output))

    def evaluate(self) -> Scores:
        """Score what was processed, now or before ``resume``; in all processes but the first: nothing.

        Raises:
            UserError: videos without results.
        """
        self._gather()
        if not comm.is_main_process():
            return {}
        missing = [record.name for record in self.records if not self.results.path(record.video_id).exists()]
        if missing:
            raise UserError(
                f"{self.dataset_name}: {len(missing)} of {len(self.records)} videos have no result, "
                f"the first of them {missing[0]}"
            )
        return self.score()

    def _gather(self) -> None:
        """Bring the files of all processes together: they may run on machines that share no disk."""
        mine = {video_id: self.results.path(video_id).read_text(encoding="utf-8") for video_id in self._processed}
        for texts in comm.gather(mine)[1:]:
            for video_id, text in texts.items():
                if not self.results.path(video_id).exists():
                    self.results.write(video_id, text)

    def score(self) -> Scores:
        """The scores of all videos by measure and name, in percent; what has no ground truth is left out."""
        raise NotImplementedError


class YTVISEvaluator(VideoEvaluator):
    """AP as YouTube-VIS and OVIS measure it (key ``segm``), in percent; writes ``results.json``."""

    def score(self) -> Scores:
        truth = ytvis.truth_from_records(self.records, self.metadata.thing_classes)
        tracks = [track for record in self.records for track in self._tracks(record)]
        scores = ytvis.score(truth, tracks)
        logger.info("AP on %s:\n%s", self.dataset_name, ytvis.table(scores))
        per_category = {f"AP-{name}": value for name, value in scores.pop("per_category").items()}
        return {"segm": {name: value for name, value in {**scores, **per_category}.items() if value is not None}}

    def _tracks(self, record: VideoRecord) -> list[ytvis.Track]:
        return [
            ytvis.Track(
                video_id=record.video_id,
                category_id=track["category_id"],
                masks=track["segmentations"],
                area=ytvis.mean_area(areas(track["segmentations"]).tolist()),
                score=track["score"],
            )
            for track in self.results.read(record.video_id)["tracks"]
        ]


class VOSEvaluator(VideoEvaluator):
    """J&F (key ``vos``), in percent; writes ``objects.csv``. Metadata ``skip_last_frame``: DAVIS's rule."""

    def score(self) -> Scores:
        skip_last_frame = self.metadata.get("skip_last_frame", False)
        score = partial(_score_video, self.results, skip_last_frame)
        videos = vos.in_parallel(score, self.records, workers=self._workers, label="J&F")
        vos.write_table(self.output_dir / "objects.csv", videos)
        scores = {name: value for name, value in vos.summary(videos).items() if value is not None}
        logger.info("J&F on %s: %s", self.dataset_name, scores)
        return {"vos": scores}


def _score_video(results: ResultFolder, skip_last_frame: bool, record: VideoRecord) -> vos.VideoScore:
    objects = {int(object_id): masks for object_id, masks in results.read(record.video_id)["objects"].items()}
    return vos.score_record(record, objects, skip_last_frame=skip_last_frame)


class ReappearanceEvaluator(VideoEvaluator):
    """How many objects that were hidden come back on their track (key ``reappearance``): counts and percent."""

    def score(self) -> Scores:
        counts = Reappearances()
        for record in self.records:
            counts += self._count(record)
        return {"reappearance": counts.results()}

    def _count(self, record: VideoRecord) -> Reappearances:
        counts = Reappearances()
        labelled = [frame for frame in range(record.length) if record.labelled is None or record.labelled[frame]]
        output = self.results.read(record.video_id)
        unprompted = {track["track_id"]: track["segmentations"] for track in output.get("tracks", ())}
        for object_id, masks in ytvis.true_masks(record).items():
            # A prompted object has one track that may be called its own.
            tracks = [output["objects"][str(object_id)]] if "objects" in output else unprompted.values()
            counts += count_reappearances(
                [masks[frame] for frame in labelled], [[track[frame] for frame in labelled] for track in tracks]
            )
        return counts


class VideoEvaluators(DatasetEvaluators):
    """Several evaluators of one data set."""

    def finished_video_ids(self) -> set[VideoId]:
        """Videos that none of them needs again."""
        return set.intersection(*(evaluator.finished_video_ids() for evaluator in self._evaluators))


_EVALUATORS: dict[str, type[VideoEvaluator]] = {
    "ytvis": YTVISEvaluator,
    "vos": VOSEvaluator,
}


def build_evaluator(
    dataset_name: str, cfg: CfgNode, *, records: Sequence[VideoRecord] | None = None
) -> VideoEvaluators:
    """The evaluators of a data set, chosen by its metadata; their files go to ``OUTPUT_DIR/inference/<dataset_name>``.

    Args:
        records: the videos to score, where they are not all of the data set.

    Raises:
        UserError: an ``evaluator_type`` that is not known.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind not in _EVALUATORS:
        raise UserError(f"{dataset_name}: metadata evaluator_type is {kind!r}, expected one of {sorted(_EVALUATORS)}")
    build = partial(
        _build_one,
        dataset_name=dataset_name,
        output_dir=Path(cfg.OUTPUT_DIR, "inference", dataset_name),
        records=records,
        resume=cfg.TEST.AUSM.RESUME,
        run_id=run_id(cfg),
        workers=min(cfg.DATALOADER.NUM_WORKERS, vos.available_cores()),
    )
    return VideoEvaluators([build(_EVALUATORS[kind]), build(ReappearanceEvaluator)])


def _build_one(evaluator: type[VideoEvaluator], **arguments: Any) -> VideoEvaluator:
    return evaluator(**arguments)


def run_id(cfg: CfgNode) -> str:
    """Text that changes with the weights and with every setting that may change what the model says of a video."""
    settings = {"MODEL": cfg.MODEL, "INPUT": cfg.INPUT, "TEST": {**cfg.TEST.AUSM, "RESUME": None}}
    weights = Path(cfg.MODEL.WEIGHTS)
    stamp = [weights.stat().st_size, weights.stat().st_mtime_ns] if weights.is_file() else []
    return f"{weights} {hashlib.sha256(json.dumps([settings, stamp]).encode()).hexdigest()[:16]}"
