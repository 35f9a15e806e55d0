# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Reads videos stored as images: the files of a folder or list, or the pages of one file.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ausm_d2.errors import UserError
from ausm_d2.names import PICTURES, several_series, sorted_files
from ausm_d2.pictures import BROKEN_PICTURE, check_picture, frame_pages, one_line, read_image, to_rgb
from ausm_d2.video.frame import DEFAULT_FPS, Frame, Source

logger = logging.getLogger(__name__)


def read_bgr(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as uint8 (H, W, 3), BGR, upright."""
    return cv2.cvtColor(read_image(str(path)), cv2.COLOR_RGB2BGR)


def open_folder(folder: Path, fps: Fraction | None = None, first: int = 0) -> Source:
    """The images of a folder, in natural order.

    Raises:
        UserError: if there are none, or for the reasons of :func:`open_files`.
    """
    files = sorted_files(folder, PICTURES)
    if not files:
        raise UserError(f"the folder '{folder}' holds no pictures ({' '.join(PICTURES)})")
    return open_files([folder / file for file in files], name=folder.resolve().name, fps=fps, first=first)


def open_files(files: Sequence[Path], *, name: str, fps: Fraction | None = None, first: int = 0) -> Source:
    """Image files as the frames of one video, in the given order. The start and end of each file are checked first.

    Args:
        fps: frames per second, for the times of the frames.
        first: frames before this one are not read.

    Raises:
        UserError: if two files have the same name, or one is damaged, truncated, has several pages, or has not the
            first one's size.
    """
    rate = fps or DEFAULT_FPS
    places: dict[str, Path] = {}
    size = None
    for path in files:
        if path.stem in places:
            raise UserError(
                f"'{path.parent}' holds two pictures of the name '{path.stem}' ('{places[path.stem].name}' and "
                f"'{path.name}'); a frame has one"
            )
        places[path.stem] = path
        height, width = check_picture(str(path))
        size = size or (height, width)
        if (height, width) != size:
            raise UserError(
                f"{path.parent}: frame '{path.stem}': a frame of {width}x{height} pixels follows frames of "
                f"{size[1]}x{size[0]}: all frames of a video have one size"
            )

    if series := several_series(places):
        logger.warning(
            "%s: frames of %d series (such as '%s' and '%s') are read as one video, in the order of their names",
            *(files[0].parent, len(series), series[0], series[1]),
        )

    def frames() -> Iterator[Frame]:
        for index, path in enumerate(files[first:], first):
            yield Frame(path.stem, read_bgr(path), float(index / rate), path.name)

    stamps = [path.stat() for path in (files[0], files[-1])]
    key = f"{len(files)} {' '.join(f'{stamp.st_size} {stamp.st_mtime_ns}' for stamp in stamps)}"
    return Source(name, frames(), len(files), rate, key=key)


def open_picture(path: Path, fps: Fraction | None = None, first: int = 0) -> Source:
    """One file: an image, or all pages of a TIFF stack, GIF, animated PNG, WebP or AVIF.

    Raises:
        UserError: if it is not an image, or is damaged.
    """
    pages = _pages(path)
    status = path.stat()
    key = f"{path.name} {status.st_size} {status.st_mtime_ns}"
    if len(pages) == 1:
        frames = iter([Frame(path.stem, read_bgr(path), 0.0, path.name)])
        return Source(path.name, frames, 1, fps or DEFAULT_FPS, is_image=True, key=key)
    times = _page_times(path, pages, fps)
    rate = Fraction(len(pages) - 1) / Fraction(times[-1]).limit_denominator(1000)
    return Source(path.name, _read_pages(path, pages, times, first), len(pages), rate, key=key)


def _pages(path: Path) -> list[int]:
    """The pages of a file that are frames."""
    try:
        with Image.open(path) as picture:
            return frame_pages(picture)
    except BROKEN_PICTURE as error:
        raise UserError(f"{path}: the picture cannot be decoded: {one_line(error)}") from None


def _page_times(path: Path, pages: Sequence[int], fps: Fraction | None) -> list[float]:
    """Seconds at which each page is shown: the durations of an animation, else an even rate."""
    times, now = [], 0.0
    with Image.open(path) as picture:
        for page in pages:
            times.append(now)
            try:
                picture.seek(page)
                if picture.format in ("WEBP", "AVIF"):
                    picture.load()  # sets the duration
            except BROKEN_PICTURE as error:
                raise UserError(f"{path}: page {page} cannot be decoded: {one_line(error)}") from None
            milliseconds = picture.info.get("duration", 0) if fps is None else 0
            now += float(milliseconds) / 1000 if milliseconds else float(1 / (fps or DEFAULT_FPS))
    return times


def _read_pages(path: Path, pages: Sequence[int], times: Sequence[float], first: int) -> Iterator[Frame]:
    with Image.open(path) as picture:
        for index in range(first, len(pages)):
            try:
                picture.seek(pages[index])
                image = to_rgb(picture, f"{path}: page {pages[index]}")
            except BROKEN_PICTURE as error:
                raise UserError(f"{path}: page {pages[index]} cannot be decoded: {one_line(error)}") from None
            yield Frame(f"{index:05d}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), times[index])
