# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Label images: pixel value = object id.

Files that cannot hold ids exactly (lossy compression, several pages, masks in the alpha channel) are refused.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable
from functools import lru_cache
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write
from ausm_d2.pictures import BROKEN_PICTURE, require_size

VOID = 255  # in 8-bit images: no object
_WHITE_OF_16_BITS = 65535
LARGEST_ID = _WHITE_OF_16_BITS - 1  # that a label image holds
MANY_IDS = 20  # images with more ids are checked for antialiased edges

_EXACT = {"PNG", "BMP", "DIB", "GIF", "PPM", "TGA", "PCX", "TIFF", "WEBP"}  # Pillow's formats that can be lossless


logger = logging.getLogger(__name__)


class _NotExact(ValueError):
    """A picture whose values need not be object ids; its text says why."""


def _davis_palette() -> list[int]:
    """256 colours, R G B R G B ...: the bits of an id, three at a time, from the highest bit of R, G and B down."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(24):
        colours[:, bit % 3] |= ((ids >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours.ravel().tolist()


_PALETTE = _davis_palette()


def encode_mask_png(id_map: np.ndarray) -> bytes:
    """Encode an id map, integers (H, W), 0 = background, as a PNG.

    Up to id 254: a palette image with DAVIS's colours (255 means void). Larger ids: 16-bit grey, in which 65535 is
    white: alone, it would be read as object 1.

    Raises:
        ValueError: if an id is outside 0..65534.
    """
    smallest, largest = int(id_map.min()), int(id_map.max())
    if smallest < 0 or largest > LARGEST_ID:
        raise ValueError(f"object ids from {smallest} to {largest}, expected 0 to {LARGEST_ID} in a PNG")
    if largest < VOID:
        picture = Image.fromarray(id_map.astype(np.uint8))
        picture.putpalette(_PALETTE)
    else:
        picture = Image.fromarray(id_map.astype(np.uint16))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def write_mask_png(path: str | os.PathLike[str], id_map: np.ndarray) -> None:
    """Write an id map, integers (H, W), 0 = background; see ``encode_mask_png``.

    Raises:
        UserError: if an id is outside 0..65534, or the file cannot be written.
    """
    try:
        content = encode_mask_png(id_map)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


class LabelPicture(NamedTuple):
    """The pixel values of a label image."""

    values: np.ndarray  # (H, W): uint8 for palette, grey and black-and-white images, int32 for 16-bit
    white: int  # the largest value of the file's bit depth

    def is_black_and_white(self) -> bool:
        """Whether all values are 0 or white."""
        return bool(((self.values == 0) | (self.values == self.white)).all())

    def ids(self, black_and_white: bool) -> np.ndarray:
        """Object ids, integers (H, W), 0 = background or void.

        Args:
            black_and_white: white is object 1. Otherwise every value is an id, except 255 in 8-bit images (void).
        """
        if black_and_white:
            return (self.values == self.white).astype(np.uint8)
        return np.where(self.values == VOID, 0, self.values) if self.white == VOID else self.values


def read_picture(path: str | os.PathLike[str]) -> LabelPicture:
    """Read a label image.

    Raises:
        UserError: if the file is missing or broken, or its format cannot hold ids.
    """
    try:
        with open(path, "rb") as file:
            return decode_picture(file)
    except FileNotFoundError:
        raise UserError(f"{path}: the mask is missing") from None
    except OSError as error:
        raise UserError(f"{path}: the mask cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def decode_picture(file: BinaryIO) -> LabelPicture:
    """``read_picture`` for an open file.

    Raises:
        ValueError: if the file is broken, or its format cannot hold ids.
    """
    try:
        with Image.open(file) as picture:
            require_size(*picture.size, "the mask")
            depth, _ = _png_header(file) if picture.format == "PNG" else (0, 0)
            _require_exact(picture, file, depth)
            picture.load()
            mode, values = picture.mode, np.asarray(picture)
            if mode in ("P", "PA"):
                _require_ids(picture, values if mode == "P" else values[..., 0])
    except (_NotExact, UserError):
        raise
    except BROKEN_PICTURE:
        raise ValueError("the mask cannot be decoded: it is no picture, or broken") from None
    if mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        if (values[..., :-1].any(axis=-1) & (values[..., -1] < 255)).any():
            raise ValueError(
                "a mask with an alpha channel, and pixels that are neither opaque nor 0; expected a palette or grey "
                "picture with pixel = id and without alpha"
            )
        values = values[..., :-1]
    if values.ndim == 3:  # equal channels: grey saved as RGB
        if (values != values[..., :1]).any():
            raise ValueError(f"a picture in colours (mode {mode}); a palette or grey one with pixel = id expected")
        values = values[..., 0]
    if mode == "F":
        raise ValueError("a picture of floating-point pixels; a palette or grey one with pixel = id expected")
    if mode == "1":
        return LabelPicture(values.astype(np.uint8), 1)
    if mode.startswith("I"):
        if values.min(initial=0) < 0:
            raise ValueError(f"a picture with the value {values.min()}; object ids from 0 on expected")
        return LabelPicture(values.astype(np.int32), _WHITE_OF_16_BITS)
    if mode not in ("P", "PA", "L", "LA", "RGB", "RGBA"):
        raise ValueError(f"a picture in colours (mode {mode}); a palette or grey one with pixel = id expected")
    if mode == "L" and depth in (2, 4):  # Pillow scales these values to 0..255
        white = 2**depth - 1
        return LabelPicture(values // np.uint8(255 // white), white)
    return LabelPicture(values, 255)


def _png_header(file: BinaryIO) -> tuple[int, int]:
    """Bits per channel and colour type of a PNG file."""
    file.seek(24)
    header = file.read(2)
    file.seek(0)
    return header[0], header[1]


def _require_exact(picture: Image.Image, file: BinaryIO, depth: int) -> None:
    """Raise an error for files whose pixel values need not be those that were saved, or are not one mask."""
    kind = picture.format or "unknown"
    lossy = kind not in _EXACT
    if kind == "TIFF":
        lossy = "jpeg" in str(picture.info.get("compression", ""))
    elif kind == "WEBP":
        file.seek(0)
        lossy = b"VP8L" not in file.read(1 << 16)
        file.seek(0)
    if lossy:
        raise _NotExact(f"a {kind} picture: its compression changes pixel values, which are object ids; expected a PNG")
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise _NotExact(f"holds {pages} pictures; a mask is one picture")
    if depth == 16 and picture.mode in ("RGB", "RGBA", "LA"):  # Pillow would keep the upper 8 bits
        raise _NotExact("16 bits per channel, with several channels; a 16-bit grey PNG expected for ids above 254")


def _require_ids(picture: Image.Image, indices: np.ndarray) -> None:
    """Raise an error if the indices of a palette picture are plainly not object ids.

    Programs that reduce colours order the palette arbitrarily. GIF files have no grey pictures: a grey picture that is
    saved as one gets a palette of the greys that it has.
    """
    palette = np.asarray(picture.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=1)[: len(palette)])
    if picture.format == "GIF" and (palette[used] == palette[used, :1]).all():
        other = used[(palette[used, 0] != used) & (palette[used, 0] != VOID)]
        if len(other):
            grey = palette[other[0], 0]
            raise _NotExact(f"a GIF of greys, whose grey {grey} is index {other[0]}: which is the id is unknown")
    if palette[0].any():
        black = [index for index in used.tolist() if index and not palette[index].any()]
        if black:
            raise _NotExact(f"a palette whose black is index {black[0]}, not 0; pixel = id and 0 = background expected")


def read_labels(path: str | os.PathLike[str], video: Iterable[str] | None = None) -> np.ndarray:
    """Read a label image as integers (H, W): object ids, 0 = background or void.

    If all label images of a video have only the values 0 and 255 (65535 in 16 bits), white is object 1; the first such
    file is named in a warning. Otherwise 255 in 8-bit images is void, and 65535 in 16-bit images an id.

    Args:
        video: paths of all label images of the video; ``None``: this is the only one.

    Raises:
        UserError: if the file is missing or broken, or its format cannot hold ids.
    """
    picture = read_picture(path)
    black_and_white = picture.is_black_and_white()
    if black_and_white and video is not None and (picture.values == picture.white).any():
        black_and_white = _all_black_and_white(tuple(video))
    if black_and_white and picture.white > 1 and (picture.values == picture.white).any():
        _say_that_white_is_an_object(picture.white, path)
    return picture.ids(black_and_white)


_said: set[int] = set()


def _say_that_white_is_an_object(white: int, path: str | os.PathLike[str]) -> None:
    """Once in each process."""
    if white not in _said:
        _said.add(white)
        logger.warning("%s: a black-and-white mask (0 and %d only): white is object 1; so for other masks", path, white)


@lru_cache(maxsize=4096)
def _all_black_and_white(paths: tuple[str, ...]) -> bool:
    for path in paths:
        try:
            if not read_picture(path).is_black_and_white():
                return False
        except UserError:  # reported when that file itself is read
            continue
    return True


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the mask of one object, bool (H, W), from an image with two values, one of them 0.

    Raises:
        UserError: if the file is missing or broken, or has more values.
    """
    values = read_picture(path).values
    mask = values > 0
    if (values != values.max(initial=0))[mask].any():
        found = np.unique(values)
        raise UserError(f"{path}: values {found[:5].tolist()} found; 0 and one other expected, for one object")
    return mask


def edge_ids(labels: np.ndarray) -> np.ndarray:
    """Ids of a label image (H, W) without any 3 x 3 block of their own: typical of antialiased edges."""
    square = np.ones((3, 3), np.uint8)
    values = labels.astype(np.float32)
    solid = np.unique(labels[cv2.erode(values, square) == cv2.dilate(values, square)])
    return np.setdiff1d(np.unique(labels[labels > 0]), solid)
