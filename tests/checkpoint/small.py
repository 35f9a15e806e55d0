# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Small models, and their weights under Mask2Former's names."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from torch import Tensor

from ausm_d2.checkpoint.convert import Conversion, Status
from ausm_d2.config import add_ausm_config
from ausm_d2.meta_arch import AUSM


def small_config(*opts: Any) -> CfgNode:
    cfg = get_cfg()
    add_ausm_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_swin_backbone"
    small: dict[str, Any] = {
        "SWIN.EMBED_DIM": 16,
        "SWIN.DEPTHS": [2, 2, 1, 2],
        "SWIN.NUM_HEADS": [1, 2, 4, 8],
        "SWIN.WINDOW_SIZE": 4,
        "SWIN.DROP_PATH_RATE": 0.0,
        "AUSM.HIDDEN_DIM": 32,
        "AUSM.NUM_ID": 6,
        "AUSM.LABEL_SETS": [["coco", 80], ["object", 1]],
        "AUSM.FRAME_ENCODER.ENC_LAYERS": 2,
        "AUSM.FRAME_ENCODER.NUM_HEADS": 4,
        "AUSM.FRAME_ENCODER.DIM_FEEDFORWARD": 48,
        "AUSM.COMPRESSOR.LAYERS": 1,
        "AUSM.COMPRESSOR.HEAD_DIM": 16,
        "AUSM.COMPRESSOR.DIM_FEEDFORWARD": 48,
        "AUSM.DECODER.LAYERS": 1,
        "AUSM.DECODER.HEAD_DIM": 16,
        "AUSM.DECODER.DIM_FEEDFORWARD": 48,
        "AUSM.PIXEL_DECODER.LAYERS": 4,
        "AUSM.PIXEL_DECODER.HEAD_DIM": 8,
        "AUSM.PIXEL_DECODER.DIM_FEEDFORWARD": 64,
        "AUSM.PIXEL_DECODER.NUM_DET": 10,
    }
    cfg.merge_from_list([x for key, value in small.items() for x in (f"MODEL.{key}", value)] + list(opts))
    return cfg


def small_model(*opts: Any) -> AUSM:
    return AUSM(small_config(*opts))


def counts(conversion: Conversion) -> dict[str, int]:
    return {str(status): len(conversion.of(status)) for status in Status if conversion.of(status)}


def as_mask2former(model: AUSM) -> dict[str, Tensor]:
    """The model's own weights under Mask2Former's names."""
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("frame_encoder.backbone."):
            state[name.removeprefix("frame_encoder.")] = value
        elif name.startswith("frame_encoder.pixel_decoder."):
            state[f"sem_seg_head.{name.removeprefix('frame_encoder.')}"] = value
        elif name.startswith("pixel_decoder.class_embed.coco."):
            state[name.replace("pixel_decoder.class_embed.coco.", "sem_seg_head.predictor.class_embed.")] = value
        elif name.startswith("pixel_decoder.") and "class_embed" not in name and "track_embed" not in name:
            state[name.replace("pixel_decoder.", "sem_seg_head.predictor.", 1)] = value
    return state | {"criterion.empty_weight": torch.ones(81)}


def layout_older(state: dict[str, Tensor]) -> dict[str, Tensor]:
    older = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): value for name, value in state.items()}
    return {name.replace("query_feat", "static_query"): value for name, value in older.items()}


def layout_doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    doubled = "sem_seg_head.pixel_decoder.pixel_decoder."
    return {name.replace("sem_seg_head.pixel_decoder.", doubled): value for name, value in state.items()}


def write_pickle(path: Path, state: dict[str, Any], **more: Any) -> str:
    path.write_bytes(pickle.dumps({"model": state, "__author__": "somebody", **more}, protocol=2))
    return str(path)
