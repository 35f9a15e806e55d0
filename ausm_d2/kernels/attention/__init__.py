# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Attention: PyTorch's ``scaled_dot_product_attention``, or C++ for inference on a CPU.

On CUDA the reference already is a fused kernel (FlashAttention, cuDNN), so ``auto`` selects it there; the Triton kernel
runs where it is chosen by name.

Shape shorthand:
    BT: frames; no information passes between them
    Q: queries; S: keys; D: channels of all heads
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.attention.call import AttentionCall
from ausm_d2.kernels.attention.cpu import CpuAttention
from ausm_d2.kernels.attention.triton import TritonAttention
from ausm_d2.kernels.choice import Operation


def _reference(call: AttentionCall) -> tuple[Tensor]:
    return (F.scaled_dot_product_attention(call.q, call.k, call.v, attn_mask=call.mask),)


ATTENTION: Operation[AttentionCall] = Operation("attention", _reference, [CpuAttention(), TritonAttention()])


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, kernels: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(D / heads)) v.

    Args:
        q: (BT, heads, Q, D / heads).
        k, v: (BT, heads, S, D / heads).
        mask: bool, broadcastable to (BT, heads, Q, S); True where a query may attend.
        kernels: one of ``choice.NAMES``.

    Returns:
        (BT, heads, Q, D / heads).
    """
    (out,) = ATTENTION(AttentionCall(q, k, v, mask), kernels)
    return out
