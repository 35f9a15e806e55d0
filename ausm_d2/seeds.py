# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Random numbers that depend on where they are drawn, and not on earlier draws."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_generators(*place: int) -> None:
    """Seed the default generators of PyTorch (of all devices), NumPy and Python.

    Args:
        place: integers, 0 or more. Different values or another order give unrelated random numbers.
    """
    words = np.random.SeedSequence(place).generate_state(4).tolist()
    torch.manual_seed(words[0] << 32 | words[1])
    np.random.seed(words[2])
    random.seed(words[3])


@contextmanager
def seeded(*place: int) -> Iterator[None]:
    """A context whose random numbers are those of :func:`seed_generators`; behind it, draws go on as if it had not
    been."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        seed_generators(*place)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
