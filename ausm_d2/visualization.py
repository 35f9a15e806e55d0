# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Draws masks over images and combines images. Works on plain arrays.

Shape shorthand:
    H, W: image size in pixels
    S: integer scale: the output has S * H rows and S * W columns
    N: masks
    C: colours
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from detectron2.utils.colormap import colormap

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_OPACITY = 0.45  # of the fill
_READABLE = 360  # short side that text and lines are designed for, pixels
_LARGE = 1920  # long side from which images are not enlarged, pixels
_TITLE = 28  # height of a title, pixels


@cache
def _palette() -> np.ndarray:
    """Detectron2's colours without dark, pale and nearly equal ones, ordered so that each is as different as possible
    from all before it: uint8 (C, 3), BGR."""
    colours = colormap(rgb=False)
    lab = cv2.cvtColor((colours / 255).astype(np.float32)[None], cv2.COLOR_BGR2LAB)[0]
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    vivid = (lightness > 35) & (lightness < 92) & (chroma > 35)
    colours, lab, order = colours[vivid], lab[vivid], [int(chroma[vivid].argmax())]
    while True:
        distance = np.linalg.norm(lab[:, None] - lab[order], axis=2).min(axis=1)
        if distance.max() < 20:
            return colours[order].round().astype(np.uint8)
        order.append(int(distance.argmax()))


def colour(track_id: int) -> tuple[int, int, int]:
    """The BGR colour of a track id (1 or more), the same in every image of every run."""
    palette = _palette()
    blue, green, red = palette[(track_id - 1) % len(palette)].tolist()
    return blue, green, red


def readable_scale(height: int, width: int) -> int:
    """The scale S at which text fits on a small image, without making it large."""
    return max(1, min(round(_READABLE / min(height, width)), _LARGE // max(height, width)))


def draw_masks(
    picture: np.ndarray,
    masks: np.ndarray | Sequence[np.ndarray],
    track_ids: Sequence[int],
    labels: Sequence[str] | None = None,
    *,
    scale: int = 1,
) -> np.ndarray:
    """Draw masks over an image: filled, outlined, labelled.

    Args:
        picture: uint8 (H, W, 3), BGR.
        masks: bool (N, H, W).
        track_ids: N ids, which choose the colours.
        labels: N texts; None: no text.
        scale: S.

    Returns:
        uint8 (S * H, S * W, 3), BGR; ``picture`` is not changed.
    """
    height, width = (side * scale for side in picture.shape[:2])
    canvas = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC) if scale > 1 else picture.copy()
    line = max(1, round(min(height, width) / _READABLE))
    corners: list[tuple[int, int] | None] = []  # of the largest part of each mask, for its label
    for mask, track_id in zip(masks, track_ids, strict=True):
        binary = np.ascontiguousarray(mask).view(np.uint8)
        x, y, columns, rows = cv2.boundingRect(binary)
        if not columns:
            corners.append(None)
            continue
        part = binary[y : y + rows, x : x + columns]
        x, y, columns, rows = (value * scale for value in (x, y, columns, rows))
        part = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_NEAREST)
        region = canvas[y : y + rows, x : x + columns]
        ink = tuple(_OPACITY * channel for channel in colour(track_id))
        cv2.copyTo(cv2.add(cv2.convertScaleAbs(region, alpha=1 - _OPACITY), (*ink, 0)), part, region)
        outline, _ = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
        cv2.drawContours(canvas, outline, -1, colour(track_id), line)
        corners.append(cv2.boundingRect(max(outline, key=cv2.contourArea))[:2])
    for corner, track_id, label in zip(corners, track_ids, labels or (), strict=False):
        if corner is not None:
            _write(canvas, label, corner, colour(track_id))
    return canvas


def _write(canvas: np.ndarray, text: str, corner: tuple[int, int], background: tuple[int, int, int]) -> None:
    """Write text on a coloured background, above ``corner`` (x, y) if there is room."""
    size = 0.4 * max(1.0, min(canvas.shape[:2]) / _READABLE)
    (width, height), below = cv2.getTextSize(text, _FONT, size, 1)
    left = max(0, min(corner[0], canvas.shape[1] - width))
    bottom = max(corner[1], height + below)
    cv2.rectangle(canvas, (left, bottom - height - below), (left + width - 1, bottom - 1), background, cv2.FILLED)
    blue, green, red = background
    ink = (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 110 else (255, 255, 255)
    cv2.putText(canvas, text, (left, bottom - below // 2 - 1), _FONT, size, ink, 1, cv2.LINE_AA)


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] = (), *, gap: int = 4) -> np.ndarray:
    """Arrange images in rows on white.

    Args:
        rows: uint8 (H, W, 3) BGR images, all of one size; rows may have different lengths.
        titles: text above each row; empty: none.
        gap: pixels between images.

    Returns:
        uint8, BGR.
    """
    height, width = rows[0][0].shape[:2]
    title = _TITLE if titles else 0
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (title + height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        y = gap + i * (title + height + gap)
        if titles:
            cv2.putText(sheet, titles[i], (gap, y + _TITLE - 10), _FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        for j, picture in enumerate(row):
            x = gap + j * (width + gap)
            sheet[y + title : y + title + height, x : x + width] = picture
    return sheet
