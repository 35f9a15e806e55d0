# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Augmentation of clips: first planned for all frames, then applied once per frame to pixels and masks alike.

An augmentation changes a :class:`ClipPlan`: one geometric matrix and one colour matrix per frame. The composed plan is
rendered in a single pass, so that masks are decoded only where the output shows them and nothing is resampled twice.

Shape shorthand:
    T: frames of the clip
    H, W: size of a stored frame in pixels
    h, w: size of the augmented frame in pixels

Coordinates are continuous: pixel (row i, column j) covers [j, j + 1) x [i, i + 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.config import CfgNode

from ausm_d2.data.video import StoredMask
from ausm_d2.errors import UserError

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, for RGB


@dataclass
class ClipPlan:
    """What to do with the frames of a clip."""

    matrices: np.ndarray  # (T, 3, 3) float64, homogeneous, from stored to augmented coordinates (x, y)
    size: tuple[int, int]  # (h, w)
    colours: np.ndarray | None = None  # (T, 3, 4) float64: augmented RGB = [:, :3] @ RGB + [:, 3]; None: unchanged

    @classmethod
    def identity(cls, num_frames: int, size: tuple[int, int]) -> ClipPlan:
        """The plan that leaves T frames of ``size`` (H, W) as they are."""
        return cls(np.broadcast_to(np.eye(3), (num_frames, 3, 3)), size)

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.matrices)

    def transform(self, matrix: np.ndarray, size: tuple[int, int] | None = None) -> None:
        """Append a matrix (3, 3) or (T, 3, 3); ``size`` (h, w) is the frame size after it, if it changes."""
        self.matrices = matrix @ self.matrices
        self.size = size or self.size

    def recolour(self, linear: np.ndarray, offset: np.ndarray) -> None:
        """Append RGB -> linear @ RGB + offset, with (T, 3, 3) and (T, 3)."""
        if self.colours is None:
            self.colours = np.concatenate([linear, offset[..., None]], axis=-1)
            return
        self.colours = linear @ self.colours
        self.colours[..., 3] += offset


class Augmentation:
    """Changes a plan in place."""

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        raise NotImplementedError


def _scaling(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])


def _translation(x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
    """(3, 3) for scalars, (T, 3, 3) for (T,) arrays."""
    x, y = np.broadcast_arrays(x, y)
    matrix = np.broadcast_to(np.eye(3), (*x.shape, 3, 3)).copy()
    matrix[..., 0, 2], matrix[..., 1, 2] = x, y
    return matrix


class ResizeShortestEdge(Augmentation):
    """Scale so that the shorter side has one of ``sizes`` (drawn per clip) and the longer one at most ``max_size``."""

    def __init__(self, sizes: Sequence[int], max_size: int, sampling: str = "choice") -> None:
        """``sampling``: "choice" of ``sizes``, or any size in the "range" of the two; "..._by_clip" means the same."""
        self.sampling = sampling.removesuffix("_by_clip")
        if self.sampling not in ("choice", "range") or (self.sampling == "range" and len(sizes) != 2) or not sizes:
            raise UserError(f"INPUT.MIN_SIZE_TRAIN(_SAMPLING): cannot draw a size by {sampling!r} from {list(sizes)}")
        self.sizes = list(sizes)
        self.max_size = max_size

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        if self.sampling == "range":
            short = int(rng.integers(self.sizes[0], self.sizes[1] + 1))
        else:
            short = self.sizes[int(rng.integers(len(self.sizes)))]
        height, width = plan.size
        scale = min(short / min(height, width), self.max_size / max(height, width))
        new = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        if new != plan.size:
            plan.transform(_scaling(new[1] / width, new[0] / height), new)


class RandomFlip(Augmentation):
    """Mirror the whole clip left to right (or top to bottom)."""

    def __init__(self, prob: float = 0.5, vertical: bool = False) -> None:
        self.prob = prob
        self.vertical = vertical

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        if rng.random() < self.prob:
            matrix = np.eye(3)
            axis = 1 if self.vertical else 0
            matrix[axis, axis], matrix[axis, 2] = -1.0, plan.size[0] if self.vertical else plan.size[1]
            plan.transform(matrix)


class RandomCrop(Augmentation):
    """Cut a window of one size; it may drift over the clip, in a straight line and by whole pixels."""

    def __init__(self, kind: str, size: Sequence[float], drift: float = 0.0) -> None:
        """
        Args:
            kind: Detectron2's INPUT.CROP.TYPE: "absolute_range" (smallest, largest side in pixels), "absolute"
                (height, width), "relative" (of the height, of the width), "relative_range" (those up to 1).
            size: two numbers, read as ``kind`` says.
            drift: largest way of the window over the clip, relative to its own size.
        """
        if kind not in ("absolute_range", "absolute", "relative", "relative_range") or len(size) != 2:
            raise UserError(
                f"INPUT.CROP.TYPE: {kind!r} with SIZE {list(size)} is not one of Detectron2's kinds of crop"
            )
        self.kind = kind
        self.size = size
        self.drift = drift

    def _window(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        a, b = self.size
        if self.kind == "absolute_range":
            low, high = int(a), int(b)
            sides = [int(rng.integers(min(side, low), min(side, high) + 1)) for side in (height, width)]
            return sides[0], sides[1]
        if self.kind == "absolute":
            return min(height, int(a)), min(width, int(b))
        if self.kind == "relative_range":
            a, b = a + rng.random() * (1 - a), b + rng.random() * (1 - b)
        return max(1, int(height * a + 0.5)), max(1, int(width * b + 0.5))

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        window = self._window(*plan.size, rng)
        path = np.linspace(0.0, 1.0, plan.num_frames)
        starts = []
        for full, cut in zip(plan.size, window, strict=True):
            first = rng.integers(full - cut + 1)
            last = np.clip(first + rng.uniform(-self.drift, self.drift) * cut, 0, full - cut)
            starts.append(np.round(first + (last - first) * path))
        plan.transform(_translation(-starts[1], -starts[0]), window)


class RandomRotation(Augmentation):
    """Turn the frames about one point; the angles are sorted over the clip, in either direction (VITA, GenVIS)."""

    def __init__(self, degrees: float = 15.0, centre: tuple[float, float] = (0.4, 0.6)) -> None:
        """Angles in [-degrees, degrees]; the centre in the given range of both sides, relative. No expansion."""
        self.degrees = degrees
        self.centre = centre

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        angles = np.sort(rng.uniform(-self.degrees, self.degrees, plan.num_frames))
        if rng.random() < 0.5:
            angles = angles[::-1]
        y, x = rng.uniform(*self.centre, size=2) * plan.size
        cos, sin = np.cos(np.deg2rad(angles)), np.sin(np.deg2rad(angles))
        turn = np.zeros((plan.num_frames, 3, 3))
        turn[:, 0, 0], turn[:, 0, 1], turn[:, 1, 0], turn[:, 1, 1], turn[:, 2, 2] = cos, -sin, sin, cos, 1.0
        plan.transform(_translation(x, y) @ turn @ _translation(-x, -y))


class CropScalePath(Augmentation):
    """Pan and zoom: a window of the frame's shape moves and scales evenly from one place to another."""

    def __init__(self, smallest: float = 0.6) -> None:
        """``smallest``: least side of the window, relative to the frame's."""
        self.smallest = smallest

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        path = np.linspace(0.0, 1.0, plan.num_frames)
        first, last = np.log(rng.uniform(self.smallest, 1.0, size=2))
        side = np.exp(first + (last - first) * path)
        height, width = plan.size
        (y0, x0), (y1, x1) = rng.random((2, 2))
        y = (y0 + (y1 - y0) * path) * (1 - side) * height
        x = (x0 + (x1 - x0) * path) * (1 - side) * width
        zoom = np.zeros((plan.num_frames, 3, 3))
        zoom[:, 0, 0] = zoom[:, 1, 1] = 1 / side
        zoom[:, 2, 2] = 1.0
        plan.transform(zoom @ _translation(-x, -y))


class LargeScaleJitter(Augmentation):
    """Scale to fit a square of ``size``, times a factor drawn per clip, then cut or pad to that square."""

    def __init__(self, size: int = 1024, min_scale: float = 0.1, max_scale: float = 2.0) -> None:
        self.size = size
        self.min_scale = min_scale
        self.max_scale = max_scale

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        scale = rng.uniform(self.min_scale, self.max_scale) * self.size / max(plan.size)
        new = [max(1, int(side * scale + 0.5)) for side in plan.size]
        y, x = (int(rng.integers(max(side - self.size, 0) + 1)) for side in new)
        resize = _scaling(new[1] / plan.size[1], new[0] / plan.size[0])
        plan.transform(_translation(-x, -y) @ resize, (self.size, self.size))


class ColourJitter(Augmentation):
    """Brightness, contrast and saturation, as one matrix; within the clip they go evenly from one value to another."""

    def __init__(
        self,
        kinds: Sequence[str] = ("brightness", "contrast", "saturation"),
        low: float = 0.9,
        high: float = 1.1,
        drift: bool = False,
        grey: float = 116.0,
    ) -> None:
        """``drift``: draw the clip's first and last value apart; ``grey``: the level that contrast leaves alone."""
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
                linear = linear + (1 - factor) * _LUMA
            plan.recolour(linear, offset)


class RandomApply(Augmentation):
    """Apply all of ``augmentations`` with probability ``prob``, or none."""

    def __init__(self, prob: float, augmentations: Sequence[Augmentation]) -> None:
        self.prob = prob
        self.augmentations = augmentations

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        if rng.random() < self.prob:
            for augmentation in self.augmentations:
                augmentation(plan, rng)


_COLOURS = ("brightness", "contrast", "saturation")
_PATHS = {"rotation": RandomRotation, "crop_scale": CropScalePath}


def build_augmentations(cfg: CfgNode, pseudo: bool) -> list[Augmentation]:
    """The augmentations of real clips, or of the clips made of one image (``pseudo``), as INPUT.* says."""
    keys = cfg.INPUT.PSEUDO if pseudo else cfg.INPUT
    where = "INPUT.PSEUDO" if pseudo else "INPUT"
    unknown = set(keys.AUGMENTATIONS) - {*_COLOURS, *_PATHS}
    if unknown:
        raise UserError(f"{where}.AUGMENTATIONS: {sorted(unknown)} unknown; known: {[*_COLOURS, *_PATHS]}")
    flips = {"none": None, "horizontal": False, "flip_by_clip": False, "vertical": True}
    if cfg.INPUT.RANDOM_FLIP not in flips:
        raise UserError(f"INPUT.RANDOM_FLIP: {cfg.INPUT.RANDOM_FLIP!r} found, one of {list(flips)} expected")

    chain: list[Augmentation] = []
    if keys.CROP.ENABLED:
        resize = ResizeShortestEdge(cfg.INPUT.CROP.RESIZE, keys.MAX_SIZE_TRAIN * 4)
        crop = RandomCrop(keys.CROP.TYPE, keys.CROP.SIZE, cfg.INPUT.CROP.DRIFT)
        chain.append(RandomApply(cfg.INPUT.CROP.PROB, [resize, crop]))
    if pseudo and cfg.INPUT.LSJ_AUG.ENABLED:
        lsj = cfg.INPUT.LSJ_AUG
        chain.append(LargeScaleJitter(lsj.IMAGE_SIZE, lsj.MIN_SCALE, lsj.MAX_SCALE))
    else:
        chain.append(ResizeShortestEdge(keys.MIN_SIZE_TRAIN, keys.MAX_SIZE_TRAIN, keys.MIN_SIZE_TRAIN_SAMPLING))
    chain += [_PATHS[name]() for name in keys.AUGMENTATIONS if name in _PATHS]
    vertical = flips[cfg.INPUT.RANDOM_FLIP]
    if vertical is not None:
        chain.append(RandomFlip(vertical=vertical))
    colours = [name for name in keys.AUGMENTATIONS if name in _COLOURS]
    if colours:
        chain.append(ColourJitter(colours, drift=pseudo))
    return chain


# Rendering


def _warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: tuple[float, ...]) -> np.ndarray:
    """Resample uint8 (H, W) or (H, W, 3) to ``size`` (h, w); outside of the image is ``fill``.

    Whole pixels are copied, a change of size alone is one area-averaging resize; everything else is, where it shrinks,
    one such resize and then a bilinear warp of what is left, so that nothing aliases and the geometry stays exact.
    """
    height, width = image.shape[:2]
    if matrix[0, 1] == 0 and matrix[1, 0] == 0:
        if matrix[0, 0] < 0:  # mirrored: the same as mirroring what is not
            flipped = np.diag([-1.0, 1.0, 1.0])
            flipped[0, 2] = size[1]
            return cv2.flip(_warp(image, flipped @ matrix, size, fill), 1)
        if matrix[1, 1] < 0:
            flipped = np.diag([1.0, -1.0, 1.0])
            flipped[1, 2] = size[0]
            return cv2.flip(_warp(image, flipped @ matrix, size, fill), 0)
        scale_x, scale_y, x, y = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
        whole = (round(height * scale_y), round(width * scale_x))
        exact = abs(height * scale_y - whole[0]) < 1e-6 and abs(width * scale_x - whole[1]) < 1e-6
        if exact and abs(x - round(x)) < 1e-6 and abs(y - round(y)) < 1e-6:
            if whole != (height, width):
                shrinks = scale_x < 1 or scale_y < 1
                image = cv2.resize(image, whole[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
            return _window(image, round(-x), round(-y), size, fill)
    scale = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    if scale < 0.9:
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        matrix = matrix @ _scaling(width / small[0], height / small[1])
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    # OpenCV puts coordinate 0 into the middle of the first pixel.
    centred = _translation(-0.5, -0.5) @ matrix @ _translation(0.5, 0.5)
    return cv2.warpAffine(
        image, centred[:2], size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )


def _window(image: np.ndarray, x: int, y: int, size: tuple[int, int], fill: tuple[float, ...]) -> np.ndarray:
    """Cut ``size`` (h, w) at column x, row y (a view where it lies inside of the image), padded with ``fill``."""
    height, width = image.shape[:2]
    if x == 0 and y == 0 and (height, width) == size:
        return image
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + size[0], height), min(x + size[1], width)
    inside = image[top : max(bottom, top), left : max(right, left)]
    if inside.shape[:2] == size:
        return inside
    padded = np.empty((*size, *image.shape[2:]), np.uint8)
    padded[:] = fill if image.ndim == 3 else fill[0]
    if inside.size:
        padded[top - y : top - y + inside.shape[0], left - x : left - x + inside.shape[1]] = inside
    return padded


def render_frame(image: np.ndarray, plan: ClipPlan, t: int, fill: tuple[float, float, float]) -> np.ndarray:
    """Frame t of the plan from the stored frame (H, W, 3): uint8 (h, w, 3), possibly ``image`` itself."""
    image = _warp(image, plan.matrices[t], plan.size, fill)
    return image if plan.colours is None else cv2.transform(image, plan.colours[t])


def render_mask(mask: StoredMask, stored_size: tuple[int, int], plan: ClipPlan, t: int) -> np.ndarray:
    """Mask of frame t of the plan, bool (h, w), from a stored mask of a frame of ``stored_size`` (H, W).

    Polygons are transformed and rasterised at the new size; bitmaps go the way of the pixels and count from a half on.

    Raises:
        UserError: a mask that cannot be decoded or whose size is not the frame's.
    """
    matrix = plan.matrices[t]
    if isinstance(mask, list):
        moved = [_move(polygon, matrix) for polygon in mask]
        rles = mask_util.frPyObjects(moved, *plan.size)
        return mask_util.decode(mask_util.merge(rles)).view(bool)
    bitmap = decode_mask(mask, stored_size)
    if plan.size == stored_size and np.array_equal(matrix, np.eye(3)):
        return bitmap
    image = np.ascontiguousarray(bitmap).view(np.uint8) * np.uint8(255)
    return _warp(image, matrix, plan.size, (0.0,)) > 127


def _move(polygon: list[float], matrix: np.ndarray) -> list[float]:
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    return (points @ matrix[:2, :2].T + matrix[:2, 2]).ravel().tolist()


def decode_mask(mask: StoredMask, size: tuple[int, int]) -> np.ndarray:
    """A stored mask as bool (H, W); ``size`` is the (H, W) it must have.

    Raises:
        UserError: a mask that cannot be decoded or whose size is another.
    """
    if isinstance(mask, np.ndarray):
        found, bitmap = mask.shape, mask
    elif isinstance(mask, list):
        return mask_util.decode(mask_util.merge(mask_util.frPyObjects(mask, *size))).view(bool)
    else:
        found = tuple(mask["size"])
        if found == size:
            compressed = mask_util.frPyObjects(mask, *size) if isinstance(mask["counts"], list) else mask
            try:
                bitmap = mask_util.decode(compressed).view(bool)
            except ValueError as error:
                raise UserError(f"an RLE mask that cannot be decoded ({error})") from None
    if found != size:
        raise UserError(f"a mask of {found[0]} x {found[1]} (height x width) in a frame of {size[0]} x {size[1]}")
    return bitmap
