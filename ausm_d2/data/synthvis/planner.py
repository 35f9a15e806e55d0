# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Samples the motion of the layers and the camera of a procedural video.

Shape shorthand:
    T: frames of the video
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ausm_d2.data.synthvis.scene import (
    HEIGHT,
    MIN_PART,
    MIN_VISIBLE,
    WIDTH,
    Camera,
    Layer,
    Spec,
    cast_of,
    generator,
    outline,
)

_SIZE = np.array([WIDTH, HEIGHT], float)


_Knot = tuple[float, float, float]  # time in frames, x, y in pixels


def _smooth(path: np.ndarray, rounds: int = 2) -> np.ndarray:
    """Smooth a (T, ...) path; its ends are fixed."""
    for _ in range(rounds):
        path = path.copy()
        path[1:-1] = 0.25 * path[:-2] + 0.5 * path[1:-1] + 0.25 * path[2:]
    return path


def _through(knots: Sequence[_Knot], frames: int, rounds: int = 2) -> np.ndarray:
    """(T, 2) path through knots, smoothed."""
    table = np.array(sorted(knots))
    times = np.arange(frames)
    return _smooth(np.stack([np.interp(times, table[:, 0], table[:, axis]) for axis in (1, 2)], 1), rounds)


def oscillation(rng: np.random.Generator, frames: int, size: float) -> np.ndarray:
    """(T,) slow oscillation of amplitude ``size`` with a random phase and period."""
    return size * np.sin(rng.uniform(0, 2 * math.pi) + np.arange(frames) * rng.uniform(0.15, 0.45))


class Planner:
    """Samples the layers and the camera of one video."""

    def __init__(self, spec: Spec, index: int) -> None:
        self.spec = spec
        self.cast = cast_of(spec, index)
        self.rng = generator(spec, index, 1)
        self.paths: list[np.ndarray] = []  # (T, 2) each, of the objects planned so far

    def plan(self) -> tuple[list[Layer], Camera]:
        """Layers, back to front, and the camera."""
        rng, frames = self.rng, self.spec.num_frames
        pan_speed = rng.uniform(0.3, 1.8) * np.array([rng.choice((-1, 1)), rng.uniform(-0.5, 0.5)])
        layers: list[Layer] = []
        crowd = max(0, len(self.cast.classes) - 3)
        for i, shape in enumerate(self.cast.classes):
            if i in self.cast.small:
                area = rng.uniform(92, 140)
            else:
                area = math.exp(rng.uniform(math.log(300), math.log(1250 - 150 * crowd)))
            radius = math.sqrt(area / outline(shape)[1])
            occluder = None
            if i in self.cast.hidden:
                if radius < 16 and rng.random() < 0.75:
                    path, occluder = self._behind(radius, pan_speed)
                else:
                    path = self._outside(radius)
            elif i in self.cast.late:
                path = self._late(radius)
            else:
                path = self._roam(radius)
            self.paths.append(path)
            wave = oscillation(rng, frames, rng.uniform(0.03, 0.16))
            layer = Layer(
                instance_id=i + 1,
                shape=shape,
                least=max(MIN_VISIBLE, MIN_PART * area),
                half=(radius, radius),
                stretch=math.exp(rng.uniform(-0.12, 0.12)),
                centre=path,
                scale=np.exp(wave - wave.mean()),
                angle=rng.uniform(0, 2 * math.pi) + np.arange(frames) * rng.uniform(-0.07, 0.07),
            )
            depth = int(rng.integers(len(layers) + 1))
            layers.insert(depth, layer)
            if occluder is not None:  # anywhere in front of the object that it hides
                layers.insert(int(rng.integers(depth, len(layers))) + 1, occluder)
        camera = self._camera(pan_speed)
        middle = (_SIZE - 1) / 2
        cos, sin = np.cos(camera.angle), np.sin(camera.angle)
        for layer in layers:
            x, y = (layer.centre - middle).T
            seen = np.stack([x * cos - y * sin, x * sin + y * cos], 1) * camera.zoom[:, None]
            layer.centre = seen + middle
            layer.velocity = np.gradient(layer.centre, axis=0)
            layer.scale = layer.scale * camera.zoom
            layer.angle = layer.angle + camera.angle
        return layers, camera

    def _camera(self, pan_speed: np.ndarray) -> Camera:
        rng, frames = self.rng, self.spec.num_frames
        wander = np.stack([oscillation(rng, frames, 5.0), oscillation(rng, frames, 3.0)], 1)
        zoom = oscillation(rng, frames, rng.uniform(0, 0.09))
        angle = oscillation(rng, frames, rng.uniform(0, 0.06))
        return Camera(np.arange(frames)[:, None] * pan_speed + wander, np.exp(zoom - zoom.min()), angle)

    def _place(self, time: int, radius: float, near: tuple[np.ndarray, float] | None = None) -> _Knot:
        """A knot at ``time``: of five random points, the one farthest from the other objects.

        Args:
            near: centre and half side of the square that the points are drawn from; None: the whole frame.
        """
        low = np.minimum(0.12 * _SIZE, 0.5 * radius + 4)
        high = _SIZE - low
        points = self.rng.uniform(low, high, size=(5, 2))
        if near is not None:
            points = np.clip(near[0] + self.rng.uniform(-near[1], near[1], size=(5, 2)), low, high)
        if self.paths:
            others = np.stack([path[min(max(time, 0), len(path) - 1)] for path in self.paths])
            best = np.linalg.norm(points[:, None] - others, axis=2).min(1).argmax()
        else:
            best = 0
        return float(time), float(points[best, 0]), float(points[best, 1])

    def _roam(self, radius: float) -> np.ndarray:
        frames = self.spec.num_frames
        first = self._place(0, radius)
        reach = self.rng.uniform(2, 18)
        middle = self._place(frames // 2, radius, (np.array(first[1:]), reach))
        last = self._place(frames - 1, radius, (np.array(middle[1:]), reach))
        return _through([first, middle, last], frames)

    def _edge(self, radius: float) -> tuple[np.ndarray, np.ndarray, float]:
        """A random point on the frame's border, the outward direction there, and the distance from the border at which
        an object is out of sight."""
        side = int(self.rng.integers(4))
        outward = np.array([(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)][side])
        along = _SIZE * self.rng.uniform(0.25, 0.75)
        point = np.where(outward < 0, 0.0, np.where(outward > 0, _SIZE, along))
        return point, outward, 0.8 * radius + 3

    def _outside(self, radius: float) -> np.ndarray:
        """A path that leaves the frame and returns across the same border, close by."""
        frames = self.spec.num_frames
        gone = int(self.rng.integers(2, 4))
        leave = int(self.rng.integers(3, max(4, frames - gone - 6)))
        point, outward, out = self._edge(radius)
        back = point + np.abs(outward[::-1]) * self.rng.uniform(-14, 14)
        inside, away = -0.8 * radius - 3, out
        step = max(2, round((away - inside) / 9))
        knots = [
            self._place(min(0, leave - step - 2), radius, (point - outward * 25, 25)),
            (leave - step, *(point + outward * inside)),
            (leave, *(point + outward * away)),
            (leave + gone - 1, *(back + outward * away)),
            (leave + gone - 1 + step, *(back + outward * inside)),
            self._place(max(frames - 1, leave + gone + step + 3), radius, (back - outward * 25, 25)),
        ]
        return _through(knots, frames, 1)

    def _late(self, radius: float) -> np.ndarray:
        """A path that enters the frame after a few frames and stays."""
        frames = self.spec.num_frames
        enter = int(self.rng.integers(3, max(4, frames // 2)))
        point, outward, out = self._edge(radius)
        outside = point + outward * out
        arrival = self._place(min(frames - 1, enter + 3), radius, (point - outward * (radius + 8), 10))
        rest = self._place(frames - 1 + 4, radius, (np.array(arrival[1:]), 25))
        return _through([(-1, *outside), (enter - 1, *outside), arrival, rest], frames, 0)

    def _behind(self, radius: float, pan_speed: np.ndarray) -> tuple[np.ndarray, Layer]:
        """A path behind a pillar or a block, and that occluder, which is static or moves."""
        rng, frames = self.rng, self.spec.num_frames
        gone = int(rng.integers(3, 5))
        time = int(rng.integers(4, max(5, frames - 5))) + 0.5 * (gone % 2 == 0)
        axis = 0 if radius > 9 or rng.random() < 0.75 else 1  # of the motion
        speed = rng.uniform(3.6, 5.6)
        share = rng.uniform(0.45, 1.0)  # the object's share of the relative speed
        sense = rng.choice((-1.0, 1.0))
        meet = _SIZE * rng.uniform(0.35, 0.65, size=2)
        forward = np.eye(2)[axis] * sense
        drift = forward[::-1] * rng.uniform(-0.6, 0.6)
        reach = 4 + gone / 2
        move = forward * speed * share + drift
        before, after = meet - move * reach, meet + move * reach
        knots = [
            (time - reach, *before),
            (time + reach, *after),
            self._place(int(min(-1, time - reach - 3)), radius, (before, 12)),
            self._place(int(max(frames, time + reach + 3)), radius, (after, 12)),
        ]
        path = _through(knots, frames, 1)
        width = 0.75 * radius + 0.5 * speed * (gone - 1) + 2  # half of the occluder's width
        length = 130.0 if rng.random() < 0.5 else radius * rng.uniform(1.5, 2.2) + 6
        lag = (np.arange(frames) - time)[:, None]
        occluder = Layer(
            instance_id=0,
            shape=-1,
            least=0,
            half=(width, length) if axis == 0 else (length, width),
            stretch=1.0,
            centre=meet - lag * forward * speed * (1 - share),
            scale=np.ones(frames),
            angle=np.full(frames, rng.uniform(-0.08, 0.08)),
        )
        if share > 0.8:  # a static occluder: the background moves with it
            pan_speed[:] = -forward * speed * (1 - share) * rng.uniform(0.7, 1.0)
        return path, occluder
