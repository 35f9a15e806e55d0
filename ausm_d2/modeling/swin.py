# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Swin Transformer as a registered Detectron2 backbone: Detectron2's own network under Mask2Former's config keys.

Shape shorthand:
    B: images
    H, W: image size
    C: EMBED_DIM
"""

from __future__ import annotations

import warnings
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor

from ausm_d2.errors import UserError

_STAGES = ("res2", "res3", "res4", "res5")


class Swin(SwinTransformer):
    """Detectron2's Swin with its stages named as the ResNets name theirs: ``res2`` .. ``res5``, strides 4 .. 32.

    Parameter names are those of the official checkpoints.
    """

    def __init__(self, *, out_features: tuple[str, ...] = _STAGES, patch_size: int = 4, **kwargs: Any) -> None:
        """
        Args:
            out_features: the stages to return, out of ``res2`` .. ``res5``. Only these have a final norm.
            patch_size: stride of ``res2``, pixels.
            kwargs: those of ``detectron2.modeling.backbone.swin.SwinTransformer``.
        """
        with warnings.catch_warnings():  # of its use of torch.meshgrid and timm.models.layers, which no user can change
            warnings.simplefilter("ignore")
            super().__init__(patch_size=patch_size, out_indices=[_STAGES.index(f) for f in out_features], **kwargs)
        self._out_features = [_STAGES[i] for i in self.out_indices]
        self._out_feature_channels = {_STAGES[i]: self.num_features[i] for i in self.out_indices}
        self._out_feature_strides = {_STAGES[i]: patch_size * 2**i for i in self.out_indices}
        self._size_divisibility = patch_size * 8

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> ``{"res2": (B, C, H/4, W/4), .., "res5": (B, 8C, H/32, W/32)}``."""
        return {_STAGES[int(name.removeprefix("p"))]: feature for name, feature in super().forward(x).items()}


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Swin:
    """Build the Swin that ``MODEL.SWIN`` describes.

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
    unknown = sorted(set(swin.OUT_FEATURES) - set(_STAGES))
    if unknown:
        raise UserError(f"MODEL.SWIN.OUT_FEATURES: unknown {unknown}, expected some of {list(_STAGES)}")
    return Swin(
        out_features=tuple(swin.OUT_FEATURES),
        pretrain_img_size=swin.PRETRAIN_IMG_SIZE,
        patch_size=swin.PATCH_SIZE,
        in_chans=input_shape.channels,
        embed_dim=swin.EMBED_DIM,
        depths=list(swin.DEPTHS),
        num_heads=list(swin.NUM_HEADS),
        window_size=swin.WINDOW_SIZE,
        mlp_ratio=swin.MLP_RATIO,
        qkv_bias=swin.QKV_BIAS,
        qk_scale=swin.QK_SCALE,
        drop_rate=swin.DROP_RATE,
        attn_drop_rate=swin.ATTN_DROP_RATE,
        drop_path_rate=swin.DROP_PATH_RATE,
        ape=swin.APE,
        patch_norm=swin.PATCH_NORM,
        use_checkpoint=swin.USE_CHECKPOINT,
    )
