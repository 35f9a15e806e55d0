# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Masks as pictures: pixel = object id.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write

VOID = 255  # of 8-bit pictures: belongs to no object


def _davis_palette() -> list[int]:
    """256 colours, R G B R G B ...: the bits of an id, three at a time, from the highest bit of R, G and B down."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(24):
        colours[:, bit % 3] |= ((ids >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours.ravel().tolist()


_PALETTE = _davis_palette()


def encode_mask_png(id_map: np.ndarray) -> bytes:
    """A PNG of the object ids of all pixels, integers (H, W), 0 where there is none.

    Up to id 254 it is a picture with DAVIS's palette (255 means void); with larger ids, a 16-bit grey one.

    Raises:
        ValueError: ids that no PNG holds.
    """
    smallest, largest = int(id_map.min()), int(id_map.max())
    if smallest < 0 or largest > 65535:
        raise ValueError(f"object ids from {smallest} to {largest}, expected 0 to 65535 in a PNG")
    if largest < VOID:
        picture = Image.fromarray(id_map.astype(np.uint8))
        picture.putpalette(_PALETTE)
    else:
        picture = Image.fromarray(id_map.astype(np.uint16))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def write_mask_png(path: str | os.PathLike[str], id_map: np.ndarray) -> None:
    """Write the object ids of all pixels, integers (H, W), 0 where there is none; see ``encode_mask_png``.

    Raises:
        UserError: ids that no PNG holds.
    """
    try:
        content = encode_mask_png(id_map)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """Pixel values (H, W): uint8 of palette, grey and black and white pictures, int32 of 16-bit ones.

    Raises:
        UserError: it is missing, broken, or a picture in colours.
    """
    try:
        with open(path, "rb") as file:
            return decode_picture(file)
    except FileNotFoundError:
        raise UserError(f"{path}: the mask is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def decode_picture(file: BinaryIO) -> np.ndarray:
    """``read_picture`` of an open file.

    Raises:
        ValueError: it is broken, or a picture in colours.
    """
    try:
        with Image.open(file) as picture:
            picture.load()
            mode, values = picture.mode, np.asarray(picture)
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        raise ValueError("the mask cannot be decoded: it is no picture, or broken") from None
    if mode in ("LA", "La", "PA"):  # with transparency
        return values[..., 0]
    if mode == "1":
        return values.astype(np.uint8)
    if mode.startswith("I"):
        return values.astype(np.int32)
    if mode in ("RGB", "RGBA") and (values[..., :1] == values[..., 1:3]).all():  # grey, saved as colours
        return values[..., 0]
    if mode not in ("P", "L"):
        raise ValueError(f"a picture in colours (mode {mode}); a palette or grey one with pixel = id expected")
    return values


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """A label picture as integers (H, W): pixel = object id, 0 = background or void.

    8-bit: if its only values are 0 and 255, it holds one object, id 1; else 255 is void. 16-bit: every value is an id.

    Raises:
        UserError: it is missing, broken, or a picture in colours.
    """
    labels = read_picture(path)
    if labels.dtype == np.uint8:
        void = labels == VOID
        if void.any():
            labels = np.where(void, np.uint8(not labels[~void].any()), labels)
    return labels
