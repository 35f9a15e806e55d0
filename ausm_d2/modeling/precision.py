# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Weights in the precision that autocast would convert them to, for a model that is only used."""

from __future__ import annotations

import torch
from torch import nn

from ausm_d2.modeling.attention import Attention
from ausm_d2.modeling.norm import GroupNorm, LayerNorm
from ausm_d2.modeling.ssm import Mamba


@torch.no_grad()
def keep_weights_in(model: nn.Module, dtype: torch.dtype, *, norms: bool) -> None:
    """Convert once, where they lie, what autocast converts in every frame: the weights of linear layers, of attention
    and of convolutions over space. Under autocast the model computes what it did before; without it, it no longer runs.

    Args:
        norms: also the weights of norms and embeddings, which are rounded by that. All features are ``dtype`` then on
            CUDA too, where autocast has them in float32 from norm to linear layer.
    """
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
            if parameter is not None and parameter not in in_float32:
                parameter.data = parameter.data.to(dtype)
