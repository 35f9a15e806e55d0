# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Weights in the layout of a kernel, kept as long as the weights live and do not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class PackedWeights:
    """A cache: weights, or parts of weights such as the rows of one projection -> the same in another layout.

    Args:
        pack: makes the other layout, without gradients.
    """

    def __init__(self, pack: Callable[[Tensor], Tensor]) -> None:
        self._pack = pack
        # By the tensor that owns the memory: views are made anew in every call.
        self._kept: Any = WeakTensorKeyDictionary()

    def __call__(self, weight: Tensor) -> Tensor:
        """The packed weights. Weights without a version counter (made in inference mode) are packed in every call."""
        if weight.is_inference():
            return self._pack(weight)
        owner = weight if weight._base is None else weight._base
        place = (weight.storage_offset(), weight.shape, weight.stride())
        version = (weight.data_ptr(), weight._version)
        kept = self._kept.get(owner)
        if kept is None:
            kept = self._kept[owner] = {}
        found = kept.get(place)
        if found is None or found[0] != version:
            with torch.inference_mode(False), torch.no_grad():
                found = kept[place] = version, self._pack(weight.detach())  # another thread may do the same
        return found[1]
