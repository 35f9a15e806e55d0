# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The pool B of learned ID vectors and the Sampler that draws from it (paper, Sec. 3; Alg. 1).

Shape shorthand:
    N_id: vectors in the pool
    D: channels
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PoolExhausted(RuntimeError):
    """More ID vectors were requested than are free."""


def draw_free(in_use: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Sampler(B, count): draw ID vectors that are not in use, uniformly without replacement.

    Args:
        in_use: bool (N_id), on the CPU.
        count: number of ID vectors to draw.
        generator: a CPU generator; None: PyTorch's default generator.

    Returns:
        int64 (count), indices into the pool, on the CPU.

    Raises:
        PoolExhausted: if fewer than ``count`` are free.
    """
    free = (~in_use).nonzero()[:, 0]
    if count > len(free):
        raise PoolExhausted(f"{count} ID vectors requested, {len(free)} of {len(in_use)} are free")
    return free[torch.randperm(len(free), generator=generator)[:count]]


class IDPool(nn.Module):
    """B: N_id learned vectors. Every tracked object has one of its own."""

    def __init__(self, num_id: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_id, dim)
        nn.init.normal_(self.embed.weight, std=2.0)  # marks must stand out from the features they are added to

    @property
    def num_id(self) -> int:
        """N_id."""
        return self.embed.num_embeddings

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """:func:`draw_free` from the whole pool: int64 (count)."""
        return draw_free(torch.zeros(self.num_id, dtype=torch.bool), count, generator=generator)

    def forward(self, index: Tensor) -> Tensor:
        """int64 (...) indices -> (..., D) ID vectors."""
        return self.embed(index)
