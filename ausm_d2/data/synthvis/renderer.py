# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The pixels of a procedural video.

Layers are sprites with premultiplied alpha over a background seen by a moving camera. A pixel belongs to the topmost
layer that covers at least half of it; an object with fewer than ``MIN_VISIBLE`` such pixels, or less than ``MIN_PART``
of it in sight, is neither drawn nor labelled in that frame, so that image and masks always agree.

Shape shorthand:
    H, W: frame size in pixels
    S, R: height and width of a texture or sprite in pixels
    h, w: height and width of the part of the frame that a layer covers
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from ausm_d2.data.synthvis.planner import Planner, oscillation
from ausm_d2.data.synthvis.scene import HEIGHT, WIDTH, Layer, Spec, generator
from ausm_d2.data.synthvis.textures import blotches, mix, noise_table, pattern, rgb, sprite_of

_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
_SHUTTER = 0.6  # exposure time, relative to the frame interval
_BLUR_FROM = 2.5  # pixels per frame; slower layers have no motion blur


class Video:
    """One video: plan and textures made once, frames rendered on demand."""

    def __init__(self, spec: Spec, index: int) -> None:
        self.spec, self.index = spec, index
        self.layers, self.camera = Planner(spec, index).plan()
        rng = generator(spec, index, 2)
        count = sum(layer.instance_id > 0 for layer in self.layers)
        hues = (rng.random() + (np.arange(count + 1) + rng.uniform(-0.2, 0.2, count + 1)) / (count + 1)) % 1.0
        # The scene and each object have separate hues: for contrast, and to tell objects apart after an occlusion.
        hue, object_hues = float(hues[0]), [float(h) for h in rng.permutation(hues[1:])]
        self.background = self._scene(rng, hue)
        self.sprites = [
            sprite_of(
                layer, self._surface(rng, layer, object_hues[layer.instance_id - 1] if layer.instance_id else None, hue)
            )
            for layer in self.layers
        ]
        frames = spec.num_frames
        self.gain = 1 + oscillation(rng, frames, rng.uniform(0.0, 0.18))
        if rng.random() < 0.25:  # brightness changes at once
            self.gain[int(rng.integers(2, max(3, frames))) :] *= rng.choice((0.72, 1.25))
        self.noise = float(rng.uniform(1.0, 6.0)) / 32
        table = noise_table()
        self.noise_at = rng.integers((table.shape[0] - HEIGHT + 1, table.shape[1] - WIDTH + 1), size=(frames, 2))

    def _scene(self, rng: np.random.Generator, hue: float) -> np.ndarray:
        """(S, R, 3) uint8 background, larger than the frame."""
        shape = (int(HEIGHT * 1.5), int(WIDTH * 1.5))
        value = rng.uniform(0.3, 0.75)
        dark = rgb(hue, rng.uniform(0.0, 0.4), value - rng.uniform(0.1, 0.25))
        light = rgb((hue + rng.uniform(-0.05, 0.05)) % 1, rng.uniform(0.0, 0.4), value + rng.uniform(0.05, 0.25))
        coarse, medium, fine = (blotches(rng, shape, cell) for cell in (rng.uniform(30, 60), rng.uniform(9, 16), 3.5))
        field = 0.4 * coarse + 0.4 * medium + 0.4 * fine - 0.1
        field += rng.uniform(0.1, 0.4) * (pattern(rng, shape, rng.uniform(8, 28)) - 0.5)
        return np.clip(np.round(mix(field, dark, light)), 0, 255).astype(np.uint8)

    @staticmethod
    def _surface(rng: np.random.Generator, layer: Layer, hue: float | None, scene_hue: float) -> np.ndarray:
        """(S, R, 3) float32 texture of a layer. An occluder (``hue`` None) has the hue of the scene."""
        columns, rows = (2 * math.ceil(h) + 4 for h in layer.half)
        period = rng.uniform(0.45, 1.1) * min(layer.half)
        if hue is None:
            value = rng.uniform(0.2, 0.8)
            saturation = rng.uniform(0.0, 0.25)
            dark = rgb(scene_hue, saturation, value)
            light = rgb(scene_hue, saturation, min(1.0, value + rng.uniform(0.1, 0.2)))
            return mix(0.6 * blotches(rng, (rows, columns), 5) + 0.4 * pattern(rng, (rows, columns), 9), dark, light)
        value = rng.uniform(0.55, 1.0)
        saturation = rng.uniform(0.6, 1.0)
        first = rgb(hue, saturation, value)
        # Low contrast, so that the strongest edge of an object is its outline, which tells the class.
        second = rgb(
            (hue + rng.uniform(-0.03, 0.03)) % 1, saturation * rng.uniform(0.8, 1.0), value * rng.uniform(0.75, 0.92)
        )
        if rng.random() < 0.5:
            first, second = second, first
        shade = np.linspace(1.1, 0.85, rows, dtype=np.float32)[:, None, None]
        return mix(pattern(rng, (rows, columns), max(4.0, period)), first, second) * shade

    def render(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame ``frame`` as uint8 (H, W, 3), RGB, and the instance id of every pixel as uint8 (H, W), 0 = none."""
        owner = np.zeros((HEIGHT, WIDTH), np.uint8)
        free = np.ones((HEIGHT, WIDTH), bool)
        drawn: list[tuple[slice, slice, np.ndarray]] = []
        for layer, sprite in zip(reversed(self.layers), reversed(self.sprites), strict=True):
            found = self._patch(layer, sprite, frame)
            if found is None:
                continue
            rows, columns, patch = found
            covers = patch[..., 3] > 127
            if layer.instance_id:
                visible = covers & free[rows, columns]
                if np.count_nonzero(visible) < layer.least:
                    continue
                owner[rows, columns][visible] = layer.instance_id
            free[rows, columns][covers] = False
            drawn.append(found)
        image = self._view(frame)
        for rows, columns, patch in reversed(drawn):
            through = cv2.cvtColor(255 - patch[..., 3], cv2.COLOR_GRAY2RGB)
            under = cv2.multiply(image[rows, columns], through, scale=1 / 255)
            image[rows, columns] = cv2.add(under, patch[..., :3])
        y, x = self.noise_at[frame]
        noise = noise_table()[y : y + HEIGHT, x : x + WIDTH]
        return cv2.addWeighted(image, float(self.gain[frame]), noise, self.noise, -128 * self.noise), owner

    def _view(self, frame: int) -> np.ndarray:
        rows, columns = self.background.shape[:2]
        zoom, angle = float(self.camera.zoom[frame]), float(self.camera.angle[frame])
        cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
        x, y = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
        pan_x, pan_y = self.camera.pan[frame]
        matrix = np.array(
            [
                [cos, sin, columns / 2 + pan_x - cos * x - sin * y],
                [-sin, cos, rows / 2 + pan_y + sin * x - cos * y],
            ]
        )
        return cv2.warpAffine(self.background, matrix, (WIDTH, HEIGHT), flags=_WARP, borderMode=cv2.BORDER_REFLECT_101)

    def _patch(self, layer: Layer, sprite: np.ndarray, frame: int) -> tuple[slice, slice, np.ndarray] | None:
        """The rows and columns of the frame that a layer may cover, and its premultiplied RGBA there, uint8 (h, w, 4).
        None: out of sight."""
        x, y = layer.centre[frame].tolist()
        vx, vy = (_SHUTTER * layer.velocity[frame]).tolist()
        scale, angle = float(layer.scale[frame]), float(layer.angle[frame])
        cos, sin = math.cos(angle), math.sin(angle)
        a, b = scale * layer.stretch, scale / layer.stretch
        half_x, half_y = layer.half[0] * a + 1, layer.half[1] * b + 1
        reach_x = abs(cos) * half_x + abs(sin) * half_y + abs(vx) / 2
        reach_y = abs(sin) * half_x + abs(cos) * half_y + abs(vy) / 2
        left, right = max(0, math.floor(x - reach_x)), min(WIDTH, math.ceil(x + reach_x) + 1)
        top, bottom = max(0, math.floor(y - reach_y)), min(HEIGHT, math.ceil(y + reach_y) + 1)
        if left >= right or top >= bottom:
            return None
        m00, m01, m10, m11 = cos / a, sin / a, -sin / b, cos / b
        rows, columns = sprite.shape[:2]

        def warp(shift: float) -> np.ndarray:
            dx, dy = left - x - shift * vx, top - y - shift * vy
            matrix = np.array(
                [
                    [m00, m01, m00 * dx + m01 * dy + (columns - 1) / 2],
                    [m10, m11, m10 * dx + m11 * dy + (rows - 1) / 2],
                ]
            )
            return cv2.warpAffine(sprite, matrix, (right - left, bottom - top), flags=_WARP)

        patch = warp(0.0)
        if math.hypot(vx, vy) > _SHUTTER * _BLUR_FROM:
            # mean of sub-frames: start and end of the exposure, and twice its middle
            patch = cv2.addWeighted(patch, 0.5, cv2.addWeighted(warp(-0.5), 0.5, warp(0.5), 0.5, 0), 0.5, 0)
        return slice(top, bottom), slice(left, right), patch
