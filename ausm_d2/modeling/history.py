# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""History Marker, History Compressor and History Decoder (paper, Sec. 3): they carry objects from frame to frame.

Shape shorthand:
    B: clips; T: frames of a clip; BT: B * T frames, flattened into one axis
    N: rows of A, padded with rows that are not in use
    D: channels
    h, w: feature size at stride 8; P: h * w pixels
    S: keys
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ausm_d2.modeling.attention import Attention, FeedForward
from ausm_d2.modeling.checkpointing import run_block
from ausm_d2.modeling.norm import LayerNorm
from ausm_d2.modeling.position import sine_tokens
from ausm_d2.modeling.ssm import Mamba, SSMState


class HistoryMarker(nn.Module):
    """Token Mark: writes the ID vectors of A where the masks M are (Sec. 3).

    ``S[h, w] = sum_i M^i[h, w] A^i / (eps + sum_i M^i[h, w])``
    """

    def __init__(self, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, ids: Tensor, masks: Tensor) -> Tensor:
        """
        Args:
            ids: (..., N, D) ID vectors A.
            masks: (..., N, 2h, 2w) masks M at stride 4, in [0, 1]; zero for rows that are not in use.

        Returns:
            (..., D, h, w) marked history S.
        """
        lead = masks.shape[:-3]
        coverage = F.avg_pool2d(masks.flatten(0, -4).to(ids.dtype), 2)  # (prod(lead), N, h, w)
        weight = coverage / (self.eps + coverage.sum(dim=1, keepdim=True))
        ids = ids.expand(*lead, *ids.shape[-2:]).flatten(0, -3)
        marked = torch.einsum("bnd,bnhw->bdhw", ids, weight)
        return marked.unflatten(0, lead)


def _reduce(x: Tensor, size: tuple[int, int], reduction: int) -> Tensor:
    """Average-pool (BT, P, D) tokens of a (h, w) grid over ``reduction`` x ``reduction`` squares, smaller at the
    border."""
    if reduction == 1:
        return x
    grid = x.unflatten(1, size).permute(0, 3, 1, 2)
    return F.avg_pool2d(grid, reduction, ceil_mode=True).flatten(2).transpose(1, 2)


class CompressorLayer(nn.Module):
    """Mamba over time at every pixel, self-attention over the pixels of each frame, feed-forward; all pre-norm."""

    def __init__(
        self,
        dim: int,
        *,
        head_dim: int,
        dim_feedforward: int,
        d_state: int,
        d_conv: int,
        expand: int,
        spatial_reduction: int,
    ) -> None:
        super().__init__()
        self.spatial_reduction = spatial_reduction
        self.norm_time = LayerNorm(dim)
        self.mamba = Mamba(dim, d_state=d_state, d_conv=d_conv, expand=expand)
        self.norm_space = LayerNorm(dim)
        self.self_attn = Attention(dim, head_dim=head_dim)
        self.norm_ffn = LayerNorm(dim)
        self.ffn = FeedForward(dim, dim_feedforward)
        # Every residual branch starts at zero, so that the marks reach F from the first iteration on.
        for parameter in (self.mamba.out_proj.weight, self.self_attn.out_proj.weight, *self.ffn.linear2.parameters()):
            nn.init.zeros_(parameter)

    def _space_and_ffn(self, x: Tensor, position: Tensor, size: tuple[int, int]) -> Tensor:
        """(BT, P, D) -> (BT, P, D); no information between frames."""
        normed = self.norm_space(x)
        query = normed + position
        if self.spatial_reduction == 1:
            x = x + self.self_attn(query, query, normed)
        else:
            key = _reduce(query, size, self.spatial_reduction)
            x = x + self.self_attn(query, key, _reduce(normed, size, self.spatial_reduction))
        return x + self.ffn(self.norm_ffn(x))

    def forward(
        self, x: Tensor, position: Tensor, size: tuple[int, int], state: SSMState | None, inplace: bool
    ) -> tuple[Tensor, SSMState | None]:
        """
        Args:
            x: (B, P, T, D) tokens.
            position: (P, D) positions.
            size: (h, w).
            state: after the previous frame, for B * P sequences; None: the clip starts here and no state is returned.
            inplace: overwrite ``state`` (without autograd only).

        Returns:
            (B, P, T, D) tokens and the state after the last frame.
        """
        batch, pixels, frames, dim = x.shape
        mixed, new_state = self.mamba(self.norm_time(x).flatten(0, 1), state, inplace=inplace)
        x = x + mixed.view(batch, pixels, frames, dim)
        tokens = x.transpose(1, 2).flatten(0, 1)
        tokens = self._space_and_ffn(tokens, position, size)
        return tokens.view(batch, frames, pixels, dim).transpose(1, 2), new_state if state is not None else None


class HistoryCompressor(nn.Module):
    """E -> F: compresses the marked history up to each frame into features of that frame's size (Sec. 3).

    One call on a clip and one call per frame, passing the states on, compute the same function.
    """

    @configurable
    def __init__(
        self,
        dim: int,
        *,
        num_layers: int,
        head_dim: int,
        dim_feedforward: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        spatial_reduction: int = 1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.layers = nn.ModuleList(
            CompressorLayer(
                dim,
                head_dim=head_dim,
                dim_feedforward=dim_feedforward,
                d_state=d_state,
                d_conv=d_conv,
                expand=expand,
                spatial_reduction=spatial_reduction,
            )
            for _ in range(num_layers)
        )
        self.norm = LayerNorm(dim)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        compressor = cfg.MODEL.AUSM.COMPRESSOR
        return {
            "dim": cfg.MODEL.AUSM.HIDDEN_DIM,
            "num_layers": compressor.LAYERS,
            "head_dim": compressor.HEAD_DIM,
            "dim_feedforward": compressor.DIM_FEEDFORWARD,
            "d_state": compressor.D_STATE,
            "spatial_reduction": cfg.MODEL.AUSM.SPATIAL_REDUCTION,
            "checkpointing": cfg.MODEL.AUSM.TRAIN.CHECKPOINTING,
        }

    def init_states(
        self, sequences: int, *, device: torch.device, dtype: torch.dtype, state_dtype: torch.dtype | None = None
    ) -> list[SSMState]:
        """The state of every layer before the first frame, for B * P sequences; see :meth:`Mamba.init_state`."""
        layers = [cast(CompressorLayer, layer) for layer in self.layers]
        return [layer.mamba.init_state(sequences, device, dtype, state_dtype) for layer in layers]

    def forward(
        self, e: Tensor, states: list[SSMState] | None = None, *, inplace: bool = False
    ) -> tuple[Tensor, list[SSMState] | None]:
        """
        Args:
            e: (B, T, D, h, w) features E of T consecutive frames.
            states: one per layer, as returned by :meth:`init_states` or the previous call; None: the clip starts here
                and no states are returned.
            inplace: overwrite ``states`` (without autograd only).

        Returns:
            (B, T, D, h, w) compressed history F, and the states after the last frame.
        """
        dim, height, width = e.shape[2:]
        position = sine_tokens(height, width, dim, device=e.device, dtype=e.dtype)
        x = e.flatten(3).permute(0, 3, 1, 2).contiguous()  # (B, P, T, D); the layers keep this memory layout
        new_states = []
        for i, layer in enumerate(self.layers):
            args = (x, position, (height, width), states[i] if states is not None else None, inplace)
            x, state = run_block(layer, *args, checkpointing=self.checkpointing)
            new_states.append(state)
        x = self.norm(x)
        f = x.permute(0, 2, 3, 1).unflatten(3, (height, width))
        return f, new_states if states is not None else None


class DecoderLayer(nn.Module):
    """Self-attention over X_t (optional), cross-attention to F_t, feed-forward; all pre-norm."""

    def __init__(
        self,
        dim: int,
        *,
        head_dim: int,
        dim_feedforward: int,
        self_attention: bool,
        spatial_reduction: int,
        zero_init: bool,
    ) -> None:
        """
        Args:
            zero_init: every residual branch starts at zero.
        """
        super().__init__()
        self.spatial_reduction = spatial_reduction
        self.norm_self = LayerNorm(dim) if self_attention else None
        self.self_attn = Attention(dim, head_dim=head_dim) if self_attention else None
        self.norm_cross = LayerNorm(dim)
        self.cross_attn = Attention(dim, head_dim=head_dim)
        self.norm_ffn = LayerNorm(dim)
        self.ffn = FeedForward(dim, dim_feedforward)
        # Initially the decoder copies marks between pixels that look alike (docs/deviations.md, 15).
        self.cross_attn.init_as_lookup(sharpness=1.5, gain=4.0)
        last = [self.ffn.linear2]
        if zero_init:
            last += [attn.out_proj for attn in (self.self_attn, self.cross_attn) if attn is not None]
        for parameter in (parameter for layer in last for parameter in layer.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, position: Tensor, size: tuple[int, int], key: Tensor, value: Tensor) -> Tensor:
        """
        Args:
            x: (BT, P, D) tokens of X_t.
            position: (P, D).
            size: (h, w).
            key, value: (BT, S, D) tokens of F_t, spatially reduced; positions are added to the keys only.

        Returns:
            (BT, P, D).
        """
        if self.norm_self is not None and self.self_attn is not None:
            normed = self.norm_self(x)
            query = normed + position
            if self.spatial_reduction == 1:
                x = x + self.self_attn(query, query, normed)
            else:
                x = x + self.self_attn(
                    query,
                    _reduce(query, size, self.spatial_reduction),
                    _reduce(normed, size, self.spatial_reduction),
                )
        x = x + self.cross_attn(self.norm_cross(x) + position, key, value)
        return x + self.ffn(self.norm_ffn(x))


class HistoryDecoder(nn.Module):
    """X_t, F_t -> G_t: Transformer decoder layers with the frame as queries and the history as memory (Sec. 3)."""

    @configurable
    def __init__(
        self,
        dim: int,
        *,
        num_layers: int,
        head_dim: int,
        dim_feedforward: int,
        self_attention: bool = True,
        spatial_reduction: int = 1,
        residual: bool = False,
        checkpointing: bool = False,
    ) -> None:
        """
        Args:
            residual: G_t starts as X_t itself: all residual branches start at zero, and there is no final norm.
        """
        super().__init__()
        self.checkpointing = checkpointing
        self.spatial_reduction = spatial_reduction
        self.layers = nn.ModuleList(
            DecoderLayer(
                dim,
                head_dim=head_dim,
                dim_feedforward=dim_feedforward,
                self_attention=self_attention,
                spatial_reduction=spatial_reduction,
                zero_init=residual,
            )
            for _ in range(num_layers)
        )
        self.norm: nn.Module = nn.Identity() if residual else LayerNorm(dim)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        decoder = cfg.MODEL.AUSM.DECODER
        return {
            "dim": cfg.MODEL.AUSM.HIDDEN_DIM,
            "num_layers": decoder.LAYERS,
            "head_dim": decoder.HEAD_DIM,
            "dim_feedforward": decoder.DIM_FEEDFORWARD,
            "self_attention": decoder.SELF_ATTENTION,
            "spatial_reduction": cfg.MODEL.AUSM.SPATIAL_REDUCTION,
            "residual": cfg.MODEL.AUSM.START == "residual",
            "checkpointing": cfg.MODEL.AUSM.TRAIN.CHECKPOINTING,
        }

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        """
        Args:
            x: (BT, D, h, w) features X_t; no information passes between frames.
            f: (BT, D, h, w) compressed history F_t.

        Returns:
            (BT, D, h, w) features G_t.
        """
        _, dim, height, width = x.shape
        size = (height, width)
        position = sine_tokens(height, width, dim, device=x.device, dtype=x.dtype)
        tokens, memory = (each.flatten(2).transpose(1, 2).contiguous() for each in (x, f))
        key = _reduce(memory + position, size, self.spatial_reduction)
        value = _reduce(memory, size, self.spatial_reduction)
        for layer in self.layers:
            tokens = run_block(layer, tokens, position, size, key, value, checkpointing=self.checkpointing)
        return self.norm(tokens).unflatten(1, size).permute(0, 3, 1, 2)
