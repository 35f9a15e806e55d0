# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A clip plan applied to stored frames and masks.

Shape shorthand:
    T: frames of the clip
    H, W: size of a stored frame in pixels
    h, w: size of the augmented frame in pixels
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import pycocotools.mask as mask_util

from ausm_d2.data.augmentation.plan import ClipPlan, scaling
from ausm_d2.masks.rle import StoredMask, cut_out


def _reduction(matrix: np.ndarray) -> int:
    """Integer factor to shrink by (area average) before bilinear sampling: 2 at half the size, and so on."""
    scale = math.sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))
    return max(1, int(1 / scale + 1e-6))


def _shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean of each ``factor`` x ``factor`` block from the top left; incomplete blocks are padded by replication."""
    height, width = image.shape[:2]
    below, right = -height % factor, -width % factor
    if below or right:
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = ((width + right) // factor, (height + below) // factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _centred(matrix: np.ndarray) -> np.ndarray:
    """(3, 3) -> (2, 3) for OpenCV, whose 0 is the middle of the first pixel."""
    centred = matrix[:2].copy()
    centred[:, 2] += matrix[:2, :2].sum(axis=1) / 2 - 0.5
    return centred


def _sample(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: tuple[float, ...]) -> np.ndarray:
    """Bilinear samples of ``image``, ``size`` = (h, w); ``fill`` outside of it."""
    if image.ndim == 3:  # OpenCV turns four channels faster than three
        image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    sampled = cv2.warpAffine(
        image, _centred(matrix), size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )
    return sampled if image.ndim == 2 else cv2.cvtColor(sampled, cv2.COLOR_RGBA2RGB)


def _warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: tuple[float, ...]) -> np.ndarray:
    """Resample uint8 (H, W, 3) to ``size`` (h, w); ``fill`` outside of the image. Whole pixels are only copied."""
    factor = _reduction(matrix)
    if factor > 1:
        image, matrix = _shrink(image, factor), matrix @ scaling(factor, factor)
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


def _surrounded(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], blur: float) -> np.ndarray:
    """Resample uint8 (H, W, 3) to ``size`` (h, w); around it is its mirror image, blurred by so many pixels."""
    factor = _reduction(matrix)
    if factor > 1:
        image, matrix = _shrink(image, factor), matrix @ scaling(factor, factor)
    matrix = _centred(matrix)
    drawn = cv2.warpAffine(image, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    inside = np.full(image.shape[:2], 255, np.uint8)
    inside = cv2.warpAffine(inside, matrix, size[::-1], flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    around = cv2.GaussianBlur(drawn, (0, 0), blur)
    cv2.copyTo(drawn, inside, around)
    return around


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
    if plan.surroundings is not None:
        image = _surrounded(image, plan.matrices[t], plan.size, plan.surroundings)
    elif plan.moves(t):
        image = _warp(image, plan.matrices[t], plan.size, fill)
    sources = plan.sources(t)
    if sources is not None:
        image = cv2.remap(image, *sources, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
    return image if plan.colours is None else cv2.transform(image, plan.colours[t])


def render_mask(mask: StoredMask, stored_size: tuple[int, int], plan: ClipPlan, t: int, target: np.ndarray) -> bool:
    """Draw the mask of frame t of the plan into ``target``, bool (h, w), all False; only where it has anything.

    Polygons are transformed and rasterised at the new size; bitmaps are resampled like pixels and thresholded at 0.5.

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
    """:func:`render_mask` without the warp."""
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
    if factor > 1:  # aligned with the blocks that the image is shrunk by, and padded like them at its borders
        before = (x % factor, y % factor)
        after = [
            0 if start + length == full else -(start + length) % factor
            for start, length, full in zip((x, y), part.shape, stored_size[::-1], strict=True)
        ]
        part = cv2.copyMakeBorder(part, before[0], after[0], before[1], after[1], cv2.BORDER_CONSTANT, value=0)
        part, x, y = _shrink(part, factor), x // factor, y // factor
        matrix = matrix @ scaling(factor, factor)
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
    if matrix is None:  # identical to COCO's tools
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
    """Left, top, right, bottom of the pixels around ``points`` (P, 2), with a margin of one, clipped to (h, w)."""
    low, high = np.floor(points.min(axis=0)) - 1, np.ceil(points.max(axis=0)) + 1
    left, top = np.maximum(low, 0).astype(int)
    right, bottom = np.minimum(high, size[::-1]).astype(int)
    return int(left), int(top), int(right), int(bottom)
