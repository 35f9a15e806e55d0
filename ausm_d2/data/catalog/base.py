# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Locates the files of data sets and registers them; shared by all families."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.colormap import colormap

from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError

OBJECT_LABEL_SET = "object"  # the class-agnostic label set (docs/deviations.md, 5)
OBJECT_CLASSES = {1: "object"}
DEFAULT_TOPK = 10  # predictions kept per video (YouTube-VIS; paper, Sec. 4)
IMAGE_TOPK = 100  # per image, as in COCO


def data_root() -> Path:
    """The folder of all data sets: environment variable DETECTRON2_DATASETS, else ``datasets``."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def find(name: str, what: str, candidates: Sequence[str | Path]) -> Path:
    """The first of ``candidates`` (relative to the data root, or absolute) that exists.

    Raises:
        UserError: if none exists; the message lists all candidates.
    """
    paths = [data_root() / candidate for candidate in candidates]
    for path in paths:
        if path.exists():
            return path
    looked = ", ".join(str(path) for path in paths)
    raise UserError(
        f"{name}: no {what} found; looked for {looked} (DETECTRON2_DATASETS says where; datasets/README.md)"
    )


def find_all(name: str, candidates: Mapping[str, Sequence[str | Path]]) -> list[Path]:
    """``find`` for several files or folders: their candidates by description."""
    return [find(name, what, paths) for what, paths in candidates.items()]


def register(
    name: str,
    locate: Callable[[], Sequence[Path]],
    read: Callable[..., list[VideoRecord]],
    *,
    classes: Mapping[int, str] | None,
    evaluator_type: str,
    task: str,
    label_set: str,
    exhaustive: bool,
    overlap: bool = False,
    topk: int = DEFAULT_TOPK,
) -> None:
    """Register a data set. An existing one of this name is replaced.

    Args:
        name: as in DATASETS.TRAIN and DATASETS.TEST.
        locate: finds the files and folders; also called on its own, to check that they exist.
        read: makes the records from the paths of ``locate``; called when the data set is loaded.
        classes: names by the data set's own ids; contiguous ids follow their order. None: ``read`` sets the metadata
            of :func:`class_metadata`.
        evaluator_type: "ytvis", "vos", "ytvos", "sav" or "coco".
        task: "vis" (unprompted), "vos" (prompted) or "image" (clips are made of one image).
        label_set: name of the set of classes; data sets with the same label set share a classifier.
        exhaustive: every object of the classes is labelled.
        overlap: masks may overlap.
        topk: predictions kept per video or image, unless the config sets another number.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: read(*locate()))
    metadata = MetadataCatalog.get(name)
    metadata.set(evaluator_type=evaluator_type, task=task, label_set=label_set, exhaustive=exhaustive, overlap=overlap)
    metadata.set(topk=topk)
    metadata.set(locate=locate)
    if classes is not None:
        metadata.set(**class_metadata(classes))


def chosen_label_sets(cfg: CfgNode) -> dict[str, str]:
    """The label sets of ``DATASETS.LABEL_SETS``, which replace those of the data sets; by name of the data set.

    Raises:
        UserError: if an entry is not a pair of names.
    """
    for entry in cfg.DATASETS.LABEL_SETS:
        if not isinstance(entry, list | tuple) or len(entry) != 2 or not all(isinstance(each, str) for each in entry):
            raise UserError(f"DATASETS.LABEL_SETS: {entry!r} found; [data set, label set] expected")
    return dict(cfg.DATASETS.LABEL_SETS)


def class_metadata(categories: Mapping[int, str]) -> dict[str, Any]:
    """Detectron2's metadata of the classes, given their names by the data set's own ids."""
    colours = colormap(rgb=True).astype(int).tolist()
    return {
        "thing_classes": list(categories.values()),
        "thing_colors": [colours[i % len(colours)] for i in range(len(categories))],
        "thing_dataset_id_to_contiguous_id": {dataset_id: i for i, dataset_id in enumerate(categories)},
    }


def read_list(path: str | Path) -> list[str]:
    """The non-empty lines of a list file; Windows line ends and a byte order mark are accepted."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the list cannot be read: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
