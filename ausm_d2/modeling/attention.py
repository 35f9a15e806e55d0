# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Attention and feed-forward blocks shared by History Compressor, History Decoder and Pixel Decoder.

Shape shorthand:
    BT: frames; no information passes between them
    Q: queries
    S: keys
    D: channels
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ausm_d2.kernels.attention import attend
from ausm_d2.kernels.choice import KernelLayer
from ausm_d2.kernels.linear import linear


class Attention(KernelLayer):
    """Multi-head attention.

    Parameter names and shapes are those of ``nn.MultiheadAttention``, so that its checkpoints load.
    """

    def __init__(self, dim: int, *, head_dim: int) -> None:
        """
        Args:
            dim: channels D of queries, keys and values.
            head_dim: channels of one head; must divide D.

        Raises:
            ValueError: if ``head_dim`` does not divide ``dim``.
        """
        super().__init__()
        if dim % head_dim:
            raise ValueError(f"head width {head_dim} does not divide the {dim} channels")
        self.head_dim = head_dim
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    @torch.no_grad()
    def init_as_lookup(self, *, sharpness: float = 1.0, gain: float = 1.0) -> None:
        """Initialise such that a query attends to the keys that resemble it and copies their values.

        Queries and keys share an orthogonal projection; values pass unchanged (docs/deviations.md, 15).

        Args:
            sharpness: scale of that projection.
            gain: scale of the output.
        """
        query, key, value = self.in_proj_weight.chunk(3)
        nn.init.orthogonal_(query, gain=sharpness)
        key.copy_(query)
        nn.init.eye_(value)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.eye_(self.out_proj.weight).mul_(gain)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            query: (BT, Q, D).
            key: (BT, S, D). May be the tensor ``query`` itself.
            value: (BT, S, D). May be the tensor ``key`` itself.
            mask: bool, broadcastable to (BT, heads, Q, S); True where a query may attend.

        Returns:
            (BT, Q, D).
        """
        dim = self.in_proj_weight.shape[1]
        weight, bias, kernels = self.in_proj_weight, self.in_proj_bias, self.kernels
        if query is key:
            q, k = linear(query, weight[: 2 * dim], bias[: 2 * dim], kernels=kernels).chunk(2, dim=-1)
        else:
            q = linear(query, weight[:dim], bias[:dim], kernels=kernels)
            k = linear(key, weight[dim : 2 * dim], bias[dim : 2 * dim], kernels=kernels)
        v = linear(value, weight[2 * dim :], bias[2 * dim :], kernels=kernels)
        out = attend(self._heads(q), self._heads(k), self._heads(v), mask=mask, kernels=kernels)
        out = out.transpose(1, 2).flatten(2)
        return linear(out, self.out_proj.weight, self.out_proj.bias, kernels=kernels)


class FeedForward(KernelLayer):
    """Two linear layers with a ReLU between them, as in the Transformer layers of Mask2Former."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        x = linear(x, self.linear1.weight, self.linear1.bias, low=0.0, kernels=self.kernels)
        return linear(x, self.linear2.weight, self.linear2.bias, kernels=self.kernels)
