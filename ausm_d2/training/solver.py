# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""AdamW as in Mask2Former: reduced learning rate for the backbone, no weight decay on norms and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from ausm_d2.errors import UserError

_BACKBONE = "frame_encoder.backbone."


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters. Clips the gradient norm of the full model before every step.

    Args:
        cfg: SOLVER.{BASE_LR, WEIGHT_DECAY, WEIGHT_DECAY_NORM, BACKBONE_MULTIPLIER, MULTIPLIERS, CLIP_GRADIENTS}.
        model: its backbone is at ``frame_encoder.backbone``. Parameters with a factor of 0 are frozen: they need no
            gradients from then on.

    Raises:
        UserError: if SOLVER.CLIP_GRADIENTS.CLIP_TYPE is unknown, or SOLVER.MULTIPLIERS is invalid.
    """
    solver = cfg.SOLVER
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    factors = _factors(cfg, list(names.values()))
    for parameter in model.parameters():
        if factors[names[id(parameter)]] == 0:
            parameter.requires_grad_(False)
    groups = get_default_optimizer_params(
        model, base_lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, weight_decay_norm=solver.WEIGHT_DECAY_NORM
    )
    no_decay = _without_decay(model)
    single: list[dict[str, Any]] = []
    for group in groups:
        for parameter in group["params"]:
            settings = {**group, "params": [parameter]}
            settings["lr"] = solver.BASE_LR * factors[names[id(parameter)]]
            if names[id(parameter)] in no_decay:
                settings["weight_decay"] = 0.0
            single.append(settings)
    optimizer = torch.optim.AdamW(_merge(single), solver.BASE_LR)

    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED:
        if clip.CLIP_TYPE != "full_model":
            raise UserError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE: '{clip.CLIP_TYPE}', expected full_model")
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def clip_full_model(*_: Any) -> None:  # runs after AMP has unscaled the gradients
            nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

        optimizer.register_step_pre_hook(clip_full_model)
    return optimizer


def _factors(cfg: CfgNode, names: Sequence[str]) -> dict[str, float]:
    """What BASE_LR is multiplied by, by parameter.

    Raises:
        UserError: SOLVER.MULTIPLIERS is no list of pairs, or a prefix of it fits no parameter.
    """
    given = cfg.SOLVER.MULTIPLIERS
    for entry in given:
        pair = isinstance(entry, list | tuple) and len(entry) == 2
        if not pair or not isinstance(entry[0], str) or not isinstance(entry[1], int | float) or not entry[1] >= 0:
            raise UserError(f"SOLVER.MULTIPLIERS: {entry!r}, expected [beginning of names, factor from 0 on]")
        if not any(name.startswith(entry[0]) for name in names):
            raise UserError(f"SOLVER.MULTIPLIERS: no parameter's name begins with '{entry[0]}'")
    rules = [*given, [_BACKBONE, cfg.SOLVER.BACKBONE_MULTIPLIER]]
    return {name: next((factor for prefix, factor in rules if name.startswith(prefix)), 1.0) for name in names}


def _without_decay(model: nn.Module) -> set[str]:
    """Names of embeddings, position tables and parameters flagged ``_no_weight_decay`` as in mamba_ssm."""
    names = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        for name, _ in module.named_parameters()
    }
    for name, parameter in model.named_parameters():
        tables = ("relative_position_bias_table", "absolute_pos_embed", "level_embed", "x_start", "mask_gate")
        if getattr(parameter, "_no_weight_decay", False) or name.endswith(tables):
            names.add(name)
    return names


def _merge(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge groups of equal settings: AdamW runs one fused loop per group."""
    merged: dict[tuple, dict[str, Any]] = {}
    for group in groups:
        key = tuple(sorted((name, value) for name, value in group.items() if name != "params"))
        merged.setdefault(key, {**group, "params": []})["params"] += group["params"]
    return list(merged.values())
