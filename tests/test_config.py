# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ausm_d2.config import load_config
from ausm_d2.errors import UserError
from tests.tiny import tiny_cfg, tiny_model


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.AUSM.HEADS", [[1]]], "MODEL.AUSM.HEADS: [[1]], expected [[name, number of classes], ...]"),
        (["MODEL.AUSM.HEADS", [["a", 1], ["a", 2]]], "each name once"),
        (["MODEL.AUSM.HEADS", [["birds", 0]]], "MODEL.AUSM.HEADS"),
        (
            ["MODEL.AUSM.HEADS", [["birds", 2]]],
            "MODEL.AUSM.PROMPT_HEAD: no head 'object', MODEL.AUSM.HEADS has ['birds']",
        ),
        (["TEST.AUSM.HEAD", "nope"], "TEST.AUSM.HEAD: no head 'nope'"),
        (["MODEL.AUSM.HIDDEN_DIM", 90], "MODEL.AUSM.HIDDEN_DIM: 90, expected a multiple of 4"),
        (["MODEL.AUSM.DECODER.HEAD_DIM", 33], "MODEL.AUSM.DECODER.HEAD_DIM: 33 does not divide"),
        (["MODEL.AUSM.NUM_ID", 0], "MODEL.AUSM.NUM_ID: 0, expected 1 or more"),
        (["MODEL.AUSM.PIXEL_DECODER.MEMORY_STRIDES", [4, 8]], "MEMORY_STRIDES: [4, 8], expected some of 8, 16, 32"),
        (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT: 'BGR', expected RGB"),
    ],
)
def test_keys_that_contradict_each_other(opts: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        tiny_model(*opts)


def test_a_config_without_a_base_reads_what_the_model_reads() -> None:
    cfg = tiny_cfg()
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN[0] > cfg.MODEL.PIXEL_MEAN[2]


def test_mixed_precision_is_left_to_gpus(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("MODEL: {DEVICE: cpu}\nSOLVER: {AMP: {ENABLED: True}}\n")
    assert not load_config(str(config)).SOLVER.AMP.ENABLED


def test_a_gpu_that_is_asked_for_and_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = tmp_path / "c.yaml"
    config.write_text("VERSION: 2\n")
    assert load_config(str(config)).MODEL.DEVICE == "cpu"  # Detectron2's default is cuda
    with pytest.raises(UserError, match=r"MODEL\.DEVICE: 'cuda', but PyTorch finds no GPU"):
        load_config(str(config), ["MODEL.DEVICE", "cuda"])


@pytest.mark.parametrize("device", ["gpu", "", "mps", "meta", "cuda:", "cuda:x", "cpu0"])
def test_devices_that_are_none(device: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("VERSION: 2\n")
    with pytest.raises(UserError, match=rf"^MODEL\.DEVICE: '{device}', expected cpu, cuda or"):
        load_config(str(config), ["MODEL.DEVICE", device])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TEST.AUSM.FG_THRESHOLD", 7.0, "7.0, expected a probability"),
        ("TEST.AUSM.FG_THRESHOLD", -0.1, "-0.1, expected a probability"),
        ("TEST.AUSM.TOPK", 0, "0, expected 1 or more"),
        ("TEST.AUSM.REPEAT", 0, "0, expected 1 or more"),
        ("INPUT.MIN_SIZE_TEST", -5, "-5, expected 0 or more"),
    ],
)
def test_values_out_of_range(key: str, value: float, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{key}: {message}")):
        tiny_model(key, value)


def test_a_file_that_is_no_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("VERSION: 2\nMODEL: [\n")
    with pytest.raises(UserError, match=r"line [23]"):
        load_config(str(config))
