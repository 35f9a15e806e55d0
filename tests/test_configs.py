# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Every config that is shipped loads, fits its data sets, and the paper's have the paper's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from ausm_d2.config import load_config
from ausm_d2.engine import check_datasets

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
COMPLETE = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base"))


@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_loads_and_fits_its_data_sets(path: Path) -> None:
    cfg = load_config(str(path))
    check_datasets(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    assert len(cfg.DATASETS.DATASET_RATIO) in (0, len(cfg.DATASETS.TRAIN))
    assert len(cfg.INPUT.SAMPLING_FRAME_RANGES) in (0, len(cfg.DATASETS.TRAIN))


@pytest.mark.parametrize("backbone", ["t", "b"])
@pytest.mark.parametrize(
    ("stage", "frames", "iterations", "datasets"),
    [("1_coco", 3, 147500, 1), ("2_mixed", 5, 32000, 6), ("3_long", 16, 40000, 7)],
)
def test_numbers_of_the_papers_recipe(backbone: str, stage: str, frames: int, iterations: int, datasets: int) -> None:
    cfg = load_config(str(CONFIGS / "paper" / f"stage{stage}_swin_{backbone}.yaml"))
    assert (cfg.INPUT.SAMPLING_FRAME_NUM, cfg.SOLVER.MAX_ITER, len(cfg.DATASETS.TRAIN)) == (
        frames,
        iterations,
        datasets,
    )
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.OPTIMIZER) == (16, 1e-4, "ADAMW")
    assert (cfg.MODEL.AUSM.NUM_ID, cfg.MODEL.AUSM.PIXEL_DECODER.NUM_DET, cfg.MODEL.AUSM.HIDDEN_DIM) == (100, 100, 256)
    assert (cfg.MODEL.AUSM.COMPRESSOR.LAYERS, cfg.MODEL.AUSM.DECODER.LAYERS, cfg.MODEL.AUSM.PIXEL_DECODER.LAYERS) == (
        6,
        6,
        9,
    )
    assert {"3_long": "backbone"}.get(stage, "none") == cfg.MODEL.AUSM.FRAME_ENCODER.FREEZE_AT
    assert {"t": 96, "b": 128}[backbone] == cfg.MODEL.SWIN.EMBED_DIM
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (1024, 2048)
    if stage != "1_coco":  # the stages are chained
        before = {"2_mixed": "stage1", "3_long": "stage2"}[stage]
        assert f"output/paper/{before}_swin_{backbone}/model_final.pth" == cfg.MODEL.WEIGHTS
