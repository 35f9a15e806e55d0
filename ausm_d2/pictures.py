# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Reads image files as 8-bit RGB, rotated upright; refuses files that this would not represent faithfully.

Shape shorthand:
    H, W: picture size in pixels, upright
"""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ausm_d2.errors import UserError

# Exceptions that Pillow raises for files that are not images, are truncated, have invalid fields, or claim a huge size.
BROKEN_PICTURE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(RuntimeError, struct.error, UnidentifiedImageError, Image.DecompressionBombError),
)
MAX_PIXELS = 100_000_000
"""The largest image, frame or mask that is decoded. A file of a few kilobytes can claim any size."""

_PAGED = {"TIFF", "GIF", "PNG", "WEBP", "AVIF"}  # formats (Pillow's names) whose pages are frames
_REDUCED = 254  # TIFF tag; an odd value marks a reduced-resolution copy of another page
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8: rotated by 90 degrees


def read_image(path: str) -> np.ndarray:
    """Read an image as uint8 (H, W, 3), RGB, rotated upright by its EXIF orientation.

    Raises:
        UserError: if the file is missing, not an image, truncated, or holds several images. (OpenCV alone would fill
            the missing part of a truncated image with grey.)
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path}: the picture cannot be read: {error.strerror or error}") from None
    except ValueError:  # a NUL, or a lone surrogate
        raise UserError(f"{path!r}: no file can have this name") from None
    image = None
    if _looks_complete(data) and not _is_animated_png(data) and _header_says(data, path):
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if image is None:
        try:
            with Image.open(io.BytesIO(data.tobytes())) as picture:
                require_size(*picture.size, path)
                pages = frame_pages(picture)
                if len(pages) > 1:
                    raise UserError(f"{path}: holds {len(pages)} pictures; a frame is one picture")
                picture.seek(pages[0])
                return to_rgb(ImageOps.exif_transpose(picture), path)
        except UserError:
            raise
        except BROKEN_PICTURE as error:
            reason = one_line(error).partition(" <_io")[0] if len(data) else "the file is empty"
            raise UserError(f"{path}: the picture cannot be decoded: {reason}") from None
    return image


def one_line(error: Exception) -> str:
    """Pillow's message on one line, or the type of the exception if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def require_size(width: int, height: int, where: str) -> None:
    """Raise a ``UserError`` if there are more pixels than :data:`MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise UserError(f"{where}: {width} x {height} pixels, expected {MAX_PIXELS // 10**6} million at most")


def frame_pages(picture: Image.Image) -> list[int]:
    """The pages of an open file that are frames: all of a TIFF stack, GIF, animated PNG, WebP or AVIF.

    Reduced-resolution copies in a TIFF and the default image of an animated PNG are not frames.
    """
    pages = list(range(getattr(picture, "n_frames", 1))) if picture.format in _PAGED else [0]
    if len(pages) > 1 and picture.format == "PNG" and picture.info.get("default_image"):
        return pages[1:]
    if len(pages) == 1 or picture.format != "TIFF":
        return pages
    kept = []
    for page in pages:
        picture.seek(page)
        if not int(picture.tag_v2.get(_REDUCED, 0)) & 1:  # type: ignore[attr-defined]
            kept.append(page)
    picture.seek(0)
    return kept or [0]


def to_rgb(picture: Image.Image, where: str) -> np.ndarray:
    """A Pillow image as uint8 (H, W, 3), RGB. 16-bit values are reduced to their upper 8 bits, as in OpenCV.

    Raises:
        UserError: for 32-bit and floating-point pixels, whose range is unknown.
    """
    require_size(*picture.size, where)  # each page has a size of its own
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        kind = "32-bit" if picture.mode == "I" else "floating-point"
        raise UserError(f"{where}: {kind} pixels, whose range is unknown; expected 8 or 16 bits")
    return np.asarray(picture.convert("RGB"))


def check_picture(path: str) -> tuple[int, int]:
    """Check that an image is readable and complete, and return (H, W).

    Raises:
        UserError: if the file is missing, not an image, truncated, or holds several images.
    """
    size = image_size(path)
    with open(path, "rb") as file:
        head = file.read(1 << 16)
        file.seek(0, io.SEEK_END)
        file.seek(max(0, file.tell() - 64))
        ends = np.frombuffer(head + file.read(), np.uint8)
    if not _looks_complete(ends) or _is_animated_png(ends):  # or a format without an end marker
        read_image(path)
    return size


def image_size(path: str) -> tuple[int, int]:
    """(H, W) of an image as :func:`read_image` returns it; reads the header only."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            # For a PNG without EXIF in its header, Pillow would decode the pixels to look for EXIF behind them.
            exif = picture.getexif() if picture.format != "PNG" or "exif" in picture.info else {}
            turned = exif.get(_ORIENTATION, 1) >= 5
    except BROKEN_PICTURE as error:
        raise UserError(f"{path}: not a picture that can be read: {one_line(error)}") from None
    require_size(width, height, path)
    return (width, height) if turned else (height, width)


def _header_says(data: np.ndarray, path: str) -> bool:
    """Whether the size can be read from the header of a JPEG or PNG; raises UserError if it is too large."""
    try:
        with Image.open(io.BytesIO(memoryview(data[: 1 << 20]))) as picture:  # type: ignore[arg-type]  # of one byte each
            require_size(*picture.size, path)
    except UserError:
        raise
    except BROKEN_PICTURE:
        return False
    return True


def _is_animated_png(data: np.ndarray) -> bool:
    head = data[: 1 << 16].tobytes()
    return head[1:4] == b"PNG" and b"acTL" in head.partition(b"IDAT")[0]


def _looks_complete(data: np.ndarray) -> bool:
    """Whether a JPEG or PNG file ends with its end marker. False also for complete files with trailing data."""
    tail = data[-64:].tobytes().rstrip(b"\0")
    if data[:2].tobytes() == b"\xff\xd8":
        return tail.endswith(b"\xff\xd9")
    return data[1:4].tobytes() == b"PNG" and tail.endswith(b"IEND\xaeB`\x82")
