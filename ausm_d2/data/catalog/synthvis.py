# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Registers the embedded procedural data. Videos are rendered when ``DatasetCatalog.get`` is called, or later.

``synthvis_train``, ``synthvis_val`` and ``synthvis_val_vos`` (the same videos, prompted). ``synthvis_seed<k>_val`` and
``synthvis_seed<k>_val_vos``, for k in ``EXTRA_SEEDS``, show how much a score depends on the seed of the data.
"""

from __future__ import annotations

from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog

from ausm_d2.data.synthvis import CLASS_COLORS, CLASSES, SPLITS, SynthVis
from ausm_d2.data.video import VideoRecord

EXTRA_SEEDS = (11, 12, 13)


def _records(seed: int, num_videos: int, complete: bool) -> list[VideoRecord]:
    return list(SynthVis(seed, num_videos, complete=complete))


def _register(name: str, seed: int, num_videos: int, *, complete: bool, task: str) -> None:
    if name in DatasetCatalog.list():
        return
    DatasetCatalog.register(name, partial(_records, seed, num_videos, complete))
    MetadataCatalog.get(name).set(
        thing_classes=list(CLASSES),
        thing_colors=[list(color) for color in CLASS_COLORS],
        evaluator_type="vos" if task == "vos" else "ytvis",
        task=task,
        exhaustive=True,
        label_set="synthvis",
        overlap=False,
        seed=seed,
    )


def register_synthvis() -> None:
    """Register all names of the module docstring; names that are already registered are kept."""
    _register("synthvis_train", *SPLITS["train"], complete=False, task="vis")
    val_seed, num_videos = SPLITS["val"]
    for prefix, seed in [("synthvis", val_seed), *((f"synthvis_seed{seed}", seed) for seed in EXTRA_SEEDS)]:
        _register(f"{prefix}_val", seed, num_videos, complete=True, task="vis")
        _register(f"{prefix}_val_vos", seed, num_videos, complete=True, task="vos")


register_synthvis()
