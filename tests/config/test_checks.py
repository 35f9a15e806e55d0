# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from typing import Any

import pytest

from ausm_d2.config import class_names, label_sets
from ausm_d2.errors import UserError
from tests.tiny import tiny_cfg, tiny_model


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.AUSM.LABEL_SETS", [[1]]], "MODEL.AUSM.LABEL_SETS: [[1]], expected [[name, number of classes or list"),
        (["MODEL.AUSM.LABEL_SETS", [["a", 1], ["a", 2]]], "each name once"),
        (["MODEL.AUSM.LABEL_SETS", [["birds", 0]]], "MODEL.AUSM.LABEL_SETS"),
        (["MODEL.AUSM.LABEL_SETS", [["birds", []]]], "MODEL.AUSM.LABEL_SETS"),
        (["MODEL.AUSM.LABEL_SETS", [["birds", ["owl", "owl"]]]], "MODEL.AUSM.LABEL_SETS"),
        (
            ["MODEL.AUSM.LABEL_SETS", [["birds", 2]]],
            "MODEL.AUSM.PROMPT_LABEL_SET: no label set 'object', MODEL.AUSM.LABEL_SETS has ['birds']",
        ),
        (["TEST.AUSM.LABEL_SET", "nope"], "TEST.AUSM.LABEL_SET: no label set 'nope'"),
        (["MODEL.AUSM.HIDDEN_DIM", 90], "MODEL.AUSM.HIDDEN_DIM: 90, expected a multiple of 4"),
        (["MODEL.AUSM.DECODER.HEAD_DIM", 33], "MODEL.AUSM.DECODER.HEAD_DIM: 33 does not divide"),
        (["MODEL.AUSM.NUM_ID", 0], "MODEL.AUSM.NUM_ID: 0, expected 1 or more"),
        (["MODEL.AUSM.PIXEL_DECODER.NUM_DET", 0], "MODEL.AUSM.PIXEL_DECODER.NUM_DET: 0, expected 1 or more"),
        (["MODEL.AUSM.PIXEL_DECODER.QUERIES", "best"], "QUERIES: 'best' is not one of learned, proposals"),
        (["MODEL.AUSM.TRAIN.DETECT_CELLS", -1], "MODEL.AUSM.TRAIN.DETECT_CELLS: -1, expected 0 or more"),
        (["MODEL.AUSM.PIXEL_DECODER.MEMORY_STRIDES", [4, 8]], "MEMORY_STRIDES: [4, 8], expected some of 8, 16, 32"),
        (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT: 'BGR', expected RGB"),
    ],
)
def test_contradictory_keys_are_refused(opts: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        tiny_model(*opts)


def test_a_config_without_a_base_reads_what_the_model_reads() -> None:
    cfg = tiny_cfg()
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN[0] > cfg.MODEL.PIXEL_MEAN[2]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TEST.AUSM.FG_THRESHOLD", 7.0, "7.0, expected a probability"),
        ("TEST.AUSM.FG_THRESHOLD", -0.1, "-0.1, expected a probability"),
        ("TEST.AUSM.TOPK", -1, "-1, expected 0 or more"),
        ("TEST.AUSM.FG_THRESHOLDS", [["coco_2017_val", 9]], "['coco_2017_val', 9], expected [data set, a probability"),
        ("TEST.AUSM.FG_THRESHOLDS", [["a"]], "['a'], expected [data set, a probability"),
        ("TEST.AUSM.FG_THRESHOLDS", [["a", "b"]], "['a', 'b'], expected [data set, a probability"),
        ("TEST.AUSM.REPEAT", 0, "0, expected 1 or more"),
        ("INPUT.MIN_SIZE_TEST", -5, "-5, expected 0 or more"),
    ],
)
def test_values_out_of_range_are_refused(key: str, value: float, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{key}: {message}")):
        tiny_model(key, value)


def test_label_sets_may_name_their_classes() -> None:
    cfg = tiny_cfg("MODEL.AUSM.LABEL_SETS", [["object", 1], ["birds", ["owl", "jay"]]])
    assert label_sets(cfg) == {"object": 1, "birds": 2} and class_names(cfg) == {"birds": ["owl", "jay"]}
