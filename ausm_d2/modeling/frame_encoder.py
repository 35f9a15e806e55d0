# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Frame encoder (paper, Sec. 3): backbone, then Mask2Former's multi-scale deformable decoder.

Mask2Former calls that its pixel decoder, and so do the names of its parameters; here the Pixel Decoder is AUSM's.

Shape shorthand:
    BT: frames; no information passes between them
    H_pad, W_pad: padded image size in pixels; h, w: its size at stride 8; H4, W4: at stride 4
    D: channels; C_i: channels of the backbone's level i
    S: pixels of all levels together
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from ausm_d2.errors import UserError
from ausm_d2.kernels.choice import KernelLayer
from ausm_d2.modeling.checkpointing import run_block
from ausm_d2.modeling.convnet import build_convnet_backbone as build_convnet_backbone  # registers it
from ausm_d2.modeling.convolution import conv_norm, convolve
from ausm_d2.modeling.deformable_attention import MSDeformAttn
from ausm_d2.modeling.norm import GroupNorm, LayerNorm
from ausm_d2.modeling.position import sine_tokens
from ausm_d2.modeling.proposals import ProposalPyramid
from ausm_d2.modeling.resize import resize_to
from ausm_d2.modeling.swin import build_swin_backbone
from ausm_d2.modeling.timm_backbone import build_timm_backbone as build_timm_backbone  # registers it


class FrameFeatures(NamedTuple):
    """Features of single frames, without history."""

    x: Tensor  # X_t: (BT, D, h, w)
    mask_features: Tensor  # (BT, mask_dim, H4, W4)
    multi_scale: list[Tensor]  # the encoder's levels, coarsest first: (BT, D, h/4, w/4) .. (BT, D, h, w)
    pyramid: Tensor | None = None  # (BT, D, h, w), for proposals

    def map(self, function: Callable[[Tensor], Tensor]) -> FrameFeatures:
        """The same features with ``function`` applied to every tensor."""
        levels, pyramid = [function(level) for level in self.multi_scale], self.pyramid
        x, mask_features = function(self.x), function(self.mask_features)
        return FrameFeatures(x, mask_features, levels, None if pyramid is None else function(pyramid))

    def tensors(self) -> list[Tensor]:
        """All tensors."""
        return [self.x, self.mask_features, *self.multi_scale, *([] if self.pyramid is None else [self.pyramid])]


class DeformableEncoderLayer(nn.Module):
    """Deformable attention over the pixels of all levels, then feed-forward; post-norm."""

    def __init__(self, dim: int, *, num_levels: int, num_heads: int, num_points: int, dim_feedforward: int) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(dim, num_levels=num_levels, num_heads=num_heads, num_points=num_points)
        self.norm1 = LayerNorm(dim)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.norm2 = LayerNorm(dim)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, position: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """(BT, S, D) pixels of all levels and their (S, D) positions -> (BT, S, D)."""
        x = self.norm1(x + self.self_attn(x + position, x, sizes))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class DeformableEncoder(nn.Module):
    """A stack of deformable encoder layers."""

    def __init__(self, dim: int, *, num_layers: int, checkpointing: bool, **layer: int) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.layers = nn.ModuleList(DeformableEncoderLayer(dim, **layer) for _ in range(num_layers))

    def forward(self, x: Tensor, position: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """(BT, S, D) pixels of all levels and their (S, D) positions -> (BT, S, D)."""
        for layer in self.layers:
            x = run_block(layer, x, position, sizes, checkpointing=self.checkpointing)
        return x


class DeformableTransformer(nn.Module):
    """Mixes information between levels: flatten, add position and level embeddings, encode, unflatten."""

    def __init__(self, dim: int, *, num_levels: int, num_layers: int, checkpointing: bool, **layer: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim))
        self.encoder = DeformableEncoder(
            dim, num_layers=num_layers, checkpointing=checkpointing, num_levels=num_levels, **layer
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels (BT, D, h, w), coarsest first, of any sizes -> the same shapes."""
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        positions = [
            sine_tokens(*size, level.shape[1], device=level.device, dtype=level.dtype) + embed.to(level.dtype)
            for size, level, embed in zip(sizes, levels, self.level_embed, strict=True)
        ]
        x = self.encoder(x, torch.cat(positions), sizes)
        split = x.split([h * w for h, w in sizes], dim=1)
        # Channels last in memory, so that flattening a level to tokens needs no copy. Permuted, not transposed:
        # otherwise PyTorch does not recognise the strides of a single image as channels last.
        return [
            level.contiguous().unflatten(1, size).permute(0, 3, 1, 2) for level, size in zip(split, sizes, strict=True)
        ]


class TopDownSum(nn.Module):
    """Replaces the deformable encoder in light models: adds the coarser levels to each level. No parameters."""

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels (BT, D, h, w), coarsest first, of any sizes -> the same shapes."""
        sums = [levels[0]]
        for level in levels[1:]:
            sums.append(level + resize_to(sums[-1], level))
        return sums


class MultiScaleDecoder(KernelLayer):
    """Fuses backbone levels: an encoder mixes the coarse ones, the finest one is added as in a feature pyramid.

    With three coarse levels its parameter names and its function are those of Mask2Former's
    ``MSDeformAttnPixelDecoder`` (arXiv 2112.01527, Sec. 3.2.1).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        conv_dim: int,
        mask_dim: int,
        enc_layers: int,
        num_heads: int,
        num_points: int,
        dim_feedforward: int,
        checkpointing: bool = False,
    ) -> None:
        """
        Args:
            in_channels: C_i, finest level (stride 4) first.
            enc_layers: layers of deformable attention; 0: top-down sums.
            checkpointing: recompute the activations of these layers in the backward pass.
        """
        super().__init__()
        finest, *coarse = in_channels

        def norm(channels: int) -> GroupNorm:
            return GroupNorm(math.gcd(32, channels), channels)

        # Coarsest first, as in the checkpoints.
        projections = [nn.Conv2d(channels, conv_dim, 1) for channels in reversed(coarse)]
        self.input_proj = nn.ModuleList(nn.Sequential(projection, norm(conv_dim)) for projection in projections)
        self.transformer: nn.Module
        if enc_layers:
            self.transformer = DeformableTransformer(
                conv_dim,
                num_levels=len(coarse),
                num_layers=enc_layers,
                checkpointing=checkpointing,
                num_heads=num_heads,
                num_points=num_points,
                dim_feedforward=dim_feedforward,
            )
        else:
            self.transformer = TopDownSum()
        self.adapter_1 = Conv2d(finest, conv_dim, 1, bias=False, norm=norm(conv_dim))
        self.layer_1 = Conv2d(conv_dim, conv_dim, 3, padding=1, bias=False, norm=norm(conv_dim), activation=F.relu)
        self.mask_features = nn.Conv2d(conv_dim, mask_dim, 1)
        for conv in (*projections, self.adapter_1, self.layer_1, self.mask_features):
            c2_xavier_fill(conv)

    def forward(self, features: Sequence[Tensor]) -> FrameFeatures:
        """Backbone levels (BT, C_i, h_i, w_i) in the order of ``in_channels`` -> features."""
        finest, *coarse = features
        levels = self.transformer(
            [
                conv_norm(level, projection[0], projection[1], kernels=self.kernels)
                for projection, level in zip(cast(Any, self.input_proj), reversed(coarse), strict=True)
            ]
        )
        coarser = resize_to(levels[-1], finest)
        fused = conv_norm(finest, self.adapter_1, self.adapter_1.norm, add=coarser, kernels=self.kernels)
        fused = conv_norm(fused, self.layer_1, self.layer_1.norm, relu=True, kernels=self.kernels)
        if not torch.is_grad_enabled():
            # Channels last, like G_t, which is added to them, and because resizing is fastest then. Not in training:
            # gradients would arrive in a layout that the group norm does not have.
            fused = fused.contiguous(memory_format=torch.channels_last)
        mask_features = convolve(fused, self.mask_features, kernels=self.kernels)
        return FrameFeatures(x=levels[-1], mask_features=mask_features, multi_scale=levels)


class FrameEncoder(nn.Module):
    """Frames -> X_t and mask features; no information between frames (paper, Sec. 3; docs/deviations.md, 7)."""

    @configurable
    def __init__(
        self,
        backbone: Backbone,
        *,
        in_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        conv_dim: int = 256,
        mask_dim: int = 256,
        enc_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        dim_feedforward: int = 1024,
        proposals: bool = False,
        checkpointing: bool = False,
        freeze_at: str = "none",
    ) -> None:
        """
        Args:
            backbone: any Detectron2 backbone.
            in_features: backbone outputs to fuse, finest first: strides 4, 8 and up to two coarser ones. All but the
                first go through the deformable encoder.
            conv_dim: D.
            mask_dim: channels of the mask features.
            enc_layers: layers of deformable attention; 0: top-down sums (light models).
            num_heads: attention heads per layer.
            num_points: sampling points per head and level.
            dim_feedforward: hidden channels of the feed-forward blocks.
            proposals: also compute the feature pyramid that proposals are made from.
            checkpointing: recompute the activations of the deformable encoder in the backward pass.
            freeze_at: what is frozen: "none", "backbone" (stage 3 of the paper's recipe) or "encoder" (everything).

        Raises:
            UserError: if an output is missing or has another stride, or ``freeze_at`` is unknown.
        """
        super().__init__()
        if freeze_at not in ("none", "backbone", "encoder"):
            raise UserError(f"MODEL.AUSM.FRAME_ENCODER.FREEZE_AT: '{freeze_at}' is not one of none, backbone, encoder")
        channels = _channels(backbone, in_features)
        self.in_features = tuple(in_features)
        self.backbone = backbone
        self.pixel_decoder = MultiScaleDecoder(
            channels,
            conv_dim=conv_dim,
            mask_dim=mask_dim,
            enc_layers=enc_layers,
            num_heads=num_heads,
            num_points=num_points,
            dim_feedforward=dim_feedforward,
            checkpointing=checkpointing,
        )
        if freeze_at != "none":
            (self if freeze_at == "encoder" else self.backbone).requires_grad_(False)
        self.proposal_pyramid = ProposalPyramid(channels[1:], conv_dim) if proposals else None  # never frozen

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        encoder = cfg.MODEL.AUSM.FRAME_ENCODER
        return {
            "backbone": _build_backbone(cfg),
            "in_features": tuple(encoder.IN_FEATURES),
            "conv_dim": cfg.MODEL.AUSM.HIDDEN_DIM,
            "mask_dim": cfg.MODEL.AUSM.HIDDEN_DIM,
            "enc_layers": encoder.ENC_LAYERS,
            "num_heads": encoder.NUM_HEADS,
            "dim_feedforward": encoder.DIM_FEEDFORWARD,
            "proposals": cfg.MODEL.AUSM.PIXEL_DECODER.QUERIES == "proposals",
            "checkpointing": cfg.MODEL.AUSM.TRAIN.CHECKPOINTING,
            "freeze_at": encoder.FREEZE_AT,
        }

    def train(self, mode: bool = True) -> FrameEncoder:
        """Frozen parts stay in evaluation mode, without stochastic depth."""
        super().train(mode and _trains(self))
        self.backbone.train(mode and _trains(self.backbone))
        return self

    def forward(self, images: Tensor) -> FrameFeatures:
        """
        Args:
            images: (BT, 3, H_pad, W_pad), normalised; multiples of 32.

        Returns:
            X_t (BT, D, h, w), mask features (BT, mask_dim, H4, W4), and all levels of the encoder.
        """
        grad = torch.is_grad_enabled()
        with torch.set_grad_enabled(grad and (images.requires_grad or _trains(self.backbone))):
            features = self.backbone(images)
        with torch.set_grad_enabled(grad and (images.requires_grad or _trains(self))):
            out = self.pixel_decoder([features[name] for name in self.in_features])
        if self.proposal_pyramid is None:
            return out
        return out._replace(pyramid=self.proposal_pyramid([features[name] for name in self.in_features[1:]]))


def _channels(backbone: Backbone, in_features: Sequence[str]) -> list[int]:
    """C_i of the outputs ``in_features``.

    Raises:
        UserError: if an output is missing or has another stride than 4, 8, 16, 32 in this order.
    """
    shapes = backbone.output_shape()
    missing = [name for name in in_features if name not in shapes]
    if missing:
        raise UserError(
            f"MODEL.AUSM.FRAME_ENCODER.IN_FEATURES: the backbone has no output {missing}, it has {sorted(shapes)}"
        )
    strides = [shapes[name].stride for name in in_features]
    if len(strides) < 2 or strides != [4, 8, 16, 32][: len(strides)]:
        raise UserError(
            f"MODEL.AUSM.FRAME_ENCODER.IN_FEATURES: {list(in_features)} have strides {strides}, expected "
            "4, 8, 16, 32 (the coarsest may be left out)"
        )
    return [int(shapes[name].channels or 0) for name in in_features]


def _trains(module: nn.Module) -> bool:
    """Whether any parameter requires gradients."""
    return any(p.requires_grad for p in module.parameters())


def _build_backbone(cfg: CfgNode) -> Backbone:
    """Build the backbone named by ``MODEL.BACKBONE.NAME``. Mask2Former's name for Swin is accepted.

    That name is not registered here: it would clash with Mask2Former's own entry.
    """
    name = cfg.MODEL.BACKBONE.NAME
    shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    if name in BACKBONE_REGISTRY:
        backbone = BACKBONE_REGISTRY.get(name)(cfg, shape)
    elif name == "D2SwinTransformer":
        backbone = build_swin_backbone(cfg, shape)
    else:
        raise UserError(
            f"MODEL.BACKBONE.NAME: unknown backbone '{name}', expected build_swin_backbone, build_timm_backbone, "
            "build_convnet_backbone or one of Detectron2's own, such as build_resnet_backbone"
        )
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    if freeze_at > 0 and all(parameter.requires_grad for parameter in backbone.parameters()):
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT: {freeze_at}, but {name} does not support it; expected 0; to freeze "
            "the whole backbone set MODEL.AUSM.FRAME_ENCODER.FREEZE_AT to backbone"
        )
    return backbone
