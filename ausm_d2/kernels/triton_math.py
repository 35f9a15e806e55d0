# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Functions shared by the Triton kernels of scan and causal convolution. Imported only if Triton is installed."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    # log1p(e) without cancellation: log(w) e / (w - 1), where w is 1 + e as rounded.
    e = tl.exp(-tl.abs(x))
    w = 1.0 + e
    return tl.maximum(x, 0.0) + tl.where(w == 1.0, e, tl.log(w) * (e / tl.where(w == 1.0, 1.0, w - 1.0)))


@triton.jit
def row(pointer, offset, index, valid):
    return tl.load(pointer + offset + index, mask=valid, other=0.0).to(tl.float32)
