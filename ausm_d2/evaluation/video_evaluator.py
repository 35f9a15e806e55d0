# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Base class of the evaluators: writes the output of each video to disk as it arrives, then scores all videos."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ausm_d2.data.build import get_records
from ausm_d2.data.items import TestVideo, VideoResult
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.evaluation import vos
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.evaluation.submission import archive
from ausm_d2.io import atomic_write, require_room

Scores = dict[str, dict[str, float]]


class VideoEvaluator(DatasetEvaluator):
    """Stores the model's outputs of one data set in ``output_dir/videos``; subclasses score them.

    Several evaluators of one data set may share an ``output_dir``. In distributed evaluation the main process gathers
    all results and scores them in the order of the data set, so that scores do not depend on the distribution.
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
            output_dir: used for this data set only.
            records: videos to score; None: all of the data set.
            resume: keep existing results in ``output_dir``.
            run_id: fingerprint of weights and settings; results of different runs are never mixed.
            workers: processes for scoring; 0: this one.
        """
        self.dataset_name = dataset_name
        self.metadata = MetadataCatalog.get(dataset_name)
        self.output_dir = Path(output_dir)
        self.results = ResultFolder(self.output_dir / "videos")
        self._records = records
        self._resume = resume
        self._run_id = run_id
        self._workers = workers

    @cached_property
    def records(self) -> Sequence[VideoRecord]:
        """The videos to score."""
        return get_records(self.dataset_name) if self._records is None else self._records

    @property
    def _run_file(self) -> Path:
        return self.output_dir / "run.txt"

    def finished_video_ids(self) -> set[int | str]:
        """Videos that already have results, in any process. Must be called in all processes.

        Raises:
            UserError: if ``resume`` is set and the results belong to another run.
        """
        if not self._resume:
            return set()
        problem = self._other_run()
        finished = set() if problem else self._finished_here()
        for other_finished, other_problem in comm.all_gather((finished, problem)):  # processes may not share a disk
            finished |= other_finished
            problem = problem or other_problem
        if problem:  # raised in all processes, to avoid a deadlock
            raise UserError(problem)
        return finished

    def _other_run(self) -> str | None:
        """An error message if the results on this machine's disk belong to another run."""
        if not self._run_file.exists() or (found := self._run_file.read_text(encoding="utf-8")) == self._run_id:
            return None
        return (
            f"{self.output_dir}: TEST.AUSM.RESUME is on, but the results there are of other weights or settings: "
            f"run {found!r}, expected {self._run_id!r}. Remove the folder, or evaluate what it was begun with"
        )

    def _finished_here(self) -> set[int | str]:
        """Videos whose results are on this machine's disk."""
        if not self._run_file.exists():
            return set()
        return {record.video_id for record in self.records if self.results.path(record).exists()}

    def reset(self) -> None:
        """Prepare an evaluation; without ``resume``, remove earlier results.

        Raises:
            UserError: in all processes, if one of them cannot write, or finds files not written by an evaluation.
        """
        problem = None
        if comm.get_local_rank() == 0:  # once per machine: machines may not share a disk
            try:
                self._prepare_folder()
            except UserError as error:
                problem = str(error)
        problems = [each for each in comm.all_gather(problem) if each is not None]
        if problems:
            raise UserError(problems[0])

    def _prepare_folder(self) -> None:
        require_room(self.output_dir)
        if not self._resume or not self._finished_here():
            if self.results.files() and not self._run_file.exists():
                raise UserError(
                    f"{self.results.folder}: holds {self.results.files()[0].name!r}, which no evaluation has written"
                    "; move them, or choose another OUTPUT_DIR"
                )
            self.results.clear()
        with atomic_write(self._run_file) as path:
            path.write_text(self._run_id, encoding="utf-8")

    def process(self, inputs: Sequence[TestVideo], outputs: Sequence[VideoResult]) -> None:
        """Write the model's outputs for some test items."""
        for item, output in zip(inputs, outputs, strict=True):
            record = item["record"]
            if not self.results.path(record).exists():  # another evaluator may share the folder
                self.results.write(record, json.dumps(output))

    def evaluate(self) -> Scores:
        """Score all videos, including resumed ones. Returns {} in all processes except the main one.

        Without public labels, a submission is written instead.

        Raises:
            UserError: if a video has no result.
        """
        self._gather()
        if not comm.is_main_process():
            return {}
        self.results.require(self.records)
        if self.has_labels():
            return self.score()
        self.submit()
        return {}

    def _gather(self) -> None:
        """Copy the results of all processes to the main one: machines may not share a disk."""
        if comm.get_world_size() == 1:
            return
        held = comm.all_gather(self._finished_here())  # per process
        here = comm.get_rank()
        missing = [record for record in self.records if record.video_id not in held[0]]  # in the main process
        mine = [r for r in missing if next((i for i, ids in enumerate(held) if r.video_id in ids), None) == here]
        texts = [(record, self.results.path(record).read_text(encoding="utf-8")) for record in mine]
        for others in comm.gather(texts)[1:]:
            for record, text in others:
                self.results.write(record, text)

    def has_labels(self) -> bool:
        """Whether there are labels to score against; prompts do not count."""
        if self.metadata.task == "vos":
            return any(vos.scored_frames(record) for record in self.records)
        return any(record.masks is not None for record in self.records)

    def score(self) -> Scores:
        """Scores over all videos by measure and name, in percent; values without ground truth are omitted."""
        raise NotImplementedError

    def submit(self) -> None:
        """Write the submission for the data set's evaluation server."""
        archive.write_submission(self.dataset_name, self.records, self.results, self.output_dir)
