# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The initial files of a fine-tuning run: weights with a classifier for the new classes, and the config."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import Tensor
from yacs.config import CfgNode as Values

from ausm_d2.checkpoint.convert import convert
from ausm_d2.checkpoint.reading import read_checkpoint, weights_to_use
from ausm_d2.config import PRETRAINED, class_names, load_config
from ausm_d2.errors import UserError
from ausm_d2.finetune.labels import CLIPS, HELD, LABEL_SET, TRAIN, Labels
from ausm_d2.io import atomic_write
from ausm_d2.meta_arch import AUSM

logger = logging.getLogger(__name__)

START, MODEL, RECIPE, CONFIG = "start.pth", "model.pth", "train.yaml", "config.yaml"
_CLASSIFIERS = "pixel_decoder.class_embed."  # one per label set
_FRAMES = [1, 3]  # of the clips of TRAIN and CLIPS


def base_config(name: str) -> CfgNode:
    """The config of the base model: a shipped model's name, a packaged config, or a file.

    Raises:
        UserError: the config does not exist, or names no weights.
    """
    cfg = load_config(PRETRAINED.get(name, name))
    if not cfg.MODEL.WEIGHTS:
        raise UserError(f"--from: '{name}' has no MODEL.WEIGHTS to begin with")
    return cfg


def recipe(base: str, labels: Labels, folder: Path, opts: Sequence[str], seed: int) -> dict[str, Any]:
    """The keys of ``train.yaml``.

    Args:
        base: as for :func:`base_config`.
        folder: where the results go.
        opts: the user's overrides, alternating keys and values.

    Raises:
        UserError: ``opts`` are not pairs.
    """
    start = base_config(base)
    kept = [list(entry) for entry in start.MODEL.AUSM.LABEL_SETS if entry[0] != LABEL_SET]
    keys: dict[str, Any] = {
        "_BASE_": PRETRAINED.get(base) or (str(Path(base).expanduser().resolve()) if Path(base).is_file() else base),
        "MODEL": {
            "WEIGHTS": f"./{START}",
            "AUSM": {
                "LABEL_SETS": [*kept, [LABEL_SET, labels.classes]],
                "TRAIN": {"PROMPT_PROB": 0.0, "OWN_PASSES": 1, "DETECT_CELLS": 6},
            },
            "MASK_FORMER": {"NO_OBJECT_WEIGHT": 0.2},
        },
        "MODEL_EMA": {"ENABLED": True, "DECAY": 0.99},
        "INPUT": {
            "SAMPLING_FRAME_NUMS": _FRAMES,
            "MAX_INSTANCES": 20,
            "DRAWN_PROMPTS": 0.0,
            "LOOKS": {"PROB": 0.15},
            "SHRINK": {"PROB": 0.1},
            "PSEUDO": {
                "AUGMENTATIONS": ["rotation", "crop_scale", "brightness", "contrast", "saturation"],
                "CROP": {"SIZE": [0.6, 0.6]},
                "COPY_PASTE": 0.3,
            },
        },
        "DATASETS": _data_sets(labels),
        "SOLVER": {
            "IMS_PER_BATCH": 8,
            "BASE_LR": 0.0007,
            "CLIP_GRADIENTS": {"CLIP_VALUE": 20.0},
            "MULTIPLIERS": _multipliers(start),
            "LR_SCHEDULER_NAME": "WarmupCosineLR",
            "WARMUP_ITERS": 10,
            "MAX_ITER": 0,
            "CHECKPOINT_PERIOD": 50,
        },
        "TEST": {"EVAL_PERIOD": 0, "AUSM": {"LABEL_SET": LABEL_SET, "BASELINES": False}},
        "OUTPUT_DIR": str(folder.resolve() / "training"),
        "SEED": seed,
    }
    if labels.held is not None:  # AP on images needs low-confidence detections
        keys["TEST"]["AUSM"]["FG_THRESHOLDS"] = [[HELD, 0.02]]
    _merge(keys, opts)
    return keys


def _merge(keys: dict[str, Any], opts: Sequence[str]) -> None:
    """Set the user's overrides, alternating keys and values, in place."""
    if len(opts) % 2:
        raise UserError(f"--opts: {list(opts)}, expected KEY VALUE pairs")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        *sections, name = key.split(".")
        section = keys
        for each in sections:
            section = section.setdefault(each, {})
            if not isinstance(section, dict):
                raise UserError(f"--opts: {key}: no such config key")
        section[name] = Values._decode_cfg_value(value)


def _multipliers(start: CfgNode) -> list[list[Any]]:
    """``SOLVER.MULTIPLIERS``: all modules before the Pixel Decoder are frozen."""
    rules = [[f"{_CLASSIFIERS}{LABEL_SET}.", 2.0]]
    if start.MODEL.AUSM.PIXEL_DECODER.QUERIES == "proposals":
        rules += [["frame_encoder.proposal_pyramid.", 1.0], ["pixel_decoder.proposals.", 1.0]]
    return [*rules, [_CLASSIFIERS, 0.0], ["pixel_decoder.", 0.5], ["", 0.0]]


def _data_sets(labels: Labels) -> dict[str, Any]:
    """The keys of ``DATASETS``."""
    parts = [(TRAIN, labels.train, "train"), (CLIPS, labels.train, "train")]
    if labels.held is not None:
        parts.append((HELD, labels.held, "val"))
    styles: dict[str, Any] = {}
    for name, part, file in parts:
        exhaustive = [True] if part.style == "COCO_STYLE" else []
        entry = [name, f"./labels/{file}.json", str(part.root), LABEL_SET, *exhaustive]
        styles.setdefault(part.style, []).append(entry)
    held = [HELD] if labels.held is not None else []
    return {**styles, "TRAIN": [TRAIN, CLIPS], "DATASET_RATIO": [6.0, 1.0], "TEST": held}


def write_config(path: Path, keys: Mapping[str, Any], *lines: str) -> None:
    """Write a config file, headed by a comment of these lines."""
    text = yaml.safe_dump(dict(keys), sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"# {line}\n" for line in lines) + text, encoding="utf-8")


def write_start(base: CfgNode, cfg: CfgNode, path: Path) -> None:
    """Write the base's weights with a classifier for the classes of ``cfg``.

    Every class starts as the mean class of the base's classifier for prompted objects, its bias shifted so that the
    foreground probability equals the base's and is divided equally over the classes.

    Raises:
        UserError: the weights cannot be read, or do not fit.
    """
    state = weights_to_use(read_checkpoint(PathManager.get_local_path(base.MODEL.WEIGHTS)))
    target = AUSM(cfg).state_dict()
    own = f"{_CLASSIFIERS}{LABEL_SET}."
    if class_names(base).get(LABEL_SET) != class_names(cfg)[LABEL_SET]:  # else the base has these classes already
        state = {name: value for name, value in state.items() if not name.startswith(own)}
        prompted = f"{_CLASSIFIERS}{base.MODEL.AUSM.PROMPT_LABEL_SET}."
        if f"{prompted}weight" not in state:
            raise UserError(f"{base.MODEL.WEIGHTS}: no classifier {prompted}* to begin with")
        count = len(target[f"{own}bias"]) - 1
        state |= {f"{own}{name}": value for name, value in _classifier(state, prompted, count).items()}
    conversion = convert(state, target)
    conversion.check(str(base.MODEL.WEIGHTS), complete=True)
    write_weights(conversion.weights, path)


def _classifier(state: Mapping[str, Tensor], prefix: str, count: int) -> dict[str, Tensor]:
    """Weight and bias of ``count`` classes and of background, which is last.

    Args:
        state: the base's weights.
        prefix: of the names of its classifier for prompted objects.
    """
    weight, bias = state[f"{prefix}weight"].float(), state[f"{prefix}bias"].float()
    before = len(bias) - 1
    shift = math.log(before) - math.log(count)  # from the probability of ``before`` classes to that of ``count``
    rows = [weight[:-1].mean(dim=0, keepdim=True).expand(count, -1), weight[-1:]]
    return {"weight": torch.cat(rows), "bias": torch.cat([(bias[:-1].mean() + shift).expand(count), bias[-1:]])}


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in half precision."""
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    with atomic_write(path, durable=True) as temporary:
        torch.save({"model": half}, temporary)
