# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Stores the weights of a model in autocast's dtype, for inference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ausm_d2.modeling.attention import Attention
from ausm_d2.modeling.norm import GroupNorm, LayerNorm
from ausm_d2.modeling.ssm import Mamba


@torch.no_grad()
def keep_weights_in(model: nn.Module, dtype: torch.dtype, *, norms: bool) -> Callable[[], None]:
    """Convert in place, once, the weights that autocast would convert in every frame: those of linear layers, attention
    and spatial convolutions. Under autocast the results stay the same; without autocast the model no longer runs.

    Args:
        norms: also convert (and thereby round) the weights of norms and embeddings. On CUDA all features then have
            ``dtype``; otherwise autocast leaves them in float32 between a norm and the next linear layer.

    Returns:
        A function that restores the original weights.
    """
    original: dict[torch.Tensor, torch.Tensor] = {}
    in_float32 = {module.dt_proj.bias for module in model.modules() if isinstance(module, Mamba)}
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            parameters = [module.weight, module.bias]
        elif isinstance(module, Attention):
            parameters = [module.in_proj_weight, module.in_proj_bias]
        elif norms and isinstance(module, (LayerNorm, GroupNorm)):
            parameters = [module.weight, module.bias]
        elif norms and isinstance(module, nn.Embedding):
            parameters = [module.weight]
        else:
            continue
        for parameter in parameters:
            if parameter is not None and parameter not in in_float32 and parameter.dtype != dtype:
                original[parameter] = parameter.data
                parameter.data = parameter.data.to(dtype)

    def restore() -> None:
        for parameter, data in original.items():
            parameter.data = data

    return restore
