# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A model and clips so small that a test can run them many times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

import ausm_d2.meta_arch  # noqa: F401  registers AUSM
from ausm_d2.config import add_ausm_config
from ausm_d2.meta_arch import AUSM

HEIGHT, WIDTH = 64, 96


def tiny_sizes() -> list[Any]:
    """Keys and values of a model of about 0.2 M parameters."""
    settings: list[Any] = ["MODEL.SWIN.EMBED_DIM", 8, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1]]
    settings += ["MODEL.SWIN.NUM_HEADS", [1, 1, 2, 2], "MODEL.SWIN.WINDOW_SIZE", 4, "MODEL.SWIN.DROP_PATH_RATE", 0.0]
    for key, value in {
        "HIDDEN_DIM": 32,
        "NUM_ID": 8,
        "FRAME_ENCODER.ENC_LAYERS": 0,
        "COMPRESSOR.LAYERS": 2,
        "COMPRESSOR.HEAD_DIM": 16,
        "COMPRESSOR.DIM_FEEDFORWARD": 32,
        "COMPRESSOR.D_STATE": 4,
        "DECODER.LAYERS": 1,
        "DECODER.HEAD_DIM": 16,
        "DECODER.DIM_FEEDFORWARD": 32,
        "PIXEL_DECODER.LAYERS": 3,
        "PIXEL_DECODER.HEAD_DIM": 16,
        "PIXEL_DECODER.DIM_FEEDFORWARD": 32,
        "PIXEL_DECODER.NUM_DET": 6,
    }.items():
        settings += [f"MODEL.AUSM.{key}", value]
    return [*settings, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 64]


ONE_LAYER = ["MODEL.AUSM.COMPRESSOR.LAYERS", 1, "MODEL.AUSM.PIXEL_DECODER.LAYERS", 1]
"""Options for tests of what is around the model."""


def _keys(*opts: Any) -> list[Any]:
    """Keys and values of :func:`tiny_cfg`."""
    settings: list[Any] = ["MODEL.META_ARCHITECTURE", "AUSM", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    settings += ["MODEL.BACKBONE.NAME", "build_swin_backbone", "MODEL.BACKBONE.FREEZE_AT", 0, "INPUT.FORMAT", "RGB"]
    settings += ["MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53], "MODEL.PIXEL_STD", [58.4, 57.1, 57.4]]
    settings += ["MODEL.AUSM.LABEL_SETS", [["synthvis", 6], ["object", 1]], "INPUT.MIN_SIZE_TEST", 0]
    settings += ["MODEL.AUSM.TRAIN.HISTORY_NOISE.ENABLED", False]
    return [*settings, *tiny_sizes(), *opts]


def tiny_cfg(*opts: Any) -> CfgNode:
    """A config of :func:`tiny_sizes` with two label sets."""
    cfg = get_cfg()
    add_ausm_config(cfg)
    cfg.merge_from_list(_keys(*opts))
    return cfg


def tiny_yaml(*opts: Any) -> str:
    """A config file of :func:`tiny_cfg` with only its own keys: all others take most of the time to write and read."""
    keys, tree = _keys(*opts), dict[str, Any]()
    for key, value in zip(keys[::2], keys[1::2], strict=True):
        *sections, name = key.split(".")
        section = tree
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = value
    return yaml.safe_dump(tree)


def tiny_model(*opts: Any) -> AUSM:
    """Seeded, in training mode."""
    torch.manual_seed(0)
    return build_model(tiny_cfg(*opts))


def clip(frames: int, instances: int, *, label_set: str = "synthvis", seed: int = 0, **entries: Any) -> dict[str, Any]:
    """A training item: boxes that drift, appear late and are hidden at times, over noise."""
    rng = torch.Generator().manual_seed(seed)
    masks = torch.zeros(instances, frames, HEIGHT, WIDTH, dtype=torch.bool)
    for i in range(instances):
        y, x = (int(torch.randint(0, side - 24, (), generator=rng)) for side in (HEIGHT, WIDTH))
        for t in range(frames):
            if (t + i) % 4 != 3 or frames == 1:
                masks[i, t, y : y + 20, min(x + 2 * t, WIDTH - 20) : x + 2 * t + 20] = True
    return {
        "image": torch.randint(0, 256, (frames, 3, HEIGHT, WIDTH), generator=rng, dtype=torch.uint8),
        "masks": masks,
        "classes": torch.randint(0, 6 if label_set == "synthvis" else 1, (instances,), generator=rng),
        "labelled": torch.ones(frames, dtype=torch.bool),
        "label_set": label_set,
        "exhaustive": label_set == "synthvis",
        "task": "vis" if label_set == "synthvis" else "vos",
        "prompted": label_set != "synthvis",
        "dataset_name": "test",
        "video_id": 0,
        "frame_indices": list(range(frames)),
        "height": HEIGHT,
        "width": WIDTH,
        **entries,
    }


def write_tiny_config(folder: Path, *opts: Any) -> Path:
    """A config file of the tiny model, and its weights beside it."""
    torch.save({"model": tiny_model(*opts).state_dict()}, folder / "tiny.pth")
    keys = ["MODEL.WEIGHTS", str(folder / "tiny.pth"), "DATASETS.TEST", ["synthvis_val"], *opts]
    (folder / "tiny.yaml").write_text(tiny_yaml(*keys))
    return folder / "tiny.yaml"
