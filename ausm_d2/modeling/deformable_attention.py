# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The layer of multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3).

Shape shorthand:
    BT: frames
    S: pixels of all levels together; they are the queries and the keys
    L: levels
    P: sampling points per head and level
    D: channels
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ausm_d2.kernels.choice import KernelLayer
from ausm_d2.kernels.deformable import deformable_attention


class MSDeformAttn(KernelLayer):
    """Every pixel of every level gathers P bilinear samples per head from each level, around its own position.

    Parameter names and shapes are those of Deformable DETR and Mask2Former.
    """

    def __init__(self, dim: int, *, num_levels: int, num_heads: int, num_points: int) -> None:
        """
        Raises:
            ValueError: if ``num_heads`` does not divide ``dim``.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the {dim} channels")
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Point p of head h starts p + 1 pixels away in the direction of h; the directions cover the circle evenly."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1)
        offsets = direction[:, None, None, :] * distance[:, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, value: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """
        Args:
            query: (BT, S, D) pixels of all levels, positions added.
            value: (BT, S, D) the same pixels without positions.
            sizes: (height, width) of each of the L levels, in the order of the pixels.

        Returns:
            (BT, S, D).
        """
        batch, pixels, _ = value.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        values = self.value_proj(value)
        logits = self.attention_weights(query).view(batch, pixels, heads, levels, points)
        offsets = self.sampling_offsets(query).view(batch, pixels, heads, levels, points, 2)
        values = values.view(batch, pixels, heads, -1)
        out = deformable_attention(values, offsets, logits, sizes, kernels=self.kernels)
        return self.output_proj(out.flatten(2))
