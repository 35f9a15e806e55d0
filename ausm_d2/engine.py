# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Detectron2's DefaultTrainer with this project's loaders, evaluators and optimiser."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, defaults
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch import nn

from ausm_d2 import meta_arch as meta_arch  # registers AUSM
from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.config import class_names, label_sets
from ausm_d2.data.build import (
    TrainLoader,
    available_test_sets,
    build_test_loader,
    build_train_loader,
    get_records,
    registered_names,
)
from ausm_d2.data.catalog import register_from_config
from ausm_d2.data.catalog.base import chosen_label_sets
from ausm_d2.data.items import TestVideo, VideoResult
from ausm_d2.errors import UserError
from ausm_d2.evaluation.evaluators import Scores, VideoEvaluators, build_evaluator
from ausm_d2.evaluation.paper import markdown_table, paper_table
from ausm_d2.evaluation.references import references
from ausm_d2.io import atomic_write
from ausm_d2.streaming.single_frames import SingleFrames
from ausm_d2.training.ema import UpdateAverage, WeightAverage
from ausm_d2.training.finite import FiniteSteps, StepLeftOut
from ausm_d2.training.resuming import RecentLosses, StepSeeds
from ausm_d2.training.solver import build_optimizer

logger = logging.getLogger(__name__)


def check_datasets(cfg: CfgNode, names: Iterable[str]) -> None:
    """Register the user's own data sets, and check that every data set is known and the config has its label set.

    Raises:
        UserError: if not, naming data set, classes and label set.
    """
    register_from_config(cfg)
    known, named = label_sets(cfg), class_names(cfg)
    chosen = chosen_label_sets(cfg)
    for key, given in (
        ("DATASETS.LABEL_SETS", chosen),
        ("DATASETS.LEAVE_OUT", cfg.DATASETS.LEAVE_OUT),
        ("TEST.AUSM.FG_THRESHOLDS", dict(cfg.TEST.AUSM.FG_THRESHOLDS)),
    ):
        unknown = [name for name in given if name not in DatasetCatalog]
        if unknown:
            raise UserError(f"{key}: {unknown}: no such data sets; registered: {', '.join(registered_names())}")
    for name in names:
        if name not in DatasetCatalog:
            raise UserError(f"data set '{name}' is not registered; registered: {', '.join(registered_names())}")
        metadata = MetadataCatalog.get(name)
        if not metadata.get("thing_classes"):
            get_records(name)  # a user's own data set: reading its file sets its classes
        classes, label_set = len(metadata.thing_classes), chosen.get(name, metadata.label_set)
        if label_set not in known:
            raise UserError(
                f"data set '{name}' needs the label set '{label_set}' ({classes} classes), "
                f"MODEL.AUSM.LABEL_SETS has {known}"
            )
        if known[label_set] != classes:
            raise UserError(
                f"data set '{name}' has {classes} classes, MODEL.AUSM.LABEL_SETS gives its label set "
                f"'{label_set}' {known[label_set]}"
            )
        if named.get(label_set, list(metadata.thing_classes)) != list(metadata.thing_classes):
            raise UserError(
                f"data set '{name}' has the classes {list(metadata.thing_classes)}, MODEL.AUSM.LABEL_SETS gives its "
                f"label set '{label_set}' {named[label_set]}, in this order"
            )


@contextlib.contextmanager
def _processes_on_the_cpu() -> Iterator[None]:
    """While this lasts, Detectron2 does not give a DistributedDataParallel the GPU of its process."""
    original = defaults.create_ddp_model
    defaults.create_ddp_model = partial(original, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = original


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer with this project's loaders, evaluators, optimiser and weight averaging."""

    average: WeightAverage | None = None  # if MODEL_EMA.ENABLED

    def __init__(self, cfg: CfgNode) -> None:
        with _processes_on_the_cpu() if cfg.MODEL.DEVICE == "cpu" else contextlib.nullcontext():
            super().__init__(cfg)

    def build_hooks(self) -> list[Any]:
        # Replaces Detectron2's checkpointer before any hook refers to it.
        states: dict[str, Any] = {"trainer": weakref.proxy(self)}
        model: Any = self.model
        model = getattr(model, "module", model)
        solver = self.cfg.SOLVER
        finite = FiniteSteps(model, self.cfg.OUTPUT_DIR, action=solver.NON_FINITE, gradients=not solver.AMP.ENABLED)
        self._trainer.register_hooks([finite])  # it calls them between backward pass and step
        self._seeds = StepSeeds(self._trainer.data_loader.seed, given=self.cfg.SEED >= 0)
        hooks: list[Any] = [self._seeds, RecentLosses()]
        if self.cfg.MODEL_EMA.ENABLED:
            self.average = WeightAverage(model, self.cfg.MODEL_EMA.DECAY)
            states["ema"] = self.average
            hooks.append(UpdateAverage(self.average))  # before the hooks that save or evaluate
        self.checkpointer = AUSMCheckpointer(self.model, self.cfg.OUTPUT_DIR, **states)
        for hook in super().build_hooks():
            is_evaluation = isinstance(hook, EvalHook)
            hooks.append(EvalHook(self.cfg.TEST.EVAL_PERIOD, self._test_and_keep) if is_evaluation else hook)
        return hooks

    def _test_and_keep(self) -> dict[str, Any]:
        """Periodic evaluation, with averaged weights if they are enabled."""
        with self.average.applied() if self.average is not None else contextlib.nullcontext():
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def run_step(self) -> None:
        with contextlib.suppress(StepLeftOut):
            super().run_step()

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's: go on from the last checkpoint of OUTPUT_DIR, or begin with MODEL.WEIGHTS.

        Raises:
            UserError: no checkpoint is whole, or the processes would begin with different iterations.
        """
        resume = resume and self.checkpointer.has_checkpoint()
        remedy = "all machines need the same checkpoints (a shared folder, or copies)"
        resumed = comm.all_gather(resume)  # first: loading synchronises the processes only if it loads something
        if len(set(resumed)) > 1:
            found = f"{sum(resumed)} of {len(resumed)} processes find a checkpoint to resume"
            raise UserError(f"{self.cfg.OUTPUT_DIR}: {found}; {remedy}")
        super().resume_or_load(resume)
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            begins = f"the processes would begin with the iterations {starts}"
            raise UserError(f"{self.cfg.OUTPUT_DIR}: {begins}; {remedy}")
        if comm.is_main_process():  # also if the first save was interrupted, and there is nothing to resume
            self.checkpointer.remove_unfinished()
        if self.average is not None and not resume:
            self.average.restart()  # with the weights that were loaded
        if resume and self.start_iter >= self.max_iter:
            logger.warning(
                "%s: the last checkpoint has been through %d iterations and SOLVER.MAX_ITER is %d: nothing is trained",
                *(self.cfg.OUTPUT_DIR, self.start_iter, self.max_iter),
            )
        # Resumed, it goes on to the clips that come next; it does not begin anew with those it has had.
        self._trainer.data_loader.continue_from(self.start_iter, self._seeds.seed)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        check_datasets(cfg, cfg.DATASETS.TRAIN)
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(
        cls, cfg: CfgNode, dataset_name: str, finished: Collection[int | str] = ()
    ) -> torch.utils.data.DataLoader:
        check_datasets(cfg, [dataset_name])
        return build_test_loader(cfg, dataset_name, finished)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> VideoEvaluators:
        return build_evaluator(dataset_name, cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Evaluate on every data set of ``DATASETS.TEST``; with ``TEST.AUSM.BASELINES`` also the references.

        A table of all results, and the paper's table for data sets that it covers, are logged and written to
        ``OUTPUT_DIR/table.md``. For data sets without public labels a submission is written instead of scores.

        Args:
            model: an AUSM, possibly wrapped in DistributedDataParallel.
            evaluators: one per data set of ``DATASETS.TEST``; None: from :meth:`build_evaluator`, which is always used
                for the references.

        Returns:
            Scores by data set, measure and name; those of references under ``<data set>/<reference>``. With a single
            key, its value, as in Detectron2. Empty in all processes except the first.

        Raises:
            UserError: if a data set is unknown, does not fit the config or, without SKIP_MISSING, is missing.
            ValueError: if the number of evaluators differs from that of data sets.
        """
        if evaluators is not None and len(evaluators) != len(cfg.DATASETS.TEST):
            raise ValueError(f"{len(evaluators)} evaluators, expected one for each of {list(cfg.DATASETS.TEST)}")
        given = dict(zip(cfg.DATASETS.TEST, evaluators or (), strict=False))
        names, missing = available_test_sets(cfg)
        for text in missing:
            log_first_n(logging.WARNING, f"Left out (TEST.SKIP_MISSING): {text}", name=__name__, key="message")
        check_datasets(cfg, names)
        ausm: Any = getattr(model, "module", model)
        results: dict[str, Scores] = {}
        rows: list[tuple[str, str, Scores]] = []
        for dataset_name in names:
            results[dataset_name] = cls._evaluate(cfg, dataset_name, model, given.get(dataset_name))
            rows.append((dataset_name, cfg.MODEL.META_ARCHITECTURE, results[dataset_name]))
            if not cfg.TEST.AUSM.BASELINES:
                continue
            task = MetadataCatalog.get(dataset_name).task
            for key, reference in references(task, SingleFrames(ausm, ausm.video)).items():
                logger.info("Reference on %s: %s", dataset_name, reference.name)
                own = cfg.clone()  # a separate folder for each, for TEST.AUSM.RESUME
                own.defrost()
                own.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR, "references", key))
                scores = cls._evaluate(own, dataset_name, reference)
                results[f"{dataset_name}/{key}"] = scores
                rows.append((dataset_name, reference.name, scores))
        if rows and comm.is_main_process():
            table = results_table(rows)
            if paper := paper_table(results, rows[0][1]):
                table += f"\n\n{paper}"
            logger.info("Results:\n%s", table)
            with atomic_write(Path(cfg.OUTPUT_DIR, "table.md")) as path:
                path.write_text(table + "\n", encoding="utf-8")
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def _evaluate(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        model: Callable[[list[TestVideo]], list[VideoResult]],
        evaluator: DatasetEvaluator | None = None,
    ) -> Scores:
        finished: Collection[int | str] = ()
        if evaluator is None:
            evaluator = cls.build_evaluator(cfg, dataset_name)
        if isinstance(evaluator, VideoEvaluators):
            finished = evaluator.finished_video_ids()
        return inference_on_dataset(model, cls.build_test_loader(cfg, dataset_name, finished), evaluator)


def results_table(rows: Sequence[tuple[str, str, Scores]]) -> str:
    """A Markdown table.

    Args:
        rows: data set, method and scores of each row. Measures without any value get no column.
    """
    titles = ["Data set", "Method"]
    columns = [[dataset for dataset, _, _ in rows], [method for _, method, _ in rows]]
    for measure, names in {"segm": ("AP", "AP50", "AP75"), "vos": ("G", "J&F", "J", "F")}.items():
        for name in names:
            values = [scores.get(measure, {}).get(name) for _, _, scores in rows]
            if any(value is not None for value in values):
                titles.append(name)
                columns.append(["" if value is None else f"{value:.1f}" for value in values])
    if any("reappearance" in scores for _, _, scores in rows):
        titles.append("Hidden objects back on their track")
        columns.append([_came_back(scores.get("reappearance")) for _, _, scores in rows])

    return markdown_table(titles, list(zip(*columns, strict=True)))


def _came_back(counts: Mapping[str, float] | None) -> str:
    return f"{counts['back']:.0f} of {counts['hidden']:.0f}" if counts else ""
