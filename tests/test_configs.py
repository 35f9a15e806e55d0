# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""All shipped configs load and fit their data sets."""

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
