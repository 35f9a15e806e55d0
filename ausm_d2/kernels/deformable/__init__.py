# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3).

Shape shorthand:
    BT: frames
    S: pixels of all levels together; they are the queries and the keys
    heads, C: number of heads, channels of a head
    L: levels
    P: sampling points per head and level
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ausm_d2.kernels.choice import Operation
from ausm_d2.kernels.deformable.call import DeformableCall
from ausm_d2.kernels.deformable.cpu import CpuDeformable
from ausm_d2.kernels.deformable.reference import attend
from ausm_d2.kernels.deformable.triton import TritonDeformable

DEFORMABLE: Operation[DeformableCall] = Operation("deformable attention", attend, [CpuDeformable(), TritonDeformable()])


def deformable_attention(
    values: Tensor,
    offsets: Tensor,
    logits: Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    kernels: str = "auto",
) -> Tensor:
    """Every pixel of every level gathers P bilinear samples per head from each level, around its own position.

    Args:
        values: (BT, S, heads, C).
        offsets: (BT, S, heads, L, P, 2), x and y, in pixels of the sampled level.
        logits: (BT, S, heads, L, P), softmax over L * P gives the weights of the samples.
        sizes: (height, width) of each level.
        kernels: one of ``choice.NAMES``.

    Returns:
        (BT, S, heads, C). Weights, coordinates and sums are float32; the result is float32, or with Triton the dtype of
        ``values``. In the kernels a sample at a NaN position counts as padding.

    Raises:
        ValueError: if ``sizes`` does not match the tensors.
    """
    if len(sizes) != logits.shape[3] or sum(height * width for height, width in sizes) != values.shape[1]:
        raise ValueError(f"sizes {list(sizes)} do not match {values.shape[1]} pixels on {logits.shape[3]} levels")
    (out,) = DEFORMABLE(DeformableCall(values, offsets, logits, tuple(sizes)), kernels)
    return out
