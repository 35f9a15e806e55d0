# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Consistency checks of the configuration keys."""

from __future__ import annotations

import math

from detectron2.config import CfgNode

from ausm_d2.config.label_sets import label_sets
from ausm_d2.errors import UserError
from ausm_d2.kernels import choice


def check_model_config(cfg: CfgNode) -> None:
    """Check the keys of the model.

    Raises:
        UserError: if a value is invalid or does not fit another key.
    """
    ausm = cfg.MODEL.AUSM
    names = list(label_sets(cfg))
    chosen = {
        "MODEL.AUSM.PROMPT_LABEL_SET": ausm.PROMPT_LABEL_SET,
        "TEST.AUSM.LABEL_SET": cfg.TEST.AUSM.LABEL_SET or names[0],
    }
    for key, name in chosen.items():
        if name not in names:
            raise UserError(f"{key}: no label set '{name}', MODEL.AUSM.LABEL_SETS has {names}")
    if ausm.HIDDEN_DIM < 4 or ausm.HIDDEN_DIM % 4:
        raise UserError(f"MODEL.AUSM.HIDDEN_DIM: {ausm.HIDDEN_DIM}, expected a multiple of 4")
    for part in ("COMPRESSOR", "DECODER", "PIXEL_DECODER"):
        width = ausm[part].HEAD_DIM
        if width < 1 or ausm.HIDDEN_DIM % width:
            raise UserError(
                f"MODEL.AUSM.{part}.HEAD_DIM: {width} does not divide the {ausm.HIDDEN_DIM} channels of "
                "MODEL.AUSM.HIDDEN_DIM"
            )
    choices = {
        "PROMPT_INDEX": (ausm.PROMPT_INDEX, ("frame", "zero")),
        "TRAIN.HIDDEN_ROWS": (ausm.TRAIN.HIDDEN_ROWS, ("keep", "leave")),
        "START": (ausm.START, ("lookup", "residual")),
        "PIXEL_DECODER.QUERIES": (ausm.PIXEL_DECODER.QUERIES, ("learned", "proposals")),
        "KERNELS": (ausm.KERNELS, choice.NAMES),
        "TRAIN.MODE": (ausm.TRAIN.MODE, ("parallel", "iterative", "rollout")),
    }
    for key, (value, known) in choices.items():
        if value not in known:
            raise UserError(f"MODEL.AUSM.{key}: '{value}' is not one of {', '.join(known)}")
    if ausm.TRAIN.OWN_PASSES < 0 or (ausm.TRAIN.OWN_PASSES and ausm.TRAIN.MODE != "parallel"):
        raise UserError(
            f"MODEL.AUSM.TRAIN.OWN_PASSES: {ausm.TRAIN.OWN_PASSES}, expected 0 or, in the mode parallel, more"
        )
    if ausm.TRAIN.DETECT_CELLS < 0:
        raise UserError(f"MODEL.AUSM.TRAIN.DETECT_CELLS: {ausm.TRAIN.DETECT_CELLS}, expected 0 or more")
    if ausm.SPATIAL_REDUCTION < 1:
        raise UserError(f"MODEL.AUSM.SPATIAL_REDUCTION: {ausm.SPATIAL_REDUCTION}, expected 1 or more")
    if ausm.NUM_ID < 1:
        raise UserError(f"MODEL.AUSM.NUM_ID: {ausm.NUM_ID}, expected 1 or more")
    if ausm.PIXEL_DECODER.NUM_DET < 1:
        raise UserError(f"MODEL.AUSM.PIXEL_DECODER.NUM_DET: {ausm.PIXEL_DECODER.NUM_DET}, expected 1 or more")
    strides = list(ausm.PIXEL_DECODER.MEMORY_STRIDES)
    if not strides or not set(strides) <= {8, 16, 32}:
        raise UserError(f"MODEL.AUSM.PIXEL_DECODER.MEMORY_STRIDES: {strides}, expected some of 8, 16, 32")
    check_pixels(cfg)
    if cfg.INPUT.FORMAT != "RGB":
        raise UserError(f"INPUT.FORMAT: '{cfg.INPUT.FORMAT}', expected RGB")


def check_pixels(cfg: CfgNode) -> None:
    """Check by what pixels are divided, and what is subtracted from them.

    Raises:
        UserError: if they are not three finite numbers, or the divisors are not above 0.
    """
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        values = list(cfg.MODEL[key])
        if len(values) != 3 or not all(map(math.isfinite, values)) or (key == "PIXEL_STD" and min(values) <= 0):
            above = " above 0" if key == "PIXEL_STD" else ""
            raise UserError(f"MODEL.{key}: {values}, expected three finite numbers{above}: red, green, blue")
