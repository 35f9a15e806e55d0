# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The separate parts of a mask.

Shape shorthand:
    H, W: size of the mask in pixels
"""

from __future__ import annotations

import cv2
import numpy as np


def label_parts(mask: np.ndarray, gap: float = 0.0) -> tuple[int, np.ndarray]:
    """Number the parts of a mask.

    Args:
        mask: bool (H, W).
        gap: components at most this many pixels apart belong to one part.

    Returns:
        The number of parts, and int32 (H, W): 0 outside the mask, otherwise the number of the part, from 1 on.
    """
    wide = mask.astype(np.uint8)
    radius = int(gap / 2)
    if radius > 0:
        wide = cv2.dilate(wide, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)))
    count, labels = cv2.connectedComponents(wide, connectivity=8)
    return count - 1, labels * mask
