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

from ausm_d2.errors import UserError
from ausm_d2.masks.rle import StoredMask, cut_out

_IDENTITY = np.eye(3)
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, for RGB


@dataclass
class ClipPlan:
    """What to do with the frames of a clip."""

    matrices: np.ndarray  # (T, 3, 3) float64, homogeneous, from stored to augmented coordinates (x, y)
    size: tuple[int, int]  # (h, w)
    colours: np.ndarray | None = None  # (T, 3, 4) float64: augmented RGB = [:, :3] @ RGB + [:, 3]; None: unchanged
    # (T, rows, columns, 2) float32, after the matrices: by how much (x, y), in parts of the frame's sides, a pixel is
    # fetched from elsewhere; of a coarse grid over the frame, smooth between. None: stays.
    warps: np.ndarray | None = None

    @classmethod
    def identity(cls, num_frames: int, size: tuple[int, int]) -> ClipPlan:
        """The plan that leaves T frames of ``size`` (H, W) as they are."""
        return cls(np.broadcast_to(np.eye(3), (num_frames, 3, 3)), size)

    def __post_init__(self) -> None:
        self._stored_size = self.size
        self._sources: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # kept: every mask of a frame asks for them

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.matrices)

    def moves(self, t: int) -> bool:
        """Whether the geometry of frame t changes at all."""
        return self.size != self._stored_size or not np.array_equal(self.matrices[t], _IDENTITY)

    def sources(self, t: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Where the pixels of frame t come from after its matrix: float32 columns and rows (h, w), or None."""
        if self.warps is None:
            return None
        if t in self._sources:
            return self._sources[t]
        height, width = self.size
        away = cv2.resize(self.warps[t], (width, height), interpolation=cv2.INTER_CUBIC)
        columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        self._sources[t] = columns + away[..., 0] * width, rows + away[..., 1] * height
        return self._sources[t]

    def transform(self, matrix: np.ndarray, size: tuple[int, int] | None = None) -> None:
        """Append a matrix (3, 3) or (T, 3, 3); ``size`` (h, w) is the frame size after it, if it changes."""
        self.matrices = matrix @ self.matrices
        self.size = size or self.size
        self._sources.clear()

    def warp(self, warps: np.ndarray) -> None:
        """Set ``warps`` (T, rows, columns, 2)."""
        self.warps = warps
        self._sources.clear()

    def recolour(self, linear: np.ndarray, offset: np.ndarray) -> None:
        """Append RGB -> linear @ RGB + offset, with (T, 3, 3) and (T, 3)."""
        if self.colours is None:
            self.colours = np.concatenate([linear, offset[..., None]], axis=-1)
            return
        self.colours = linear @ self.colours
        self.colours[..., 3] += offset


class Augmentation:
    """Changes a plan in place."""

    pasted_too = False  # it also acts, drawn anew, on objects of another image that are pasted into the clip

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


class SoftWarp(Augmentation):
    """Deforms the frames as soft things move: every part on a way of its own, to and fro.

    It is applied after all matrices, wherever in a chain it stands.
    """

    pasted_too = True

    def __init__(self, largest: float = 0.05, cells: tuple[int, int] = (3, 7)) -> None:
        """
        Args:
            largest: standard deviation of the way of a grid point, relative to the frame's sides, in the softest clip.
            cells: least and most grid points along a side.
        """
        self.largest = largest
        self.cells = cells

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        rows, columns = rng.integers(self.cells[0], self.cells[1] + 1, size=2)
        # A grid as fine as it can be moves less, so that no part is folded over another.
        reach = rng.random() * self.largest * self.cells[0] / max(rows, columns)
        ways, phases, speeds = rng.normal(size=(rows, columns, 2)), *rng.random((2, rows, columns, 1))
        path = np.linspace(0.0, 1.0, plan.num_frames)[:, None, None, None]
        swing = np.sin(2 * np.pi * (phases + speeds * path)) - np.sin(2 * np.pi * phases)
        plan.warp((reach * ways * swing).astype(np.float32))


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
_PATHS = {"rotation": RandomRotation, "crop_scale": CropScalePath, "warp": SoftWarp}


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


def _reduction(matrix: np.ndarray) -> int:
    """By how much to shrink before sampling bilinearly, as a whole factor: 2 from half the size on, and so on."""
    scale = math.sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))
    return max(1, int(1 / scale + 1e-6))


def _shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks of ``factor`` x ``factor`` pixels, counted from the upper left; the last ones are filled up."""
    height, width = image.shape[:2]
    below, right = -height % factor, -width % factor
    if below or right:
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = ((width + right) // factor, (height + below) // factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _sample(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: tuple[float, ...]) -> np.ndarray:
    """Bilinear samples of ``image``, ``size`` = (h, w); ``fill`` outside of it."""
    if image.ndim == 3:  # OpenCV turns four channels faster than three
        image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    centred = matrix[:2].copy()  # OpenCV's 0 is the middle of the first pixel
    centred[:, 2] += matrix[:2, :2].sum(axis=1) / 2 - 0.5
    sampled = cv2.warpAffine(
        image, centred, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )
    return sampled if image.ndim == 2 else cv2.cvtColor(sampled, cv2.COLOR_RGBA2RGB)


def _warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: tuple[float, ...]) -> np.ndarray:
    """Resample uint8 (H, W, 3) to ``size`` (h, w); ``fill`` outside of the image. Whole pixels are only copied."""
    factor = _reduction(matrix)
    if factor > 1:
        image, matrix = _shrink(image, factor), matrix @ _scaling(factor, factor)
    if matrix[0, 1] == 0 and matrix[1, 0] == 0 and matrix[1, 1] > 0:
        if matrix[0, 0] < 0:  # mirrored: the mirror image of what is not
            mirror = np.array([[-1.0, 0, size[1]], [0, 1, 0], [0, 0, 1]])
            return cv2.flip(_warp(image, mirror @ matrix, size, fill), 1)
        scaled = np.array([image.shape[0] * matrix[1, 1], image.shape[1] * matrix[0, 0]])
        start = -matrix[1::-1, 2]
        whole, offset = np.round(scaled).astype(int), np.round(start).astype(int)
        if max(np.abs(scaled - whole).max(), np.abs(start - offset).max()) < 1e-6:
            if tuple(whole) != image.shape[:2]:
                image = cv2.resize(image, (int(whole[1]), int(whole[0])), interpolation=cv2.INTER_LINEAR)
            return _window(image, int(offset[1]), int(offset[0]), size, fill)
    return _sample(image, matrix, size, fill)


def _window(image: np.ndarray, x: int, y: int, size: tuple[int, int], fill: tuple[float, ...]) -> np.ndarray:
    """Cut ``size`` (h, w) at column x, row y (a view where it lies inside of the image), padded with ``fill``."""
    height, width = image.shape[:2]
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + size[0], height), min(x + size[1], width)
    inside = image[top : max(bottom, top), left : max(right, left)]
    if inside.shape[:2] == size:
        return inside
    padded = np.empty((*size, 3), np.uint8)
    padded[:] = fill
    if inside.size:
        padded[top - y : top - y + inside.shape[0], left - x : left - x + inside.shape[1]] = inside
    return padded


def render_frame(image: np.ndarray, plan: ClipPlan, t: int, fill: tuple[float, float, float]) -> np.ndarray:
    """Frame t of the plan from the stored frame (H, W, 3): uint8 (h, w, 3), possibly ``image`` itself."""
    if plan.moves(t):
        image = _warp(image, plan.matrices[t], plan.size, fill)
    sources = plan.sources(t)
    if sources is not None:
        image = cv2.remap(image, *sources, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
    return image if plan.colours is None else cv2.transform(image, plan.colours[t])


def render_mask(mask: StoredMask, stored_size: tuple[int, int], plan: ClipPlan, t: int, target: np.ndarray) -> bool:
    """Draw the mask of frame t of the plan into ``target``, bool (h, w), all False; only where it has anything.

    Polygons are moved and rasterised at the new size; bitmaps go the way of the pixels and count from a half on.

    Args:
        mask: of a frame of ``stored_size`` (H, W).

    Returns:
        Whether anything of it can be seen.

    Raises:
        UserError: a mask that cannot be read, or whose size is not the frame's.
    """
    seen = _draw_moved(mask, stored_size, plan, t, target)
    sources = plan.sources(t)
    if seen and sources is not None:
        target[:] = cv2.remap(target.view(np.uint8) * 255, *sources, cv2.INTER_LINEAR) > 127
        return bool(target.any())
    return seen


def _draw_moved(mask: StoredMask, stored_size: tuple[int, int], plan: ClipPlan, t: int, target: np.ndarray) -> bool:
    """What :func:`render_mask` does, but for the warp."""
    matrix = plan.matrices[t]
    if isinstance(mask, list):
        return _draw_polygons(mask, matrix if plan.moves(t) else None, target)
    part, x, y = cut_out(mask, stored_size)  # columns first, and so is what is made of it
    if not part.size:
        return False
    if not plan.moves(t):
        target[y : y + part.shape[1], x : x + part.shape[0]] = part.T > 0
        return True
    factor = _reduction(matrix)
    if factor > 1:  # in the blocks of pixels that the image is shrunk by; at its own ends, they are filled up likewise
        before = (x % factor, y % factor)
        after = [
            0 if start + length == full else -(start + length) % factor
            for start, length, full in zip((x, y), part.shape, stored_size[::-1], strict=True)
        ]
        part = cv2.copyMakeBorder(part, before[0], after[0], before[1], after[1], cv2.BORDER_CONSTANT, value=0)
        part, x, y = _shrink(part, factor), x // factor, y // factor
        matrix = matrix @ _scaling(factor, factor)
    width, height = part.shape
    corners = np.array([[x, y], [x + width, y], [x, y + height], [x + width, y + height]])
    left, top, right, bottom = _bounds(corners @ matrix[:2, :2].T + matrix[:2, 2], target.shape)
    if left >= right or top >= bottom:
        return False
    of_part = matrix[:, [1, 0, 2]]
    of_part[:2, 2] += matrix[:2, :2] @ (x, y) - (left, top)
    drawn = _sample(part, of_part, (bottom - top, right - left), (0.0,)) > 127
    target[top:bottom, left:right] = drawn
    return bool(drawn.any())


def _draw_polygons(polygons: list[list[float]], matrix: np.ndarray | None, target: np.ndarray) -> bool:
    if matrix is None:  # the very pixels that COCO's tools give
        target[:] = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, *target.shape)))
        return bool(target.any())
    moved = [np.reshape(polygon, (-1, 2)) @ matrix[:2, :2].T + matrix[:2, 2] for polygon in polygons]
    left, top, right, bottom = _bounds(np.concatenate(moved), target.shape)
    if left >= right or top >= bottom:
        return False
    shifted = [(points - (left, top)).ravel().tolist() for points in moved]
    rles = mask_util.frPyObjects(shifted, bottom - top, right - left)
    drawn = mask_util.decode(mask_util.merge(rles)).view(bool)
    target[top:bottom, left:right] = drawn
    return bool(drawn.any())


def _bounds(points: np.ndarray, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the whole pixels around ``points`` (P, 2), with one to spare, inside of (h, w)."""
    low, high = np.floor(points.min(axis=0)) - 1, np.ceil(points.max(axis=0)) + 1
    left, top = np.maximum(low, 0).astype(int)
    right, bottom = np.minimum(high, size[::-1]).astype(int)
    return int(left), int(top), int(right), int(bottom)
