# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The data side of the paper's three stages (Sec. 6)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from ausm_d2.config import add_ausm_config
from ausm_d2.data.augmentation.build import RandomApply
from ausm_d2.data.augmentation.geometry import (
    LargeScaleJitter,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    ResizeShortestEdge,
)
from ausm_d2.data.build import registered_names
from ausm_d2.data.mapper import ClipMapper
from tests.data.stubs import moving_square, register

STAGE_2 = ["coco_2017_train", "mose_train", "sav_train", "ytvis_2019_train", "ytvis_2021_train", "ovis_train"]
COCO_AGAIN = ["coco2ytvis2019_train", "coco2ytvis2021_train", "coco2ovis_train", "coco2object_train"]
STAGES = {
    "stage1_coco": (3, 147500, STAGE_2[:1]),
    "stage2_mixed": (5, 32000, [*STAGE_2, *COCO_AGAIN]),
    "stage3_long": (16, 40000, [*STAGE_2, "davis_2017_train", *COCO_AGAIN]),
}


@pytest.mark.parametrize("backbone", ["swin_t", "swin_b"])
@pytest.mark.parametrize("stage", STAGES)
def test_stage(stage: str, backbone: str) -> None:
    cfg = get_cfg()
    add_ausm_config(cfg)
    cfg.merge_from_file(str(Path(__file__).resolve().parents[2] / f"configs/paper/{stage}_{backbone}.yaml"))
    frames, iterations, names = STAGES[stage]
    assert (frames, iterations) == (cfg.INPUT.SAMPLING_FRAME_NUM, cfg.SOLVER.MAX_ITER)
    assert sorted(cfg.DATASETS.TRAIN) == sorted(names) and set(names) <= set(registered_names())
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 1e-4)
    label_sets = dict(cfg.MODEL.AUSM.LABEL_SETS)
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        metadata = MetadataCatalog.get(name)
        assert label_sets[metadata.label_set] == len(metadata.thing_classes)

    mapper = ClipMapper(cfg)
    kinds = [type(augmentation) for augmentation in mapper.augmentations]
    assert kinds == [RandomApply, ResizeShortestEdge, RandomFlip]
    kinds = [type(augmentation) for augmentation in mapper.pseudo_augmentations]
    if stage == "stage1_coco":
        assert kinds == [RandomFlip, RandomRotation, LargeScaleJitter]
    else:
        assert kinds == [RandomApply, ResizeShortestEdge, RandomRotation, RandomFlip]

    for crop in (mapper.augmentations[0], mapper.pseudo_augmentations[0]):
        if isinstance(crop, RandomApply):  # it slides
            window = crop.augmentations[1]
            assert isinstance(window, RandomCrop) and window.drift == 1.0

    register("stub", [moving_square(0, length=1, size=(90, 120))], task="image")
    mapper.samplers = {"stub": mapper.samplers["coco_2017_train"]}
    item = mapper("stub", moving_square(0, length=1, size=(90, 120)), np.random.default_rng(0))
    assert item["image"].shape[0] == frames
    if stage == "stage1_coco":
        assert item["image"].shape[2:] == (1024, 1024)
    else:
        assert min(item["image"].shape[2:]) in cfg.INPUT.PSEUDO.MIN_SIZE_TRAIN or max(item["image"].shape[2:]) == 768
