# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Augmentations that change colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ausm_d2.data.augmentation.plan import Augmentation, ClipPlan

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, for RGB


class ColourJitter(Augmentation):
    """Brightness, contrast and saturation, as one matrix; interpolated linearly over the clip."""

    def __init__(
        self,
        kinds: Sequence[str] = ("brightness", "contrast", "saturation"),
        low: float = 0.9,
        high: float = 1.1,
        drift: bool = False,
        grey: float = 116.0,
    ) -> None:
        """
        Args:
            kinds: of "brightness", "contrast", "saturation".
            low, high: range of the factors.
            drift: draw the factors of the first and last frame independently.
            grey: the level that contrast leaves unchanged.
        """
        self.kinds = kinds
        self.low = low
        self.high = high
        self.drift = drift
        self.grey = grey

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        count = plan.num_frames
        for kind in self.kinds:
            first, last = rng.uniform(self.low, self.high, size=2)
            factor = np.linspace(first, last if self.drift else first, count)[:, None, None]
            linear, offset = factor * np.eye(3), np.zeros((count, 3))
            if kind == "contrast":
                offset += (1 - factor[:, :, 0]) * self.grey
            elif kind == "saturation":
                linear = linear + (1 - factor) * LUMA
            plan.recolour(linear, offset)
