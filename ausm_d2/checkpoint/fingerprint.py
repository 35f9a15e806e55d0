# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Identifies what computed a result: the weights, and every setting that may change what the model says of a video."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from ausm_d2.checkpoint import checkpointer as checkpointer  # registers the addresses of the shipped weights

# Keys, or sections, of MODEL and TEST.AUSM that change no result: where and how fast it is computed, how the model is
# trained, what is scored beside it. A key that is not listed counts.
_WITHOUT_EFFECT = {
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",  # the address; the weights themselves count
    "MODEL.AUSM.KERNELS",
    "MODEL.AUSM.TRAIN",
    "MODEL.AUSM.FRAME_ENCODER.FREEZE",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.MASK_FORMER",
    "MODEL.SWIN.DROP_PATH_RATE",
    "MODEL.TIMM.FREEZE_NORM",
    "TEST.AUSM.BASELINES",
    "TEST.AUSM.CUDA_GRAPH",
    "TEST.AUSM.RESUME",
    "TEST.AUSM.TRACKING",
}


def fingerprint(cfg: CfgNode, model: nn.Module | None = None) -> str:
    """A SHA-256 of the weights and of the settings that may change a result.

    It is the same on every device, and for the same weights under another path.

    Args:
        cfg: a complete config. The contents of the file ``MODEL.WEIGHTS`` count.
        model: what counts instead where ``MODEL.WEIGHTS`` is empty: weights drawn at random are in no file.
    """
    settings = {
        "MODEL": _with_effect(cfg.MODEL, "MODEL"),
        "TEST": _with_effect(cfg.TEST.AUSM, "TEST.AUSM"),
        "INPUT": {key: value for key, value in cfg.INPUT.items() if key == "FORMAT" or key.endswith("_TEST")},
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    if cfg.MODEL.WEIGHTS:
        path = Path(PathManager.get_local_path(cfg.MODEL.WEIGHTS))
        if path.is_file():  # whoever loads it says that it is missing
            stat = path.stat()
            digest.update(_of_file(path, stat.st_size, stat.st_mtime_ns))
    elif model is not None:
        for name, value in model.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _with_effect(section: CfgNode, name: str) -> dict[str, Any]:
    """A section of the config without the keys that change no result."""
    kept = {key: value for key, value in section.items() if f"{name}.{key}" not in _WITHOUT_EFFECT}
    return {k: _with_effect(v, f"{name}.{k}") if isinstance(v, CfgNode) else v for k, v in kept.items()}


@cache
def _of_file(path: Path, size: int, modified: int) -> bytes:
    """SHA-256 of a file's contents; size and time of change make a file that is replaced count anew."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
