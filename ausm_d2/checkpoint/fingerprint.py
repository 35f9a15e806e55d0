# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A hash of everything that determines a result: the weights and all settings that may change it."""

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

# Keys and sections of MODEL and TEST.AUSM that do not change results: device, speed, training, additional scores. All
# other keys are hashed.
_WITHOUT_EFFECT = {
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",  # the path; the weights themselves are hashed
    "MODEL.AUSM.KERNELS",
    "MODEL.AUSM.TRAIN",
    "MODEL.AUSM.FRAME_ENCODER.FREEZE_AT",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.MASK_FORMER",
    "MODEL.SWIN.DROP_PATH_RATE",
    "TEST.AUSM.BASELINES",
    "TEST.AUSM.CUDA_GRAPH",
    "TEST.AUSM.J_BY_AREA",
    "TEST.AUSM.RESUME",
    "TEST.AUSM.TRACKING",
}

# Keys that are younger than some saved sessions and results: left out at the value that changes nothing.
_WITHOUT_EFFECT_AT = {"TEST.AUSM.STATE_DTYPE": "float32"}


def fingerprint(cfg: CfgNode, model: nn.Module | None = None) -> str:
    """SHA-256 of the weights and of the settings that may change a result. Independent of device and path.

    Args:
        cfg: a complete config; the contents of the file ``MODEL.WEIGHTS`` are hashed.
        model: hashed if ``MODEL.WEIGHTS`` is empty (random weights).
    """
    settings = {
        "MODEL": _with_effect(cfg.MODEL, "MODEL"),
        "TEST": _with_effect(cfg.TEST.AUSM, "TEST.AUSM"),
        "INPUT": {key: value for key, value in cfg.INPUT.items() if key == "FORMAT" or key.endswith("_TEST")},
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    if cfg.MODEL.WEIGHTS:
        path = Path(PathManager.get_local_path(cfg.MODEL.WEIGHTS))
        if path.is_file():  # a missing file is reported when it is loaded
            stat = path.stat()
            digest.update(_of_file(path, stat.st_size, stat.st_mtime_ns))
    elif model is not None:
        for name, value in model.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _with_effect(section: CfgNode, name: str) -> dict[str, Any]:
    """A section of the config without the keys that do not change results."""
    kept = {
        key: value
        for key, value in section.items()
        if f"{name}.{key}" not in _WITHOUT_EFFECT and _WITHOUT_EFFECT_AT.get(f"{name}.{key}") != value
    }
    return {k: _with_effect(v, f"{name}.{k}") if isinstance(v, CfgNode) else v for k, v in kept.items()}


@cache
def _of_file(path: Path, size: int, modified: int) -> bytes:
    """SHA-256 of a file, cached; ``size`` and ``modified`` are part of the cache key."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
