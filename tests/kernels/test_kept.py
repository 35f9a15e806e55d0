# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What is kept is made once, and whoever holds it keeps it alive."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from ausm_d2.kernels.kept import forget, holding, kept


def test_kept_held_and_forgotten() -> None:
    made = []

    @kept(maxsize=2)
    def ones(size: int) -> Tensor:
        made.append(size)
        return torch.ones(size)

    assert ones(3) is ones(3) and made == [3]
    with holding() as held:
        ones(3)
        with holding() as inner:
            ones(4)
    ones(5)
    assert [len(each) for each in held] == [3, 4] and [len(each) for each in inner] == [4]
    alive = [weakref.ref(ones(size)) for size in (4, 5)]
    forget()
    assert [each() is None for each in alive] == [False, True]  # 4 is held
    ones(3)
    assert made == [3, 4, 5, 3]
