# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer, ShippedWeights
from ausm_d2.checkpoint.fingerprint import _WITHOUT_EFFECT, fingerprint
from ausm_d2.evaluation.evaluators import build_evaluator
from ausm_d2.streaming.predictor import VideoPredictor
from tests.tiny import tiny_cfg, tiny_model


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.DEVICE", "cuda:1"],
        ["MODEL.AUSM.TRAIN.MODE", "iterative"],
        ["MODEL.AUSM.FRAME_ENCODER.FREEZE_AT", "backbone"],
        ["MODEL.AUSM.TRAIN.HISTORY_NOISE.DROP", 0.5],
        ["MODEL.MASK_FORMER.DICE_WEIGHT", 1.0],
        ["MODEL.SWIN.DROP_PATH_RATE", 0.5],
        ["INPUT.SAMPLING_FRAME_NUM", 9],
        ["SOLVER.MAX_ITER", 3],
        ["DATALOADER.NUM_WORKERS", 1],
        ["TEST.AUSM.RESUME", True],
        ["TEST.AUSM.BASELINES", True],
        ["OUTPUT_DIR", "elsewhere"],
    ],
    ids=lambda opts: opts[0],
)
def test_settings_that_change_no_result(opts: list[Any]) -> None:
    assert fingerprint(tiny_cfg(*opts)) == fingerprint(tiny_cfg())


def test_every_key_that_is_left_out_exists() -> None:
    cfg = tiny_cfg()
    for name in _WITHOUT_EFFECT:
        *sections, key = name.split(".")
        assert key in reduce(lambda section, part: section[part], sections, cfg), name


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.AUSM.NUM_ID", 9],
        ["MODEL.SWIN.WINDOW_SIZE", 8],
        ["MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0]],
        ["INPUT.MIN_SIZE_TEST", 99],
        ["INPUT.MAX_SIZE_TEST", 99],
        ["TEST.AUSM.FG_THRESHOLD", 0.4],
        ["TEST.AUSM.AMP", True],
        ["TEST.AUSM.STATE_DTYPE", "bfloat16"],
        ["TEST.AUSM.SEED", 1],
    ],
    ids=lambda opts: opts[0],
)
def test_settings_that_change_results(opts: list[Any]) -> None:
    assert fingerprint(tiny_cfg(*opts)) != fingerprint(tiny_cfg())


def test_sessions_that_were_saved_before_a_key_existed_are_still_known() -> None:
    cfg = tiny_cfg()
    older = cfg.clone()
    del older.TEST.AUSM["STATE_DTYPE"]
    assert fingerprint(older) == fingerprint(cfg)


def test_the_contents_of_the_weights_count_not_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"old")
    (tmp_path / "b.pth").write_bytes(b"old")
    before = fingerprint(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "a.pth")))
    assert fingerprint(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "b.pth"))) == before
    os.utime(tmp_path / "a.pth", (1, 1))
    assert fingerprint(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "a.pth"))) == before
    (tmp_path / "a.pth").write_bytes(b"new")
    assert fingerprint(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "a.pth"))) != before


def test_replaced_shipped_weights_have_another_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address stays, the file behind it does not."""
    file = tmp_path / "some.pth"
    monkeypatch.setattr(ShippedWeights, "_get_local_path", lambda self, path, **kwargs: str(file))
    found = set()
    for content in (b"old", b"newer"):
        file.write_bytes(content)
        found.add(fingerprint(tiny_cfg("MODEL.WEIGHTS", "ausm://some.pth")))
    assert len(found) == 2


def test_random_weights_are_told_apart_by_the_model() -> None:
    cfg, model = tiny_cfg(), tiny_model()
    same, other = tiny_model(), tiny_model()
    other.x_start.data += 1
    assert fingerprint(cfg, model) == fingerprint(cfg, same) != fingerprint(cfg, other)


def test_a_saved_session_and_an_evaluation_have_the_same_one(tmp_path: Path) -> None:
    AUSMCheckpointer(tiny_model(), str(tmp_path)).save("model")
    cfg = tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "model.pth"), "OUTPUT_DIR", str(tmp_path))
    [evaluator, *_] = build_evaluator("synthvis_val", cfg, records=[])._evaluators
    assert VideoPredictor(cfg).fingerprint == evaluator._run_id == fingerprint(cfg)
