# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Swin Transformer as a registered Detectron2 backbone: Detectron2's own modules under Mask2Former's config keys.

Shape shorthand:
    BT: frames
    H_pad, W_pad: padded image size in pixels
    h, w: size of a stage's grid; P: h * w
    C: channels of the stage
    G: windows of the padded grid; L: tokens of a window
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor, nn

from ausm_d2.errors import UserError
from ausm_d2.kernels.cached_tensors import cache_tensors
from ausm_d2.modeling.checkpointing import run_block
from ausm_d2.modeling.norm import LayerNorm

_STAGES = ("res2", "res3", "res4", "res5")


class Windows(NamedTuple):
    """Index tables between the tokens of a grid and its (shifted) windows."""

    tokens: Tensor  # int64 (G * L): the token at each window position; P: padding
    places: Tensor  # int64 (P): the window position of each token
    apart: Tensor | None  # bool (G, L, L): pairs that are not neighbours in the unshifted grid; None without a shift
    padded: bool


@cache_tensors(maxsize=64)
def _windows(size: tuple[int, int], window: int, shift: int, device: torch.device) -> Windows:
    """Windows of an (h, w) grid, padded at the bottom and right to whole windows and rolled by ``-shift``."""

    def cut(grid: Tensor) -> Tensor:
        """(rows, columns) -> (G, L)."""
        rows, columns = (side // window for side in grid.shape)
        return grid.view(rows, window, columns, window).transpose(1, 2).reshape(-1, window**2)

    with torch.inference_mode(False), torch.no_grad():
        (height, width), (bottom, right) = size, (-side % window for side in size)
        grid = torch.arange(height * width).view(size)
        grid = F.pad(grid, (0, right, 0, bottom), value=height * width)
        tokens = cut(grid.roll((-shift, -shift), (0, 1))).flatten()
        places = tokens.argsort()[: height * width]
        apart = None
        if shift:
            # Three bands per side, as in Swin's attention mask: whole windows, then both parts of the one that wraps.
            bands = [torch.arange(side) for side in grid.shape]
            bands = [(band >= len(band) - window).long() + (band >= len(band) - shift) for band in bands]
            regions = cut(3 * bands[0][:, None] + bands[1])
            apart = (regions[:, :, None] != regions[:, None]).to(device)
        return Windows(tokens.to(device), places.to(device), apart, bool(bottom or right))


def _attend_in_windows(block: nn.Module, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Window attention with the parameters of Detectron2's block; the same function, with less work.

    Padding tokens skip the linear layers: zeros map to the bias there.

    Args:
        block: a SwinTransformerBlock.
        x: (BT, P, C) normalised tokens.
        size: (h, w).

    Returns:
        (BT, P, C).
    """
    attn: Any = block.attn
    batch, _, channels = x.shape
    windows = _windows(size, int(block.window_size), int(block.shift_size), x.device)  # type: ignore[arg-type]
    qkv = attn.qkv(x)
    if windows.padded:
        padding = qkv.new_zeros(3 * channels) if attn.qkv.bias is None else attn.qkv.bias.to(qkv.dtype)
        qkv = torch.cat([qkv, padding.expand(batch, 1, -1)], dim=1)
    area = attn.window_size[0] * attn.window_size[1]
    # (BT * G, L, 3, heads, C / heads)
    qkv = qkv.index_select(1, windows.tokens).view(-1, area, 3, attn.num_heads, channels // attn.num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    bias = attn.relative_position_bias_table[attn.relative_position_index.flatten()]
    bias = bias.view(1, area, area, -1).permute(0, 3, 1, 2).to(q.dtype)  # (1, heads, L, L)
    if windows.apart is not None:
        bias = torch.where(windows.apart[:, None], bias - 100.0, bias).repeat(batch, 1, 1, 1)
    dropout = attn.attn_drop.p if block.training else 0.0
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=attn.scale)
    x = x.transpose(1, 2).reshape(batch, -1, channels).index_select(1, windows.places)
    return attn.proj_drop(attn.proj(x))


def _swin_block(block: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    """(BT, P, C) -> (BT, P, C)."""
    x = x + block.drop_path(_attend_in_windows(block, block.norm1(x), size))
    return x + block.drop_path(block.mlp(block.norm2(x)))


class Swin(SwinTransformer):
    """Detectron2's Swin with the stage names of its ResNets: ``res2`` .. ``res5``, strides 4 .. 32.

    Parameter names are those of the official checkpoints.
    """

    def __init__(self, *, out_features: tuple[str, ...] = _STAGES, patch_size: int = 4, **kwargs: Any) -> None:
        """
        Args:
            out_features: stages to return, of ``res2`` .. ``res5``. Only these have a final norm.
            patch_size: stride of ``res2``, pixels.
            kwargs: as for ``detectron2.modeling.backbone.swin.SwinTransformer``.
        """
        with warnings.catch_warnings():  # deprecation warnings of torch.meshgrid and timm.models.layers
            warnings.simplefilter("ignore")
            super().__init__(
                patch_size=patch_size,
                out_indices=[_STAGES.index(f) for f in out_features],
                norm_layer=LayerNorm,
                **kwargs,
            )
        self._out_features = [_STAGES[i] for i in self.out_indices]
        self._out_feature_channels = {_STAGES[i]: self.num_features[i] for i in self.out_indices}
        self._out_feature_strides = {_STAGES[i]: patch_size * 2**i for i in self.out_indices}
        self._size_divisibility = patch_size * 8

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(BT, 3, H_pad, W_pad) -> ``{"res2": (BT, C, H_pad/4, W_pad/4), .., "res5": (BT, 8C, ..)}``, C of res2."""
        x = self.patch_embed(x)
        size = (x.shape[-2], x.shape[-1])
        if self.ape:
            x = x + F.interpolate(self.absolute_pos_embed, size=size, mode="bicubic")
        x = self.pos_drop(x.flatten(2).transpose(1, 2))
        out = {}
        for i, layer in enumerate(self.layers):
            for block in layer.blocks:
                x = run_block(_swin_block, block, x, size, checkpointing=layer.use_checkpoint, random=True)
            if i in self.out_indices:
                out[_STAGES[i]] = getattr(self, f"norm{i}")(x).unflatten(1, size).permute(0, 3, 1, 2)
            if layer.downsample is not None:
                x = layer.downsample(x, *size)
                size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        return out


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Swin:
    """Build the backbone from ``MODEL.SWIN``.

    Raises:
        UserError: if the keys contradict each other.
    """
    swin = cfg.MODEL.SWIN
    stages = len(_STAGES)
    for key in ("DEPTHS", "NUM_HEADS"):
        if len(swin[key]) != stages:
            raise UserError(f"MODEL.SWIN.{key}: {list(swin[key])} has {len(swin[key])} entries, expected {stages}")
    for stage, heads in enumerate(swin.NUM_HEADS):
        if (swin.EMBED_DIM << stage) % heads:
            raise UserError(
                f"MODEL.SWIN.NUM_HEADS: {heads} heads do not divide the {swin.EMBED_DIM << stage} channels of "
                f"{_STAGES[stage]}"
            )
    return Swin(
        in_chans=input_shape.channels,
        embed_dim=swin.EMBED_DIM,
        depths=list(swin.DEPTHS),
        num_heads=list(swin.NUM_HEADS),
        window_size=swin.WINDOW_SIZE,
        drop_path_rate=swin.DROP_PATH_RATE,
        use_checkpoint=cfg.MODEL.AUSM.TRAIN.CHECKPOINTING,
    )
