# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Sampler(B, n): uniform, without replacement, only what is free."""

from __future__ import annotations

import pytest
import torch

from ausm_d2.modeling.id_pool import IDPool, PoolExhausted, draw_free


def test_vectors_are_drawn_once_and_not_from_those_in_use() -> None:
    in_use = torch.zeros(10, dtype=torch.bool)
    in_use[[2, 5, 7]] = True
    for _ in range(50):
        drawn = draw_free(in_use, 7).tolist()
        assert sorted(drawn) == [0, 1, 3, 4, 6, 8, 9]


def test_vectors_are_drawn_uniformly() -> None:
    pool = IDPool(8, 4)
    counts = torch.zeros(8)
    for _ in range(2000):
        counts[pool.sample(3)] += 1
    # 750 each, standard deviation 21.7
    assert (counts - 750).abs().max() < 100


def test_a_generator_makes_it_repeatable() -> None:
    pool = IDPool(20, 4)
    draws = [pool.sample(5, generator=torch.Generator().manual_seed(3)).tolist() for _ in range(2)]
    assert draws[0] == draws[1]


def test_more_than_are_free_is_an_error_that_counts() -> None:
    pool = IDPool(4, 4)
    with pytest.raises(PoolExhausted, match="2 ID vectors requested, 1 of 4 are free"):
        draw_free(torch.tensor([True, True, False, True]), 2)
    assert pool.sample(0).shape == (0,)


def test_vectors_are_those_of_the_indices() -> None:
    pool = IDPool(6, 4)
    assert torch.equal(pool(torch.tensor([[1, 5]])), pool.embed.weight[[1, 5]][None])
