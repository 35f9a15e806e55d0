# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Data loaders: an endless mixture of data sets for training, whole videos for testing."""

from __future__ import annotations

import logging
import math
import traceback
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

import cv2
import numpy as np
import torch.utils.data
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList, MetadataCatalog
from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from ausm_d2.allocator import keep_freed_memory
from ausm_d2.config.checks import check_pixels
from ausm_d2.data.catalog import register_from_config
from ausm_d2.data.catalog.annotations import shared_tables
from ausm_d2.data.catalog.base import DEFAULT_TOPK, chosen_label_sets
from ausm_d2.data.items import TestVideo, TrainingClip
from ausm_d2.data.mapper import ClipMapper
from ausm_d2.data.mask_sources import ListedMasks
from ausm_d2.data.mixture import Draw, DrawnBatches, MixtureSampler, is_portrait
from ausm_d2.data.thinning import every_nth
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.seeds import seed_generators

_MAX_FAILURES = 10  # consecutive unreadable videos after which the data set counts as broken

logger = logging.getLogger(__name__)


class _TrainingItems(torch.utils.data.Dataset[TrainingClip]):
    """Draw -> training item. An unreadable video is reported, counted and replaced by another one of its data set."""

    def __init__(self, names: Sequence[str], records: Sequence[list[VideoRecord]], mapper: ClipMapper) -> None:
        self._names = names
        self._records = [DatasetFromList(of_one, copy=False) for of_one in records]
        self._mapper = mapper
        self._failures: Counter[str] = Counter()

    def __getitem__(self, draw: Draw) -> TrainingClip:
        if torch.utils.data.get_worker_info() is not None:
            prepare_worker()
            seed_generators(draw.seed)  # nothing here draws from the default ones, but what a user adds may
        name, records = self._names[draw.dataset], self._records[draw.dataset]
        index, rng = draw.record, np.random.default_rng(draw.seed)
        for _ in range(_MAX_FAILURES):
            try:
                return self._mapper(name, records[index], rng, lambda rng: records[int(rng.integers(len(records)))])
            except UserError as error:
                self._failures[name] += 1
                logger.warning("Left out (no. %d of %s in this process): %s", self._failures[name], name, error)
                last = error
            index = int(rng.integers(len(records)))
        raise UserError(f"{name}: {_MAX_FAILURES} videos in a row cannot be used; the last one: {last}")


def prepare_worker() -> None:
    """Set up a loader worker: one OpenCV thread; freed memory stays in the process."""
    cv2.setNumThreads(0)
    keep_freed_memory()


class TrainLoader:
    """Endless batches of clips. Logs the share of each data set as ``data/share_of_<name>``."""

    def __init__(self, items: _TrainingItems, names: Sequence[str], drawn: DrawnBatches, *, workers: int) -> None:
        """
        Args:
            items: maps draws to training items.
            names: of the data sets.
            drawn: the batches of this process.
            workers: worker processes; 0: items are made in this process.
        """
        self._names = names
        self._drawn = drawn
        self._batches = torch.utils.data.DataLoader(
            items,
            batch_sampler=drawn,
            num_workers=workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=worker_init_reset_seed,
            generator=torch.Generator(),  # not the default one, or a resumed training would draw once more than others
        )

    @property
    def seed(self) -> int:
        """Of the draws."""
        return self._drawn.draws.seed

    def continue_from(self, iteration: int, seed: int) -> None:
        """Begin with the clips of an iteration (counted from 0) of a training with that seed; before iterating."""
        self._drawn.start = iteration
        self._drawn.draws.seed = seed

    def __iter__(self) -> Iterator[list[TrainingClip]]:
        seen: Counter[str] = Counter()
        try:
            for batch in self._batches:
                seen.update(item["dataset_name"] for item in batch)
                if len(self._names) > 1 and has_event_storage():
                    shares = {f"data/share_of_{name}": seen[name] / seen.total() for name in self._names}
                    get_event_storage().put_scalars(smoothing_hint=False, **shares)
                yield batch
        except UserError as error:  # a worker's exception contains its traceback, with the message as the last line
            message = str(error).strip().splitlines()[-1].removeprefix("ausm_d2.errors.UserError: ")
            # The traceback's frames keep the workers' iterator alive in a reference cycle. If the garbage collector
            # frees that cycle, it may close the queues first; the workers then miss the signal to stop, and joining
            # them takes 5 seconds.
            traceback.clear_frames(error.__traceback__)
            raise UserError(message) from None


def get_records(name: str) -> list[VideoRecord]:
    """The records of a registered data set.

    Raises:
        UserError: if the name is not registered, or the data set has no videos.
    """
    if name not in DatasetCatalog:
        raise UserError(f"data set {name!r} is not known; known: {', '.join(registered_names())}")
    records = DatasetCatalog.get(name)
    if not records:
        raise UserError(f"data set {name!r} has no videos")
    return records


def registered_names() -> list[str]:
    """Names of all data sets registered by this project."""
    return [name for name in sorted(DatasetCatalog.list()) if hasattr(MetadataCatalog.get(name), "label_set")]


def has_instances(record: VideoRecord) -> bool:
    """Whether the record has an instance to train on: not a crowd, and with a mask."""
    visible = record.masks.by_instance if isinstance(record.masks, ListedMasks) else None
    return any(not each.is_crowd and (visible is None or each.instance_id in visible) for each in record.instances)


def get_training_records(cfg: CfgNode, name: str) -> list[VideoRecord]:
    """The records of a data set that have instances (without ``FILTER_EMPTY_ANNOTATIONS``: all).

    Raises:
        UserError: if there are none.
    """
    records = get_records(name)
    # Class-agnostic data sets do not list instances; finding them would require reading all masks.
    metadata = MetadataCatalog.get(name)
    unlisted = metadata.get("unlisted", metadata.task == "vos")
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and not unlisted:
        kept = [record for record in records if has_instances(record)]
        logger.info("%s: %d of %d videos have instances", name, len(kept), len(records))
        records = kept
    if not records:
        raise UserError(f"data set {name!r} has no video with instances to train on")
    return records


_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")  # Detectron2's


def check_train_config(cfg: CfgNode, processes: int) -> None:
    """Check the training keys of a config for a number of processes, without reading data.

    Raises:
        UserError: if ratios, batch size or augmentation keys are invalid.
    """
    clips = cfg.SOLVER.IMS_PER_BATCH
    if clips < 1 or clips % processes:
        raise UserError(f"SOLVER.IMS_PER_BATCH: {clips} found; a multiple of {processes}, the processes, expected")
    for key in ("BASE_LR", "MAX_ITER", "WARMUP_ITERS"):
        if not 0 <= cfg.SOLVER[key] < math.inf:
            raise UserError(f"SOLVER.{key}: {cfg.SOLVER[key]} found; 0 or more expected")
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise UserError(f"DATALOADER.NUM_WORKERS: {cfg.DATALOADER.NUM_WORKERS} found; 0 or more expected")
    if cfg.SOLVER.CHECKPOINT_PERIOD < 1:
        raise UserError(f"SOLVER.CHECKPOINT_PERIOD: {cfg.SOLVER.CHECKPOINT_PERIOD} found; 1 or more expected")
    if list(cfg.SOLVER.STEPS) != sorted(cfg.SOLVER.STEPS):
        raise UserError(f"SOLVER.STEPS: {list(cfg.SOLVER.STEPS)} found; ascending iterations expected")
    scheduler = cfg.SOLVER.LR_SCHEDULER_NAME
    if scheduler not in _SCHEDULERS:
        raise UserError(f"SOLVER.LR_SCHEDULER_NAME: '{scheduler}' found; one of {', '.join(_SCHEDULERS)} expected")
    if scheduler == "WarmupCosineLR" and not cfg.SOLVER.BASE_LR:  # it divides by the rate
        raise UserError(f"SOLVER.BASE_LR: {cfg.SOLVER.BASE_LR} found; above 0 expected with {scheduler}")
    if cfg.SOLVER.NON_FINITE not in ("stop", "skip"):
        raise UserError(f"SOLVER.NON_FINITE: '{cfg.SOLVER.NON_FINITE}' found; stop or skip expected")
    names, ratios = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.DATASET_RATIO)
    if not names:
        raise UserError("DATASETS.TRAIN: empty, expected the names of the data sets to train on")
    if ratios and (len(ratios) != len(names) or min(ratios) < 0 or sum(ratios) <= 0):
        raise UserError(
            f"DATASETS.DATASET_RATIO: {ratios} found; expected one number from 0 on for each of {names}, not all 0"
        )
    check_pixels(cfg)
    ClipMapper(cfg)


def require_files(names: Iterable[str]) -> None:
    """Raise ``UserError`` if files of registered data sets are missing, naming the paths that were tried."""
    for name in names:
        locate = MetadataCatalog.get(name).get("locate")
        if locate:  # generated data has no files
            locate()


def available_test_sets(cfg: CfgNode) -> tuple[list[str], list[str]]:
    """The data sets of ``DATASETS.TEST`` whose files exist.

    Returns:
        Their names, and with ``TEST.SKIP_MISSING`` one message for each data set without files.

    Raises:
        UserError: without ``TEST.SKIP_MISSING``, if files are missing.
    """
    register_from_config(cfg)
    names = list(cfg.DATASETS.TEST)
    if not cfg.TEST.SKIP_MISSING:
        require_files(names)
        return names, []
    missing: dict[str, str] = {}
    for name in names:
        try:
            require_files([name])
        except UserError as error:
            missing[name] = str(error)
    return [name for name in names if name not in missing], list(missing.values())


def build_train_loader(cfg: CfgNode) -> TrainLoader:
    """Endless batches of ``SOLVER.IMS_PER_BATCH`` clips (over all processes) drawn from ``DATASETS.TRAIN``.

    ``DATASETS.DATASET_RATIO`` has the sampling weights (empty: numbers of videos). With
    ``DATALOADER.ASPECT_RATIO_GROUPING`` the clips of a batch are all landscape or all portrait; videos whose size is
    not known before they are opened count as landscape.

    Raises:
        UserError: if a data set is unknown or empty, or the ratios are invalid.
    """
    register_from_config(cfg)
    check_train_config(cfg, comm.get_world_size())
    names = list(cfg.DATASETS.TRAIN)
    with shared_tables():
        records = [get_training_records(cfg, name) for name in names]
    sizes = [len(of_one) for of_one in records]
    ratios = list(cfg.DATASETS.DATASET_RATIO) or sizes
    sampler = MixtureSampler(sizes, ratios, comm.shared_random_seed() if cfg.SEED < 0 else cfg.SEED)
    for name, size, share in zip(names, sizes, sampler.shares, strict=True):
        logger.info("%s: %d videos, %.1f %% of the clips", name, size, 100 * share)

    portrait = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        portrait = [[is_portrait(record) for record in of_one] for of_one in records]
    drawn = DrawnBatches(sampler, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), portrait)
    items = _TrainingItems(names, records, ClipMapper(cfg))
    return TrainLoader(items, names, drawn, workers=cfg.DATALOADER.NUM_WORKERS)


def scored_records(cfg: CfgNode, dataset_name: str) -> list[VideoRecord]:
    """The videos of a data set as they are scored: with TEST.AUSM.EVERY_NTH, some of their frames only.

    Raises:
        UserError: if the data set is unknown or empty, or the key has no such value.
    """
    step = cfg.TEST.AUSM.EVERY_NTH
    if step < 1:
        raise UserError(f"TEST.AUSM.EVERY_NTH: {step}, expected 1 or more")
    records = get_records(dataset_name)
    return records if step == 1 else [every_nth(record, step) for record in records]


def build_test_loader(
    cfg: CfgNode, dataset_name: str, finished: Collection[int | str] = ()
) -> torch.utils.data.DataLoader:
    """The videos of one data set, each once, as batches of one lazily read item, balanced over processes by length.

    Args:
        dataset_name: any registered data set.
        finished: ids of videos that already have results; left out.

    Returns:
        A loader of lists of one :class:`~ausm_d2.data.items.TestVideo`.

    Raises:
        UserError: if the data set is unknown or empty.
    """
    register_from_config(cfg)
    records = [record for record in scored_records(cfg, dataset_name) if record.video_id not in finished]
    metadata = MetadataCatalog.get(dataset_name)
    # Longest videos first, round robin over processes, to balance the load.
    records.sort(key=lambda record: -record.length)
    items: list[TestVideo] = [
        {
            "record": record,
            "dataset_name": dataset_name,
            "task": metadata.task,
            "label_set": chosen_label_sets(cfg).get(dataset_name, metadata.label_set),
            "overlap": metadata.get("overlap", False),
            "topk": metadata.get("topk", DEFAULT_TOPK),
        }
        for record in records[comm.get_rank() :: comm.get_world_size()]
    ]
    return torch.utils.data.DataLoader(items, batch_size=1, collate_fn=trivial_batch_collator)  # type: ignore[arg-type]
