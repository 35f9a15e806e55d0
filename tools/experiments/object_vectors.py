# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""``MODEL.META_ARCHITECTURE: AUSMObjectVectors``: AUSM without marks, an ablation (docs/deviations.md, 19).

Nothing is marked on the features (E_t = X_{t-1}). The only memory of an object is one vector, the content of its row in
the Pixel Decoder. Importing this module registers the meta-architecture.

Shape shorthand:
    B: clips; T: frames of a clip
    N: rows of A; N_id: ID vectors in the pool
    D: channels
    h, w: feature size at stride 8
    P: h * w pixels
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ausm_d2.meta_arch import AUSM
from ausm_d2.modeling.network import Memory
from ausm_d2.modeling.norm import LayerNorm
from ausm_d2.modeling.position import sine_tokens


class ObjectVectors(nn.Module):
    """``A^i = s b_i + W o_i``: appearance and position of an object, with its ID vector b_i.

    ``o_i = LN(mean of X over M^i) + mean of the sine positions over M^i``, of the last frame in which M^i was not
    empty. In the Pixel Decoder's memory (G plus position) the object's own pixels have the same form.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)  # W
        self.id_scale = nn.Parameter(torch.zeros(1))  # s; initially 0: b_i is marked nowhere, and would hide o_i
        # Initially a row searches for the appearance of its object; the factor scales it to the norm of an ID vector.
        self.proj.weight.data.copy_(2.0 * torch.eye(dim))
        nn.init.zeros_(self.proj.bias)

    def forward(self, ids: Tensor, x: Tensor, masks: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            ids: (B, N, D) ID vectors b.
            x: (B, T, D, h, w) features X_{t-1} of T consecutive frames.
            masks: (B, T, N, 2h, 2w) masks M_{t-1} at stride 4, in [0, 1]; all zero where an object is hidden.
            before: (B, N, D) the vectors o before these frames, zero for an object that was never seen. None: no
                object was seen.

        Returns:
            (B, T, N, D) contents A of the rows, and (B, N, D) the vectors o after the last frame.
        """
        frames, dim, height, width = x.shape[1:]
        coverage = F.avg_pool2d(masks.flatten(0, 1).to(x.dtype), 2).flatten(2).unflatten(0, masks.shape[:2])
        area = coverage.sum(dim=-1, keepdim=True)  # (B, T, N, 1)
        weight = coverage / area.clamp(min=0.25)  # the smallest non-empty mask covers 0.25 cells
        position = sine_tokens(height, width, dim, device=x.device, dtype=x.dtype)
        looks = self.norm(torch.einsum("btnp,btdp->btnd", weight, x.flatten(3)))
        seen = looks + torch.einsum("btnp,pd->btnd", weight, position)
        # For every frame, the last frame up to it that shows the object; 0 stands for ``before``.
        start = torch.zeros_like(seen[:, :1]) if before is None else before[:, None].to(seen.dtype)
        time = torch.arange(1, frames + 1, device=x.device)[:, None, None]
        last = torch.where(area > 0, time, 0).cummax(dim=1).values
        vectors = torch.cat([start, seen], dim=1).gather(1, last.expand(-1, -1, -1, dim))
        return self.id_scale * ids[:, None] + self.proj(vectors), vectors[:, -1]


@dataclass
class VectorMemory(Memory):
    """The memory of the network, and the vectors of the objects."""

    vectors: Tensor  # (B, N_id, D): o_i; zero for rows that are not in use

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "vectors": self.vectors}

    def map(self, function: Callable[[Tensor], Tensor]) -> VectorMemory:
        return VectorMemory(super().map(function).ssm, function(self.vectors))


@META_ARCH_REGISTRY.register()
class AUSMObjectVectors(AUSM):
    """AUSM that propagates one vector per object instead of marks."""

    added_modules = ("object_vectors.",)

    @configurable
    def __init__(self, *, object_vectors: ObjectVectors, **ausm: Any) -> None:
        super().__init__(**ausm)
        self.object_vectors = object_vectors

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "object_vectors": ObjectVectors(cfg.MODEL.AUSM.HIDDEN_DIM)}

    def initial_memory(
        self,
        size: tuple[int, int],
        *,
        clips: int = 1,
        dtype: torch.dtype | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> VectorMemory:
        memory = super().initial_memory(size, clips=clips, dtype=dtype, state_dtype=state_dtype)
        return VectorMemory(memory.ssm, torch.zeros(clips, self.id_pool.num_id, len(self.x_start), device=self.device))

    def mark(
        self, x_prev: Tensor, ids: Tensor, in_use: Tensor, history: Tensor, memory: Memory | None, *, inplace: bool
    ) -> tuple[Tensor, Tensor, Memory | None]:
        if memory is None:
            rows, _ = self.object_vectors(ids, x_prev, history)
            return x_prev, rows, None
        assert isinstance(memory, VectorMemory)
        count = ids.shape[1]
        # A row that was not in use before these frames has no history, even if its ID vector was used before.
        before = memory.vectors[:, :count] * in_use[:, 0, :, None]
        rows, after = self.object_vectors(ids, x_prev, history, before)
        if inplace:
            memory.vectors[:, :count].copy_(after)
        else:
            rest = memory.vectors[:, count:]
            memory = replace(memory, vectors=torch.cat([after.to(rest.dtype), rest], dim=1))
        return x_prev, rows, memory
