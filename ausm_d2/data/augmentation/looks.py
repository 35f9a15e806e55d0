# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""How the clips of other people's cameras look: grey, faint, dark, of few pixels, compressed, noisy, blurred.

Everything is drawn once per clip. Grey, contrast and brightness are a matrix on the colours and act before anything
else; the rest acts on the finished frames, in the order in which it comes about in a camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.config import CfgNode

from ausm_d2.data.augmentation.colour import LUMA
from ausm_d2.data.augmentation.plan import ClipPlan
from ausm_d2.errors import UserError

_EACH = 0.4  # probability of each look in a clip that has any


@dataclass(frozen=True)
class Look:
    """The look of one clip."""

    linear: np.ndarray  # (3, 3), of RGB in 0..255; (linear, offset) are the colours
    offset: np.ndarray  # (3)
    blur: float = 0.0  # standard deviation, pixels
    resolution: float = 1.0  # share of the rows and columns that is left
    noise: float = 0.0  # standard deviation, of 0..255
    jpeg: int = 0  # quality; 0: not compressed
    seed: int = 0  # of the noise

    def colour(self, plan: ClipPlan) -> None:
        """Append the colours to a plan."""
        count = plan.num_frames
        plan.recolour(np.broadcast_to(self.linear, (count, 3, 3)), np.broadcast_to(self.offset, (count, 3)))

    def degrade(self, clip: np.ndarray) -> None:
        """Blur, shrink, add noise, compress: uint8 (T, 3, H, W), RGB, in place."""
        if not (self.blur or self.noise or self.jpeg or self.resolution < 1):
            return
        rng = np.random.default_rng(self.seed)
        for frame in clip:
            frame[:] = self._degraded(np.ascontiguousarray(frame.transpose(1, 2, 0)), rng).transpose(2, 0, 1)

    def _degraded(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        if self.blur:
            image = cv2.GaussianBlur(image, (0, 0), self.blur)
        if self.resolution < 1:
            small = (max(1, round(width * self.resolution)), max(1, round(height * self.resolution)))
            image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        if self.noise:
            image = cv2.add(image, rng.normal(0, self.noise, image.shape), dtype=cv2.CV_8U)
        if self.jpeg:
            file = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self.jpeg])[1]
            image = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR))
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return image


@dataclass(frozen=True)
class Looks:
    """Draws the look of a clip: ``INPUT.LOOKS``."""

    prob: float  # probability that a clip has any of the looks below, but for grey
    grey: float  # probability
    contrast: tuple[float, float]  # factor about the middle grey
    brightness: tuple[float, float]  # factor
    resolution: float  # least
    jpeg: int  # least quality; 100: never compressed
    noise: float  # most
    blur: float  # most

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Looks:
        """
        Raises:
            UserError: a value out of its range.
        """
        keys = cfg.INPUT.LOOKS
        ranges = {"CONTRAST": keys.CONTRAST, "BRIGHTNESS": keys.BRIGHTNESS}
        for name, pair in ranges.items():
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise UserError(f"INPUT.LOOKS.{name}: {list(pair)} found; the least and the most factor expected")
        limits = {"PROB": (0, 1), "GREY": (0, 1), "RESOLUTION": (0.05, 1), "JPEG": (1, 100), "NOISE": (0, 128)}
        for name, (low, high) in {**limits, "BLUR": (0, 20)}.items():
            if not low <= keys[name] <= high:
                raise UserError(f"INPUT.LOOKS.{name}: {keys[name]} found; {low} to {high} expected")
        return cls(
            prob=keys.PROB,
            grey=keys.GREY,
            contrast=_pair(keys.CONTRAST),
            brightness=_pair(keys.BRIGHTNESS),
            resolution=keys.RESOLUTION,
            jpeg=keys.JPEG,
            noise=keys.NOISE,
            blur=keys.BLUR,
        )

    def __call__(self, rng: np.random.Generator) -> Look | None:
        """The look of a clip; None where it stays as it is."""
        grey, any_other = rng.random() < self.grey, rng.random() < self.prob
        if not grey and not any_other:
            return None
        linear, offset = np.eye(3), np.zeros(3)
        if grey:
            linear = np.broadcast_to(LUMA, (3, 3)).copy()
        if not any_other:
            return Look(linear, offset)
        contrast, brightness, blur, resolution, noise, jpeg = rng.random(6) < _EACH
        if contrast:
            factor = rng.uniform(*self.contrast)
            level = rng.uniform(90, 160)  # what stays as it is
            linear, offset = factor * linear, offset + (1 - factor) * level
        if brightness:
            factor = np.exp(rng.uniform(*np.log(self.brightness)))
            linear, offset = factor * linear, factor * offset
        return Look(
            linear,
            offset,
            blur=rng.uniform(0.3, max(0.3, self.blur)) if blur and self.blur else 0.0,
            resolution=rng.uniform(self.resolution, 1) if resolution else 1.0,
            noise=rng.uniform(0, self.noise) if noise else 0.0,
            jpeg=int(rng.integers(self.jpeg, 100)) if jpeg and self.jpeg < 100 else 0,
            seed=int(rng.integers(2**31)),
        )


def _pair(values: Sequence[float]) -> tuple[float, float]:
    return float(values[0]), float(values[1])
