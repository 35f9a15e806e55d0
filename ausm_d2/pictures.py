# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Picture files in colours: read as 8-bit RGB, upright, or refused.

Shape shorthand:
    H, W: picture size in pixels, upright
"""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ausm_d2.errors import UserError

# What Pillow raises for files that are no pictures, are cut off, or claim to be gigantic.
BROKEN_PICTURE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)
_PAGED = {"TIFF", "GIF", "PNG", "WEBP", "AVIF"}  # Pillow's names of formats whose further pictures are frames
_REDUCED = 254  # TIFF tag: a picture of odd value is a smaller copy of another page
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8: turned by 90 degrees


def read_image(path: str) -> np.ndarray:
    """A picture as uint8 (H, W, 3), RGB, turned upright where its EXIF says so.

    Raises:
        UserError: it is missing, no picture, several, or cut off. (OpenCV alone would return what there is, with grey
            below.)
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path}: the picture cannot be read: {error.strerror or error}") from None
    image = None
    if _looks_complete(data) and not _is_animated_png(data):
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if image is None:
        try:
            with Image.open(io.BytesIO(data.tobytes())) as picture:
                pages = frame_pages(picture)
                if len(pages) > 1:
                    raise UserError(f"{path}: holds {len(pages)} pictures; a frame is one picture")
                picture.seek(pages[0])
                return to_rgb(ImageOps.exif_transpose(picture), path)
        except UserError:
            raise
        except BROKEN_PICTURE as error:
            reason = str(error).replace("\n", " ").partition(" <_io")[0] if len(data) else "the file is empty"
            raise UserError(f"{path}: the picture cannot be decoded: {reason}") from None
    return image


def frame_pages(picture: Image.Image) -> list[int]:
    """The pages of an open file that are frames: all of a TIFF stack, GIF, animated PNG, WebP or AVIF.

    Smaller copies in a TIFF are none, nor is the substitute picture of an animated PNG.
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
    """Pillow's picture -> uint8 (H, W, 3), RGB. Of 16-bit values the upper half is kept, as OpenCV does.

    Raises:
        UserError: values without a known range (32 bits, floating point), which would have to be cut off or guessed.
    """
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        kind = "32-bit" if picture.mode == "I" else "floating-point"
        raise UserError(f"{where}: {kind} pixels, whose range nobody knows; expected a picture of 8 or 16 bits")
    return np.asarray(picture.convert("RGB"))


def check_picture(path: str) -> tuple[int, int]:
    """(H, W) of a picture whose header can be read and whose file is complete.

    Raises:
        UserError: it is missing, no picture, several, or cut off.
    """
    size = image_size(path)
    with open(path, "rb") as file:
        head = file.read(1 << 16)
        file.seek(0, io.SEEK_END)
        file.seek(max(0, file.tell() - 64))
        ends = np.frombuffer(head + file.read(), np.uint8)
    if not _looks_complete(ends) or _is_animated_png(ends):  # or a format that does not tell
        read_image(path)
    return size


def image_size(path: str) -> tuple[int, int]:
    """(H, W) of a picture as :func:`read_image` returns it; only its header is read."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            # Of a PNG that has none in its header, Pillow would decode the whole picture to look behind it.
            exif = picture.getexif() if picture.format != "PNG" or "exif" in picture.info else {}
            turned = exif.get(_ORIENTATION, 1) >= 5
    except BROKEN_PICTURE as error:
        raise UserError(f"{path}: not a picture that can be read: {error}") from None
    return (width, height) if turned else (height, width)


def _is_animated_png(data: np.ndarray) -> bool:
    head = data[: 1 << 16].tobytes()
    return head[1:4] == b"PNG" and b"acTL" in head.partition(b"IDAT")[0]


def _looks_complete(data: np.ndarray) -> bool:
    """Whether a JPEG or PNG file ends as it should. False also for complete files with something behind the end."""
    tail = data[-64:].tobytes().rstrip(b"\0")
    if data[:2].tobytes() == b"\xff\xd8":
        return tail.endswith(b"\xff\xd9")
    return data[1:4].tobytes() == b"PNG" and tail.endswith(b"IEND\xaeB`\x82")
