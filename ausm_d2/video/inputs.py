# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Opens any input that a user may name: files, folders, patterns, cameras, URLs, standard input, arrays."""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import numpy as np

from ausm_d2.errors import UserError
from ausm_d2.names import PICTURES, natural_order
from ausm_d2.video.files import RawFormat, open_address, open_pipe, open_video
from ausm_d2.video.frame import DEFAULT_FPS, Frame, Source
from ausm_d2.video.live import open_camera
from ausm_d2.video.pictures import open_files, open_folder, open_picture, read_bgr

STDIN = "-"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def open_source(
    source: str | Path | Iterable[np.ndarray | str | Path],
    *,
    fps: Fraction | None = None,
    raw: RawFormat | None = None,
    first: int = 0,
) -> Source:
    """Open any kind of video.

    Args:
        source: a path (video file, image folder, image file with one or more pages), a pattern such as
            ``frames/*.png``, a camera number, a URL (``rtsp://...``), ``-`` for standard input; or an iterable of
            images, as BGR arrays or paths.
        fps: frames per second of images without time stamps.
        raw: format of raw frames on standard input.
        first: skip the frames before this one; for sources with a ``key`` only.

    Raises:
        UserError: if it does not exist, cannot be read, or has no frames.
    """
    if not isinstance(source, str | Path):
        return _open_iterable(source, fps)
    text, path = str(source), Path(source)
    if text == STDIN:
        return open_pipe(sys.stdin.buffer, raw, fps)
    if _ADDRESS.match(text):
        return open_address(text)
    if not path.exists():
        if text.isdecimal():
            try:
                return open_camera(int(text))
            except UserError as error:
                raise UserError(f"{error}, and there is no file or folder '{text}'") from None
        files = matches(text)
        if files is None:
            raise UserError(f"'{text}' does not exist")
        if len(files) > 1:
            return _open_matches(text, files, fps, first)
        path = files[0]
    if path.is_dir():
        return open_folder(path, fps, first)
    if path.suffix.lower() in PICTURES:
        return open_picture(path, fps, first)
    return open_video(path, first)


def matches(pattern: str) -> list[Path] | None:
    """The files that a pattern with ``*``, ``?`` or ``[...]`` matches, in natural order; None if it is not a pattern.

    Raises:
        UserError: if no file matches.
    """
    if not glob.has_magic(pattern):
        return None
    found = sorted(glob.glob(pattern, recursive=True), key=natural_order)
    if not found:
        raise UserError(f"'{pattern}' matches no file")
    return [Path(each) for each in found]


def _open_matches(pattern: str, files: list[Path], fps: Fraction | None, first: int) -> Source:
    others = [path for path in files if path.suffix.lower() not in PICTURES]
    if others:
        raise UserError(
            f"'{pattern}' matches {len(files)} files, and '{others[0]}' is no picture; a video is one file, or pictures"
        )
    return open_files(files, name=files[0].resolve().parent.name, fps=fps, first=first)


def _open_iterable(items: Iterable[np.ndarray | str | Path], fps: Fraction | None) -> Source:
    rate = fps or DEFAULT_FPS
    if isinstance(items, list | tuple) and items and all(isinstance(item, str | Path) for item in items):
        return open_files([Path(item) for item in items], name="frames", fps=fps)

    def frames() -> Iterator[Frame]:
        for index, item in enumerate(items):
            if isinstance(item, str | Path):
                yield Frame(Path(item).stem, read_bgr(item), float(index / rate), Path(item).name)
            else:
                yield Frame(f"{index:05d}", item, float(index / rate))

    return Source("frames", frames(), len(items) if isinstance(items, list | tuple) else None, rate)


def with_first(source: Source) -> tuple[Frame, Source]:
    """The first frame, and a source that still yields it.

    Raises:
        UserError: if there is no frame.
    """
    start = list(islice(source.frames, 1))
    if not start:
        raise UserError(f"{source.name}: no frame can be decoded")
    rest = source.frames
    source.frames = chain(start, rest)
    return start[0], source
