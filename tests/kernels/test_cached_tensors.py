# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Cached tensors are built once; a holder keeps those it collected alive after eviction."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from ausm_d2.kernels.cached_tensors import cache_tensors, clear, hold_cached_tensors


def test_a_held_tensor_outlives_eviction_and_clear() -> None:
    made = []

    @cache_tensors(maxsize=2)
    def ones(size: int) -> Tensor:
        made.append(size)
        return torch.ones(size)

    assert ones(3) is ones(3) and made == [3]
    with hold_cached_tensors() as held:
        ones(3)
        with hold_cached_tensors() as inner:
            ones(4)
    ones(5)
    assert [len(each) for each in held] == [3, 4] and [len(each) for each in inner] == [4]
    alive = [weakref.ref(ones(size)) for size in (4, 5)]
    clear()
    assert [each() is None for each in alive] == [False, True]  # 4 is held
    ones(3)
    assert made == [3, 4, 5, 3]
