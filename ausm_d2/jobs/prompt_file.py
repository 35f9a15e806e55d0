# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Prompts from files: a label picture.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import os

import numpy as np

from ausm_d2.errors import UserError
from ausm_d2.masks.png import MANY_IDS, VOID, edge_ids, read_labels, read_picture


def read_prompts(path: str | os.PathLike[str]) -> dict[int, np.ndarray]:
    """The objects of a label picture (pixel = object id; 0 and 255 alone: one object, id 1): bool (H, W) by id.

    Raises:
        UserError: no picture of that kind, one without objects, or one whose edges were smoothed.
    """
    labels = read_labels(path)
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    if not len(ids):
        raise UserError(f"{path}: the prompt is empty: every pixel is background")
    # Smoothed edges are lines of in-between values, which no object is made of.
    thin = len(edge_ids(labels))
    if 2 * thin > len(ids) and (len(ids) > MANY_IDS or (read_picture(path).values == VOID).sum() > counts.sum()):
        raise UserError(
            f"{path}: {len(ids)} object ids, {thin} of them on hardly any pixels: this looks like a mask with "
            "smoothed (antialiased) edges; every pixel must be 0 or the id of an object"
        )
    return {int(i): labels == i for i in ids}
