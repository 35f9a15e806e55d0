# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""configs/mini: the three stages, one after the other, each from the weights of the one before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog

from ausm_d2.config import load_config
from ausm_d2.data.synthvis import SPLITS, SynthVis
from ausm_d2.engine import Trainer

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "mini"


def test_three_stages(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Listing all 20,000 takes seconds.
    monkeypatch.setitem(DatasetCatalog.data, "synthvis_train", lambda: list(SynthVis(SPLITS["train"][0], 40)))
    (tmp_path / "coco").symlink_to(shared_data / "coco_mini")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    weights, before = "", {}
    for name in ("stage1_coco", "stage2_mixed", "stage3_long"):
        out = tmp_path / name
        opts = ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(out), "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"]
        cfg = load_config(str(CONFIGS / f"{name}.yaml"), [*opts, "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"])
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        state = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        for key, value in before.items():
            assert torch.equal(state[key], value), f"{name}: {key} is not that of the stage before"
        trainer.train()
        before = trainer.model.state_dict()
        changed = {key for key, value in before.items() if not torch.equal(value, state[key])}
        assert any(key.startswith("compressor.") for key in changed)
        assert any(key.startswith("frame_encoder.backbone.") for key in changed) == (name != "stage3_long")
        weights = str(out / "model_final.pth")
