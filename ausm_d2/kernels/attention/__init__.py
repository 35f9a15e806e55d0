# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Attention: PyTorch's ``scaled_dot_product_attention``, or C++ for inference on a CPU.

There is no Triton form: on CUDA the reference is a fused kernel already (FlashAttention, cuDNN), as PyTorch chooses.

Shape shorthand: B: batch; Q: queries; K: keys; D: channels of all heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.attention.call import AttentionCall
from ausm_d2.kernels.attention.cpu import CpuAttention
from ausm_d2.kernels.choice import Operation


def _reference(call: AttentionCall) -> tuple[Tensor]:
    return (F.scaled_dot_product_attention(call.q, call.k, call.v, attn_mask=call.mask),)


ATTENTION: Operation[AttentionCall] = Operation("attention", _reference, [CpuAttention()])


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, kernels: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(D / heads)) v.

    Args:
        q: (B, heads, Q, D / heads).
        k, v: (B, heads, K, D / heads).
        mask: bool, broadcastable to (B, heads, Q, K); True where a query may look.
        kernels: which kernel, one of ``choice.NAMES``.

    Returns:
        (B, heads, Q, D / heads).
    """
    (out,) = ATTENTION(AttentionCall(q, k, v, mask), kernels)
    return out
