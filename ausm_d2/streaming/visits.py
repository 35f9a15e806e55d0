# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Order of the frames when the input is repeated (paper, Table 3 and Appendix A).

Shape shorthand:
    T: frames of the video
    H, W: frame size in pixels
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from ausm_d2.errors import UserError

_CROP = 0.9  # side of a traversal crop, relative to the image (Appendix A)


class Visit(NamedTuple):
    """One step of the stream."""

    frame: int  # index in the video
    counts: bool  # this output is the result of the frame
    corner: tuple[float, float] | None = None  # (y, x) of a 90 % crop, 0 or 1 each; None: the whole frame


def visits(length: int, *, repeat: int, spatial_traversal: bool) -> Iterator[Visit]:
    """The order in which the frames of a video enter the stream.

    A video is played forward, backward, forward, ... (I_1..I_T, I_{T-1}..I_1, I_2..I_T). An image is repeated, or
    traversed as (I, UL, UR, BR, BL, I). The last visit of every frame counts.

    Args:
        length: T.
        repeat: number of times the input is played; 1: plain streaming.
        spatial_traversal: traverse an image (T = 1) in each repetition.

    Raises:
        UserError: if ``repeat`` is below 1, or ``spatial_traversal`` is set for a video.
    """
    if repeat < 1:
        raise UserError(f"TEST.AUSM.REPEAT: {repeat}, expected 1 or more")
    if spatial_traversal and length > 1:
        raise UserError(f"TEST.AUSM.SPATIAL_TRAVERSAL is for images, this video has {length} frames")
    if length == 1:
        for turn in range(repeat):
            if spatial_traversal:
                yield Visit(0, False)
                for corner in ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0)):
                    yield Visit(0, False, corner)
            yield Visit(0, turn == repeat - 1)
        return
    order = list(range(length))
    for turn in range(1, repeat):
        order += range(length - 2, -1, -1) if turn % 2 else range(1, length)
    for i, frame in enumerate(order):
        yield Visit(frame, i >= len(order) - length)


def crop(frame: np.ndarray, corner: tuple[float, float]) -> np.ndarray:
    """A 90 % crop at a corner of (H, W, 3), resized to (H, W, 3)."""
    height, width = frame.shape[:2]
    rows, columns = round(height * _CROP), round(width * _CROP)
    y, x = round((height - rows) * corner[0]), round((width - columns) * corner[1])
    return cv2.resize(frame[y : y + rows, x : x + columns], (width, height), interpolation=cv2.INTER_LINEAR)
