# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Procedural videos with exact masks: every frame is a function of (seed, video, frame), computed when it is asked for.

Shape shorthand:
    H, W: frame size in pixels
    T: frames of the video
    S, R: height and width of a sprite in pixels

A video is a plan (who moves where) and textures, both made once when its first frame is asked for, and a renderer of
single frames. Layers are sprites with premultiplied alpha over a background seen by a moving camera. A pixel belongs to
the topmost layer that covers at least half of it; an object with fewer than ``MIN_VISIBLE`` such pixels, or less than
``MIN_PART`` of it in sight, is neither drawn nor labelled in that frame, so that image and masks always agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

import cv2
import numpy as np

from ausm_d2.data.video import Instance, VideoRecord
from ausm_d2.errors import UserError

SPLITS = {"train": (0, 20000), "val": (1, 160)}  # seed and number of videos
NUM_FRAMES = 18
HEIGHT, WIDTH = 96, 160
CLASSES = ("disc", "square", "triangle", "star", "ring", "cross")
CLASS_COLORS = ((230, 80, 60), (70, 140, 230), (90, 190, 80), (240, 200, 50), (170, 90, 210), (60, 200, 200))
MIN_VISIBLE = 12  # pixels, and
MIN_PART = 0.1  # of an object's area at scale 1; with less in sight it counts as hidden

_SIZE = np.array([WIDTH, HEIGHT], float)
_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
_RING_HOLE = 0.52  # inner over outer radius
_SHUTTER = 0.6  # part of the time between two frames during which the shutter is open
_BLUR_FROM = 2.5  # pixels a frame; slower layers are rendered sharp


@dataclass(frozen=True)
class Spec:
    """What the bytes of a video depend on, besides its index."""

    seed: int
    num_frames: int = NUM_FRAMES


@dataclass(eq=False)
class _Layer:
    """One sprite's way through the video, camera included. Arrays are indexed by frame (T)."""

    instance_id: int  # 0: an occluder, which has no label
    shape: int  # index into CLASSES; -1: a rectangle
    least: float  # visible pixels, below which the layer is not drawn
    half: tuple[float, float]  # half width and half height at scale 1, pixels
    stretch: float  # x by this factor, y by its inverse
    centre: np.ndarray  # (T, 2) x, y in pixels
    scale: np.ndarray
    angle: np.ndarray  # radians
    velocity: np.ndarray = field(init=False)  # (T, 2) pixels a frame


@dataclass
class _Camera:
    """View of the background; zoom and angle act on the objects too."""

    pan: np.ndarray  # (T, 2) pixels
    zoom: np.ndarray  # (T,) >= 1, so that what is outside stays outside
    angle: np.ndarray  # (T,) radians


def _generator(spec: Spec, index: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([spec.seed, index, purpose])


def _stratum(spec: Spec, index: int, dimension: int) -> float:
    """A number in [0, 1) that covers the interval evenly over consecutive indices (additive recurrence), so that
    any few dozen videos of any seed have nearly the same statistics."""
    step = (0.6180339887498949, 0.4142135623730951, 0.7320508075688772, 0.2360679774997898)[dimension]
    return (0.5 + spec.seed * 0.7548776662466927 + dimension * 0.31 + (index + 1) * step) % 1.0


@dataclass(frozen=True)
class _Cast:
    """How many objects a video has, their classes, and what is asked of them."""

    classes: tuple[int, ...]
    small: frozenset[int]
    hidden: frozenset[int]  # vanish for some frames and come back
    late: frozenset[int]


def _pick(quantile: float, shares: Sequence[float]) -> int:
    """Index of the share that ``quantile`` falls into; the shares sum to 1 (the last takes what is left)."""
    return int(np.searchsorted(np.cumsum(shares[:-1]), quantile, side="right"))


def _cast(spec: Spec, index: int) -> _Cast:
    rng = _generator(spec, index, 0)
    count = 2 + _pick(_stratum(spec, index, 0), (0.15, 0.42, 0.28, 0.12, 0.03))
    order = [int(i) for i in rng.permutation(count)]
    hidden = _pick(_stratum(spec, index, 1), (0.20, 0.64, 0.16))
    late = _pick(_stratum(spec, index, 2), (0.50, 0.50))
    small = _pick(_stratum(spec, index, 3), (0.44, 0.50, 0.06))
    return _Cast(
        classes=tuple(int(c) for c in rng.integers(len(CLASSES), size=count)),
        small=frozenset(int(i) for i in rng.permutation(count)[:small]),
        hidden=frozenset(order[:hidden]),
        late=frozenset(order[::-1][: min(late, count - hidden)]),
    )


@cache
def _outline(shape: int) -> tuple[np.ndarray, float]:
    """Polygon (N, 2) of a class inside the unit circle and the area of the class (the ring's hole taken out)."""
    name = CLASSES[shape]
    if name == "cross":
        arm = 0.34
        reach = math.sqrt(1 - arm * arm)
        end = np.array([(arm, arm), (arm, reach), (-arm, reach)])  # of one arm; the others are turned by 90 degrees
        points = np.concatenate([end, end[:, ::-1] * (-1, 1), -end, end[:, ::-1] * (1, -1)])
    else:
        corners = {"disc": 40, "ring": 40, "square": 4, "triangle": 3, "star": 10}[name]
        radius = np.where(np.arange(corners) % 2, 0.45, 1.0) if name == "star" else np.ones(corners)
        turn = np.arange(corners) * (2 * math.pi / corners) - math.pi / 2
        points = np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)
    x, y = points.T
    area = 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
    return points, area * (1 - _RING_HOLE**2) if name == "ring" else area


# ---------------------------------------------------------------------------------------------------------- the plan


_Knot = tuple[float, float, float]  # time in frames, x, y in pixels


def _smooth(path: np.ndarray, rounds: int = 2) -> np.ndarray:
    """Round the corners of a (T, ...) path; the ends stay where they are."""
    for _ in range(rounds):
        path = path.copy()
        path[1:-1] = 0.25 * path[:-2] + 0.5 * path[1:-1] + 0.25 * path[2:]
    return path


def _through(knots: Sequence[_Knot], frames: int, rounds: int = 2) -> np.ndarray:
    """(T, 2) path through knots."""
    table = np.array(sorted(knots))
    times = np.arange(frames)
    return _smooth(np.stack([np.interp(times, table[:, 0], table[:, axis]) for axis in (1, 2)], 1), rounds)


def _wave(rng: np.random.Generator, frames: int, size: float) -> np.ndarray:
    """(T,) slow oscillation of amplitude ``size`` with a random phase and period."""
    return size * np.sin(rng.uniform(0, 2 * math.pi) + np.arange(frames) * rng.uniform(0.15, 0.45))


class _Planner:
    """Samples the layers and the camera of one video."""

    def __init__(self, spec: Spec, index: int) -> None:
        self.spec = spec
        self.cast = _cast(spec, index)
        self.rng = _generator(spec, index, 1)
        self.paths: list[np.ndarray] = []  # (T, 2) each, of the objects planned so far

    def plan(self) -> tuple[list[_Layer], _Camera]:
        """Layers from the farthest to the nearest, and the camera."""
        rng, frames = self.rng, self.spec.num_frames
        pan_speed = rng.uniform(0.3, 1.8) * np.array([rng.choice((-1, 1)), rng.uniform(-0.5, 0.5)])
        layers: list[_Layer] = []
        crowd = max(0, len(self.cast.classes) - 3)
        for i, shape in enumerate(self.cast.classes):
            if i in self.cast.small:
                area = rng.uniform(92, 140)
            else:
                area = math.exp(rng.uniform(math.log(300), math.log(1250 - 150 * crowd)))
            radius = math.sqrt(area / _outline(shape)[1])
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
            wave = _wave(rng, frames, rng.uniform(0.03, 0.16))
            layer = _Layer(
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
            if occluder is not None:  # somewhere in front of what it hides
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

    def _camera(self, pan_speed: np.ndarray) -> _Camera:
        rng, frames = self.rng, self.spec.num_frames
        wander = np.stack([_wave(rng, frames, 5.0), _wave(rng, frames, 3.0)], 1)
        zoom = _wave(rng, frames, rng.uniform(0, 0.09))
        angle = _wave(rng, frames, rng.uniform(0, 0.06))
        return _Camera(np.arange(frames)[:, None] * pan_speed + wander, np.exp(zoom - zoom.min()), angle)

    def _place(self, time: int, radius: float, near: tuple[np.ndarray, float] | None = None) -> _Knot:
        """A waypoint at ``time``, of a few candidates (``near``: a point and how far around it) the one farthest from
        the other objects."""
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
        """A point on the frame's border, the outward direction there, and how far out an object is out of sight."""
        side = int(self.rng.integers(4))
        outward = np.array([(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)][side])
        along = _SIZE * self.rng.uniform(0.25, 0.75)
        point = np.where(outward < 0, 0.0, np.where(outward > 0, _SIZE, along))
        return point, outward, 0.8 * radius + 3

    def _outside(self, radius: float) -> np.ndarray:
        """Leaves over a border, comes back over it a little aside."""
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
        """Comes in over a border after a few frames and stays."""
        frames = self.spec.num_frames
        enter = int(self.rng.integers(3, max(4, frames // 2)))
        point, outward, out = self._edge(radius)
        outside = point + outward * out
        arrival = self._place(min(frames - 1, enter + 3), radius, (point - outward * (radius + 8), 10))
        rest = self._place(frames - 1 + 4, radius, (np.array(arrival[1:]), 25))
        return _through([(-1, *outside), (enter - 1, *outside), arrival, rest], frames, 0)

    def _behind(self, radius: float, pan_speed: np.ndarray) -> tuple[np.ndarray, _Layer]:
        """Passes behind a pillar or a block, which stands in the scene or moves itself."""
        rng, frames = self.rng, self.spec.num_frames
        gone = int(rng.integers(3, 5))
        time = int(rng.integers(4, max(5, frames - 5))) + 0.5 * (gone % 2 == 0)
        axis = 0 if radius > 9 or rng.random() < 0.75 else 1  # along which the object passes
        speed = rng.uniform(3.6, 5.6)
        share = rng.uniform(0.45, 1.0)  # of the relative speed, the object's part
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
        width = 0.75 * radius + 0.5 * speed * (gone - 1) + 2  # half of it
        length = 130.0 if rng.random() < 0.5 else radius * rng.uniform(1.5, 2.2) + 6
        lag = (np.arange(frames) - time)[:, None]
        occluder = _Layer(
            instance_id=0,
            shape=-1,
            least=0,
            half=(width, length) if axis == 0 else (length, width),
            stretch=1.0,
            centre=meet - lag * forward * speed * (1 - share),
            scale=np.ones(frames),
            angle=np.full(frames, rng.uniform(-0.08, 0.08)),
        )
        if share > 0.8:  # it stands in the scene: it and the background then move alike
            pan_speed[:] = -forward * speed * (1 - share) * rng.uniform(0.7, 1.0)
        return path, occluder


# -------------------------------------------------------------------------------------------------------- the pixels


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) RGB in [0, 255]."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return 255 * value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))


def _blotches(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """(S, R) smooth noise in [0, 1] with structures of about ``cell`` pixels."""
    grid = rng.random((int(shape[0] / cell) + 2, int(shape[1] / cell) + 2), dtype=np.float32)
    return cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def _pattern(rng: np.random.Generator, shape: tuple[int, int], period: float) -> np.ndarray:
    """(S, R) float32 in [0, 1]: stripes, checks, dots, blotches or a plain surface."""
    kind = int(rng.integers(5))
    if kind == 4:
        return np.full(shape, 0.3, np.float32)
    if kind == 3:
        return _blotches(rng, shape, 0.7 * period)
    turn, phase = rng.uniform(0, math.pi, size=2)
    y, x = np.ogrid[: shape[0], : shape[1]]
    step = 2 * math.pi / period
    u = np.sin(((x * math.cos(turn) + y * math.sin(turn)) * step + phase).astype(np.float32))
    if kind == 0:
        return np.clip(0.5 + 1.5 * u, 0, 1)
    v = np.sin(((y * math.cos(turn) - x * math.sin(turn)) * step + phase).astype(np.float32))
    return np.clip(0.5 + 3 * u * v, 0, 1) if kind == 1 else np.clip(2 * (u + v) - 1, 0, 1)


def _mix(field: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(S, R, 3) float32 between two colours."""
    return first.astype(np.float32) + field[..., None] * (second - first).astype(np.float32)


def _sprite(layer: _Layer, colour: np.ndarray) -> np.ndarray:
    """(S, R, 4) uint8, premultiplied: ``colour`` (S, R, 3) cut to the layer's shape."""
    rows, columns = colour.shape[:2]
    fine, shift = 4, 4
    canvas = np.zeros((rows * fine, columns * fine), np.uint8)
    half = np.array(layer.half)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float) if layer.shape < 0 else _outline(layer.shape)[0]

    def place(points: np.ndarray) -> np.ndarray:
        where = (points * half + np.array([columns, rows]) / 2) * fine - 0.5
        return np.round(where * 2**shift).astype(np.int32)

    cv2.fillPoly(canvas, [place(corners)], 255, shift=shift)
    if layer.shape >= 0 and CLASSES[layer.shape] == "ring":
        cv2.fillPoly(canvas, [place(corners * _RING_HOLE)], 0, shift=shift)
    alpha = cv2.resize(canvas, (columns, rows), interpolation=cv2.INTER_AREA)
    cut = np.clip(colour, 0, 255) * (alpha[..., None] * np.float32(1 / 255))
    return np.dstack([np.round(cut).astype(np.uint8), alpha])


@cache
def _noise_table() -> np.ndarray:
    """(256, 320, 3) uint8 Gaussian noise around 128, standard deviation 32; frames cut windows of it."""
    noise = np.random.default_rng(0).normal(128, 32, size=(256, 320, 3))
    return np.clip(np.round(noise), 0, 255).astype(np.uint8)


class _Video:
    """One video: plan and textures made once, frames rendered on demand."""

    def __init__(self, spec: Spec, index: int) -> None:
        self.spec, self.index = spec, index
        self.layers, self.camera = _Planner(spec, index).plan()
        rng = _generator(spec, index, 2)
        count = sum(layer.instance_id > 0 for layer in self.layers)
        hues = (rng.random() + (np.arange(count + 1) + rng.uniform(-0.2, 0.2, count + 1)) / (count + 1)) % 1.0
        # the scene and every object have their own part of the colour circle: contrast, and who is who after hiding
        hue, object_hues = float(hues[0]), [float(h) for h in rng.permutation(hues[1:])]
        self.background = self._scene(rng, hue)
        self.sprites = [
            _sprite(
                layer, self._surface(rng, layer, object_hues[layer.instance_id - 1] if layer.instance_id else None, hue)
            )
            for layer in self.layers
        ]
        frames = spec.num_frames
        self.gain = 1 + _wave(rng, frames, rng.uniform(0.0, 0.18))
        if rng.random() < 0.25:  # the light is switched
            self.gain[int(rng.integers(2, max(3, frames))) :] *= rng.choice((0.72, 1.25))
        self.noise = float(rng.uniform(1.0, 6.0)) / 32
        table = _noise_table()
        self.noise_at = rng.integers((table.shape[0] - HEIGHT + 1, table.shape[1] - WIDTH + 1), size=(frames, 2))

    def _scene(self, rng: np.random.Generator, hue: float) -> np.ndarray:
        """(S, R, 3) uint8 background, larger than the frame."""
        shape = (int(HEIGHT * 1.5), int(WIDTH * 1.5))
        value = rng.uniform(0.3, 0.75)
        dark = _rgb(hue, rng.uniform(0.0, 0.4), value - rng.uniform(0.1, 0.25))
        light = _rgb((hue + rng.uniform(-0.05, 0.05)) % 1, rng.uniform(0.0, 0.4), value + rng.uniform(0.05, 0.25))
        coarse, medium, fine = (_blotches(rng, shape, cell) for cell in (rng.uniform(30, 60), rng.uniform(9, 16), 3.5))
        field = 0.4 * coarse + 0.4 * medium + 0.4 * fine - 0.1
        field += rng.uniform(0.1, 0.4) * (_pattern(rng, shape, rng.uniform(8, 28)) - 0.5)
        return np.clip(np.round(_mix(field, dark, light)), 0, 255).astype(np.uint8)

    @staticmethod
    def _surface(rng: np.random.Generator, layer: _Layer, hue: float | None, scene_hue: float) -> np.ndarray:
        """(S, R, 3) float32 texture of a layer; an occluder (``hue`` None) is made of what the scene is made of."""
        columns, rows = (2 * math.ceil(h) + 4 for h in layer.half)
        period = rng.uniform(0.45, 1.1) * min(layer.half)
        if hue is None:
            value = rng.uniform(0.2, 0.8)
            saturation = rng.uniform(0.0, 0.25)
            dark = _rgb(scene_hue, saturation, value)
            light = _rgb(scene_hue, saturation, min(1.0, value + rng.uniform(0.1, 0.2)))
            return _mix(0.6 * _blotches(rng, (rows, columns), 5) + 0.4 * _pattern(rng, (rows, columns), 9), dark, light)
        value = rng.uniform(0.55, 1.0)
        saturation = rng.uniform(0.6, 1.0)
        first = _rgb(hue, saturation, value)
        # Faint enough that the outline, which tells the class, is the strongest edge of an object.
        second = _rgb(
            (hue + rng.uniform(-0.03, 0.03)) % 1, saturation * rng.uniform(0.8, 1.0), value * rng.uniform(0.75, 0.92)
        )
        if rng.random() < 0.5:
            first, second = second, first
        shade = np.linspace(1.1, 0.85, rows, dtype=np.float32)[:, None, None]
        return _mix(_pattern(rng, (rows, columns), max(4.0, period)), first, second) * shade

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
        noise = _noise_table()[y : y + HEIGHT, x : x + WIDTH]
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

    def _patch(self, layer: _Layer, sprite: np.ndarray, frame: int) -> tuple[slice, slice, np.ndarray] | None:
        """The part of the frame that a layer can touch and its premultiplied pixels there, uint8 (h, w, 4).
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
            # the average of sub-frames: both ends of the exposure, and its middle twice
            patch = cv2.addWeighted(patch, 0.5, cv2.addWeighted(warp(-0.5), 0.5, warp(0.5), 0.5, 0), 0.5, 0)
        return slice(top, bottom), slice(left, right), patch


# ------------------------------------------------------------------------------------------------ what others work with


@lru_cache(maxsize=4)
def _video(spec: Spec, index: int) -> _Video:
    return _Video(spec, index)


@lru_cache(maxsize=64)
def _rendered(spec: Spec, index: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
    return _video(spec, index).render(frame)


@dataclass(frozen=True)
class SynthFrames:
    """``FrameSource`` of one procedural video."""

    spec: Spec
    index: int

    @property
    def names(self) -> list[str]:
        """Frame names (T): "00000", "00001", ..."""
        return [f"{frame:05d}" for frame in range(len(self))]

    def __len__(self) -> int:
        return self.spec.num_frames

    def __getitem__(self, index: int) -> np.ndarray:
        """Frame ``index`` as uint8 (H, W, 3), RGB.

        Raises:
            IndexError: the video has no such frame.
        """
        return _rendered(self.spec, self.index, _checked(self.spec, index))[0].copy()


@dataclass(frozen=True)
class SynthMasks:
    """``MaskSource`` of one procedural video: exact masks of what is visible."""

    spec: Spec
    index: int

    def ids(self, index: int) -> np.ndarray:
        """Instance id of every pixel of frame ``index``, uint8 (H, W), 0 where there is none."""
        return _rendered(self.spec, self.index, _checked(self.spec, index))[1].copy()

    def read(self, index: int) -> dict[int, np.ndarray]:
        """Bool masks (H, W) of frame ``index`` by instance id; a hidden instance has no entry.

        Raises:
            IndexError: the video has no such frame.
        """
        owner = _rendered(self.spec, self.index, _checked(self.spec, index))[1]
        return {int(i): owner == i for i in np.flatnonzero(np.bincount(owner.ravel())[1:]) + 1}


def _checked(spec: Spec, frame: int) -> int:
    if not 0 <= frame < spec.num_frames:
        raise IndexError(f"frame {frame} of a video of {spec.num_frames} frames")
    return frame


class SynthVis(Sequence[VideoRecord]):
    """Procedural videos as records; record i is the same whatever was asked for before, in any process.

    Args:
        seed: any non-negative integer; other seeds, other videos of the same distribution.
        num_videos: how many of the endless row of videos to show.
        num_frames: T, at least 2.
        complete: drop instances that are visible in no frame, and fill ``prompt_frames`` with each one's first visible
            frame. It renders every video once, so it is for evaluation sets.

    Raises:
        UserError: a negative seed, or fewer than 2 frames.
    """

    def __init__(self, seed: int, num_videos: int, num_frames: int = NUM_FRAMES, *, complete: bool = False) -> None:
        if seed < 0:
            raise UserError(f"synthvis: seed {seed}, expected 0 or more")
        if num_frames < 2:
            raise UserError(f"synthvis: videos of {num_frames} frames, expected 2 or more")
        self.spec = Spec(seed, num_frames)
        self.num_videos = num_videos
        self.complete = complete

    def __len__(self) -> int:
        return self.num_videos

    def __getitem__(self, index: int) -> VideoRecord:  # type: ignore[override]
        if not 0 <= index < self.num_videos:
            raise IndexError(f"video {index} of {self.num_videos}")
        masks = SynthMasks(self.spec, index)
        instances = [Instance(i + 1, category) for i, category in enumerate(_cast(self.spec, index).classes)]
        first: dict[int, int] | None = None
        if self.complete:
            first = {}
            for frame in range(self.spec.num_frames):
                for instance_id in masks.read(frame):
                    first.setdefault(instance_id, frame)
            instances = [instance for instance in instances if instance.instance_id in first]
        return VideoRecord(
            video_id=index,
            name=f"synth_{index:05d}",
            height=HEIGHT,
            width=WIDTH,
            frames=SynthFrames(self.spec, index),
            instances=instances,
            masks=masks,
            prompt_frames=first,
        )

    def __iter__(self) -> Iterator[VideoRecord]:
        return (self[index] for index in range(self.num_videos))
