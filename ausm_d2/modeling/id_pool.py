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
    """More ID vectors were asked for than the pool has left."""


def draw_free(in_use: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Sampler(B, count): uniform, without replacement, among the ID vectors that are not in use.

    Args:
        in_use: bool (N_id), on the CPU.
        count: how many to draw.
        generator: a CPU generator; None: the default one.

    Returns:
        int64 (count), indices into the pool, on the CPU.

    Raises:
        PoolExhausted: if fewer than ``count`` are free.
    """
    free = (~in_use).nonzero()[:, 0]
    if count > len(free):
        raise PoolExhausted(f"{count} ID vectors asked for, {len(free)} of {len(in_use)} are free")
    return free[torch.randperm(len(free), generator=generator)[:count]]


class IDPool(nn.Module):
    """B: N_id learned vectors; every object that is followed has one of them, which no other object has."""

    def __init__(self, num_id: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_id, dim)
        nn.init.normal_(self.embed.weight, std=2.0)  # marks must stand out of the features they are added to

    @property
    def num_id(self) -> int:
        """N_id."""
        return self.embed.num_embeddings

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """:func:`draw_free` of the whole pool: int64 (count)."""
        return draw_free(torch.zeros(self.num_id, dtype=torch.bool), count, generator=generator)

    def forward(self, index: Tensor) -> Tensor:
        """int64 (...) indices -> (..., D) ID vectors."""
        return self.embed(index)
