# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Runs timm's inverted residual blocks as one operation, if no gradients are recorded and norms are folded.

Shape shorthand:
    BT: frames
    C, C': channels before and after
    h, w and h', w': feature size before and after
"""

from __future__ import annotations

from typing import cast

import torch
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

from ausm_d2.kernels.inverted_residual import BLOCK
from ausm_d2.kernels.inverted_residual.call import BlockCall
from ausm_d2.modeling.folding import FoldedConv2d


def join_blocks(net: nn.Module) -> None:
    """Run timm's inverted residual blocks as one operation, in place; see :class:`JoinedBlock`."""
    for module in net.modules():
        if type(module) is InvertedResidual:
            module.__class__ = JoinedBlock


class JoinedBlock(InvertedResidual):
    """An inverted residual block. With gradients, other norms or other layers in between it runs layer by layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(BT, C, h, w) -> (BT, C', h', w')."""
        call = self._call(x)
        if call is not None:
            block = BLOCK.choose(call, self.conv_pw.kernels)
            if block is not BLOCK.reference:
                return block(call)[0]
        return cast(Tensor, super().forward(x))

    def _call(self, x: Tensor) -> BlockCall | None:
        """The block as one operation; None if it is not one."""
        convs = (self.conv_pw, self.conv_dw, self.conv_pwl)
        between = (self.aa, self.se, *((self.drop_path,) if self.training else ()))
        if not all(isinstance(conv, FoldedConv2d) for conv in convs) or self.conv_s2d is not None:
            return None
        if any(type(each) is not nn.Identity for each in between):
            return None
        if torch.is_grad_enabled() and (x.requires_grad or any(conv.weight.requires_grad for conv in convs)):
            return None
        first, second, last = (conv.limits() for conv in convs)
        if first is None or first != second or last != (-float("inf"), float("inf")):
            return None
        low, high = first
        if not convs[0].is_pointwise() or not convs[2].is_pointwise():
            return None
        expand, depthwise, project = (conv.folding() for conv in convs)
        if depthwise.planes is None:
            return None
        return BlockCall(
            x,
            expand.weight[:, :, 0, 0],
            expand.bias,
            depthwise.planes,
            depthwise.bias,
            project.weight[:, :, 0, 0],
            project.bias,
            convs[1].stride[0],
            convs[1].sides(x),
            low,
            high,
            bool(self.has_skip),
        )
