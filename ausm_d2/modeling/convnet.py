# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A small plain convolutional backbone for models that are trained from random weights on little data.

Shape shorthand:
    BT: frames
    H_pad, W_pad: padded image size in pixels
    C: channels of res2
"""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from ausm_d2.modeling.norm import GroupNorm

_GROUPS = 8  # groups of each group norm
_WIDTHS = {"res2": 1, "res3": 2, "res4": 4, "res5": 4}  # channels of each stage, in multiples of C


class ConvNet(Backbone):
    """3 x 3 convolutions with group norm and ReLU: strides 2 and 4 with C channels, then two per coarser stage.

    Group norm, because batch statistics would pass information between the frames of a clip.
    """

    def __init__(self, *, width: int, in_channels: int = 3) -> None:
        """
        Args:
            width: C, a multiple of 8.
            in_channels: channels of the images.
        """
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int = 1) -> Conv2d:
            norm = GroupNorm(_GROUPS, outputs)
            return Conv2d(inputs, outputs, 3, stride, padding=1, bias=False, norm=norm, activation=F.relu)

        self._out_features = list(_WIDTHS)
        self._out_feature_channels = {name: factor * width for name, factor in _WIDTHS.items()}
        self._out_feature_strides = {name: 4 << i for i, name in enumerate(_WIDTHS)}
        channels = self._out_feature_channels
        self.res2 = nn.Sequential(
            conv(in_channels, width, 2), conv(width, channels["res2"], 2), conv(channels["res2"], channels["res2"])
        )
        self.res3 = nn.Sequential(conv(channels["res2"], channels["res3"], 2), conv(channels["res3"], channels["res3"]))
        self.res4 = nn.Sequential(conv(channels["res3"], channels["res4"], 2), conv(channels["res4"], channels["res4"]))
        self.res5 = nn.Sequential(conv(channels["res4"], channels["res5"], 2), conv(channels["res5"], channels["res5"]))

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(BT, 3, H_pad, W_pad) -> ``{"res2": (BT, C, H_pad/4, W_pad/4), .., "res5": (BT, 4C, ..)}``."""
        outputs = {}
        for name in _WIDTHS:
            outputs[name] = x = self.get_submodule(name)(x)
        return outputs


@BACKBONE_REGISTRY.register()
def build_convnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ConvNet:
    """Build the backbone of the smallest model."""
    return ConvNet(width=32, in_channels=input_shape.channels or 3)
