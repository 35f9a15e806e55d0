# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3).

Shape shorthand:
    B: images
    S: pixels of all levels together; the queries are these pixels
    H: heads; C: channels of one
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
    """Every pixel of every level gathers P bilinear samples per head from each level, around its own place.

    Args:
        values: (B, S, H, C) of the pixels.
        offsets: (B, S, H, L, P, 2), x and y, in pixels of the level.
        logits: (B, S, H, L, P) of the weights.
        sizes: height and width of each level.
        kernels: which kernel, one of ``choice.NAMES``.

    Returns:
        (B, S, H, C). Weights, coordinates and sums are float32, the result float32 or, by Triton's kernels, in the
        dtype of ``values``. A sample whose place is not a number counts as padding in the kernels.

    Raises:
        ValueError: if the sizes are not those of the tensors.
    """
    if len(sizes) != logits.shape[3] or sum(height * width for height, width in sizes) != values.shape[1]:
        raise ValueError(f"levels of {list(sizes)} for {values.shape[1]} pixels of {logits.shape[3]} levels")
    (out,) = DEFORMABLE(DeformableCall(values, offsets, logits, tuple(sizes)), kernels)
    return out
