# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Degradations that imitate poor cameras: greyscale, low contrast, darkness, low resolution, JPEG, noise, blur.

Parameters are drawn once per clip. Greyscale, contrast and brightness are a matrix on the colours, applied first; the
others are applied to the rendered frames, in the order in which they occur in a camera.

Shape shorthand:
    T: frames of the clip
    H, W: frame size in pixels
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.config import CfgNode

from ausm_d2.data.augmentation.colour import LUMA
from ausm_d2.data.augmentation.plan import ClipPlan
from ausm_d2.errors import UserError

_EACH = 0.4  # probability of each degradation in a degraded clip
_CONTRAST = (0.35, 1.3)  # range of factors, about a random grey level
_BRIGHTNESS = (0.5, 1.3)  # range of factors
_BLUR = (0.3, 1.5)  # range of standard deviations, pixels
_RESOLUTION = 0.4  # minimum, relative
_NOISE = 20.0  # maximum standard deviation, of 0..255
_JPEG = 15  # minimum quality


@dataclass(frozen=True)
class Look:
    """The degradation of one clip."""

    linear: np.ndarray  # (3, 3): RGB in 0..255 becomes linear @ RGB + offset
    offset: np.ndarray  # (3)
    blur: float = 0.0  # standard deviation, pixels
    resolution: float = 1.0  # relative size after downsampling
    noise: float = 0.0  # standard deviation, of 0..255
    jpeg: int = 0  # quality; 0: no compression
    seed: int = 0  # of the noise

    def colour(self, plan: ClipPlan) -> None:
        """Add the colour transform to a plan."""
        count = plan.num_frames
        plan.recolour(np.broadcast_to(self.linear, (count, 3, 3)), np.broadcast_to(self.offset, (count, 3)))

    def degrade(self, clip: np.ndarray) -> None:
        """Blur, downsample, add noise and compress uint8 (T, 3, H, W), RGB, in place."""
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
    """Draws the degradation of a clip (``INPUT.LOOKS``)."""

    prob: float  # probability that a clip is degraded, apart from greyscale
    grey: float  # probability

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Looks:
        """
        Raises:
            UserError: if a probability is out of range.
        """
        keys = cfg.INPUT.LOOKS
        for name in ("PROB", "GREY"):
            if not 0 <= keys[name] <= 1:
                raise UserError(f"INPUT.LOOKS.{name}: {keys[name]} found; a probability from 0 to 1 expected")
        return cls(prob=keys.PROB, grey=keys.GREY)

    def __call__(self, rng: np.random.Generator) -> Look | None:
        """Draw the degradation of a clip; None: no degradation."""
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
            factor = rng.uniform(*_CONTRAST)
            level = rng.uniform(90, 160)  # the grey level that stays unchanged
            linear, offset = factor * linear, offset + (1 - factor) * level
        if brightness:
            factor = np.exp(rng.uniform(*np.log(_BRIGHTNESS)))
            linear, offset = factor * linear, factor * offset
        return Look(
            linear,
            offset,
            blur=rng.uniform(*_BLUR) if blur else 0.0,
            resolution=rng.uniform(_RESOLUTION, 1) if resolution else 1.0,
            noise=rng.uniform(0, _NOISE) if noise else 0.0,
            jpeg=int(rng.integers(_JPEG, 100)) if jpeg else 0,
            seed=int(rng.integers(2**31)),
        )
