# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Streams and frames for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.stream import Stream
from tests.tiny import tiny_cfg


def open_stream(network: AUSMNetwork, *, label_set: str = "synthvis", detect: bool = True, **settings: Any) -> Stream:
    """A stream that takes frames as they are; ``settings`` are those of :class:`VideoSettings`."""
    return Stream(
        network, replace(VideoSettings.from_config(tiny_cfg()), **settings), label_set=label_set, detect=detect
    )


def frames(count: int, size: tuple[int, int] = (32, 32)) -> list[np.ndarray]:
    """Noise: uint8 (H, W, 3)."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


def box(size: tuple[int, int] = (32, 32), top: int = 8, left: int = 8, bottom: int = 24, right: int = 24) -> np.ndarray:
    """A mask: bool (H, W)."""
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask
