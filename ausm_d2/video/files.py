# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Reads videos sequentially from files, pipes and URLs.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av

from ausm_d2.errors import UserError
from ausm_d2.video.container import Contents, Upright, examine, open_container, video_stream
from ausm_d2.video.frame import Frame, Source, known_rate

logger = logging.getLogger(__name__)

_SILENCE = 10.0  # seconds without data from an address after which the connection counts as lost
_NO_RANGES = "; if its server sends whole files only (no byte ranges), which some files do not allow, download it first"


def open_video(path: Path, first: int = 0) -> Source:
    """Open a video file, after a check of all its packets.

    Args:
        first: frames before this one are decoded but not yielded.

    Raises:
        UserError: if it cannot be read, has no frames, or is truncated.
    """
    contents = examine(path)
    for warning in contents.warnings:
        logger.warning("%s: %s", path, warning)
    status = path.stat()
    key = f"{path.name} {status.st_size} {status.st_mtime_ns}"
    return Source(path.name, read_video(path, contents, first), contents.count, contents.fps, key=key)


def read_video(path: Path, contents: Contents, first: int = 0) -> Iterator[Frame]:
    """Yield the frames of a file; warns at the end about damaged and undecodable frames."""
    try:
        with open_container(path) as container:
            damaged = yield from _decode(container, str(path), contents.fps, first)
    except av.FFmpegError as error:
        raise UserError(f"{path}: cannot be decoded: {error.strerror}") from None
    if damaged.marked:
        logger.warning(
            "%s: %d of %d frames are damaged; their masks may be wrong", path, damaged.marked, damaged.decoded
        )
    if damaged.decoded < contents.count:
        missing = contents.count - damaged.decoded
        logger.warning("%s: %d of %d frames cannot be decoded, and are left out", path, missing, contents.count)


@dataclass
class _Decoded:
    """Counts of frames."""

    decoded: int = 0
    marked: int = 0  # reported as damaged by FFmpeg


def _decode(
    container: av.container.InputContainer, name: str, fps: Fraction, first: int
) -> Generator[Frame, None, _Decoded]:
    stream = video_stream(container, name)
    stream.thread_type = "AUTO"
    report, upright = _Decoded(), Upright()
    start: float | None = None
    before = -1 / float(fps)
    try:
        for frame in container.decode(stream):
            report.marked += frame.is_corrupt
            time = before + 1 / float(fps)  # of a frame without one, such as the first of a network camera
            if frame.time is not None:
                start = frame.time - time if start is None else start
                time = max(frame.time - start, 0.0)
            before = time
            index, report.decoded = report.decoded, report.decoded + 1
            if index >= first:
                yield Frame(f"{index:05d}", upright(frame), time)
    except av.FFmpegError as error:
        after = f"after frame {report.decoded - 1}" if report.decoded else "before the first frame"
        if isinstance(error, av.error.ExitError):  # PyAV's timeout
            raise UserError(f"{name}: nothing came for {_SILENCE:g} seconds {after}") from None
        hint = _NO_RANGES if name.startswith("http") and error.errno == errno.EIO else ""
        raise UserError(f"{name}: cannot be decoded {after}: {error.strerror}{hint}") from None
    return report


@dataclass(frozen=True)
class RawFormat:
    """The format of raw frames in a pipe."""

    width: int
    height: int
    pixel_format: str = "bgr24"  # FFmpeg's name


class _Pipe:
    """A file without ``seek``: PyAV seeks in every file that has this method."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(size)


def open_pipe(file: BinaryIO, raw: RawFormat | None = None, fps: Fraction | None = None) -> Source:
    """A video from a pipe: Y4M, any other format that FFmpeg recognises without seeking, or raw frames.

    Args:
        raw: size and format of raw frames; None: the format is detected.
        fps: of raw frames.

    Raises:
        UserError: if it is not a video.
    """
    options: dict[str, str] = {}
    if raw is not None:
        options = {
            "video_size": f"{raw.width}x{raw.height}",
            "pixel_format": raw.pixel_format,
            "framerate": str(known_rate(fps)),
        }
    try:
        container = open_container(
            _Pipe(file),  # type: ignore[arg-type]
            format="rawvideo" if raw else None,
            options=options,
        )
        rate = known_rate(fps or video_stream(container, "standard input").average_rate)
    except (av.FFmpegError, ValueError) as error:
        expected = "raw frames" if raw else "Y4M or another video, or --raw WxH"
        raise UserError(f"standard input: no video that can be read ({error}); expected {expected}") from None

    def frames() -> Iterator[Frame]:
        with container:
            yield from _decode(container, "standard input", rate, 0)

    return Source("standard input", frames(), None, rate)


def open_address(url: str) -> Source:
    """A video at a URL. All protocols but http, https and file count as live, such as rtsp.

    Raises:
        UserError: if there is no answer within ten seconds, or it is not a video. From ``frames``: nothing came for ten
            seconds, or it cannot be decoded.
    """
    options = {"rtsp_flags": "prefer_tcp"} if url.startswith("rtsp") else {}  # UDP where the server has no TCP
    live = url.partition("://")[0].lower() not in ("http", "https", "file")
    try:
        container = open_container(url, url=True, timeout=_SILENCE, options=options)
        rate = known_rate(video_stream(container, url).average_rate)
    except av.error.ExitError:
        raise UserError(f"{url}: cannot be opened: no video came for {_SILENCE:g} seconds") from None
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{url}: cannot be opened: {error.strerror or error}") from None

    def frames() -> Iterator[Frame]:
        with container:
            report = yield from _decode(container, url, rate, 0)
        if live:  # FFmpeg does not tell the end of a stream from a connection that was broken off
            logger.warning("%s: the stream ended, or the connection was lost, after %d frames", url, report.decoded)

    return Source(os.path.basename(url.partition("?")[0]) or url, frames(), None, rate, live=live)
