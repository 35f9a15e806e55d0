# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The measured model. Not in measure.py, because processes that measure the memory of kernels import no model."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import build_model

from ausm_d2.config import load_config
from ausm_d2.errors import UserError
from ausm_d2.meta_arch import AUSM


def random_model(config_file: str, device: torch.device, opts: tuple[Any, ...] = ()) -> AUSM:
    """The model of a config, with random, seeded weights, in training mode.

    Raises:
        UserError: if the config is missing or invalid.
    """
    torch.manual_seed(0)
    cfg = load_config(config_file, [*opts, "MODEL.WEIGHTS", "", "MODEL.DEVICE", str(device)])
    if cfg.MODEL.META_ARCHITECTURE != "AUSM":
        raise UserError(f"{config_file}: MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, expected AUSM")
    return build_model(cfg)
