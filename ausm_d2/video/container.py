# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Opens video files with FFmpeg: selects the video stream, rotates frames upright, checks files for completeness.

Shape shorthand:
    H, W: frame size in pixels, upright
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.stream import Disposition

from ausm_d2.errors import UserError
from ausm_d2.pictures import MAX_PIXELS, require_size
from ausm_d2.video.frame import known_rate

_LOCAL = "file,crypto,data,pipe"  # protocols that FFmpeg may open for a local file, such as a playlist


def open_container(
    source: str | os.PathLike[str] | BinaryIO, *, url: bool = False, **kwargs: Any
) -> av.container.InputContainer:
    """Open a video file with PyAV, whatever its name (``12:30.mp4`` is not taken for a URL).

    This turns off FFmpeg's log messages to Python for the whole process. They are off by default, but torchvision turns
    them on in the versions that use PyAV. With them on, closing a damaged file can deadlock: the closing thread holds
    the GIL and waits for the decoding thread, which needs the GIL to log.

    Args:
        source: a path, an open file, or, with ``url``, a URL.
        kwargs: of ``av.open``.

    Raises:
        av.FFmpegError: if it cannot be opened.
    """
    av.logging.set_level(None)
    kwargs.setdefault("metadata_errors", "replace")  # titles need not be UTF-8
    if isinstance(source, str | os.PathLike) and not url:
        source = os.path.abspath(source)
        kwargs["options"] = {"protocol_whitelist": _LOCAL, **kwargs.get("options", {})}
    return av.open(source, "r", **kwargs)


def video_stream(container: av.container.InputContainer, name: str | os.PathLike[str]) -> av.VideoStream:
    """The stream that players show: FFmpeg's choice, but never a cover image.

    Raises:
        UserError: if there is none, its codec is unknown, or its frames are too large.
    """
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        raise UserError(f"{name}: holds no video")
    assert isinstance(stream, av.VideoStream)
    if stream.codec_context is None:
        raise UserError(f"{name}: a video whose codec is not known")
    require_size(stream.width, stream.height, str(name))
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # frames may be larger than the header says
    return stream


class Upright:
    """Converts the decoded frames of one stream to arrays, rotated and mirrored by the file's display matrix.

    The matrix is read from the first frame, and again when its rotation changes: PyAV's ``side_data`` makes a frame
    part of a reference cycle, so that its memory is not free before Python's garbage collector runs, hundreds of
    frames later.
    """

    def __init__(self, pixel_format: str = "bgr24") -> None:
        """
        Args:
            pixel_format: FFmpeg's name, of three channels.
        """
        self._pixel_format = pixel_format
        self._rotation: int | None = None  # degrees, of the matrix; None: before the first frame
        self._matrix: tuple[int, int, int, int] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 (H, W, 3), contiguous."""
        if frame.rotation != self._rotation:
            self._rotation, self._matrix = frame.rotation, _display_matrix(frame)
        image = frame.to_ndarray(format=self._pixel_format)
        if self._matrix is None:
            return image
        a, b, c, d = self._matrix
        if abs(b) + abs(c) > abs(a) + abs(d):
            image, a, d = image.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """a, b, c, d: column x and row y of the stored frame are shown at column a x + c y + e and row b x + d y + f."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    values = np.frombuffer(data, np.int32)  # type: ignore[call-overload]  # it is a buffer, PyAV's types do not say so
    a, b, _, c, d = values[:5].tolist()
    return a, b, c, d


@dataclass
class Contents:
    """Properties of a video, found by reading all packets of its file, without decoding."""

    count: int  # frames
    fps: Fraction  # mean rate
    warnings: list[str]  # without the file's name


_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273


def examine(path: str | os.PathLike[str]) -> Contents:
    """Count the frames of a file and check it before it is processed.

    Raises:
        UserError: if it is not a video, has no frames, or is truncated.
    """
    try:
        with open_container(path) as container:
            return _examine(Path(path), container, video_stream(container, path))
    except av.FFmpegError as error:
        raise UserError(f"{path}: cannot be opened as a video: {error.strerror}") from None


def _examine(path: Path, container: av.container.InputContainer, video: av.VideoStream) -> Contents:
    count, skipped, end, whole = 0, 0, 0.0, True
    first = last = None
    for packet in container.demux():
        if not packet.size:
            continue
        whole = not packet.is_corrupt
        if packet.stream.index == video.index:
            count += not packet.is_discard
            skipped += packet.is_discard  # marked by the file: playback starts later
            if packet.pts is not None and not packet.is_discard:
                first = packet.pts if first is None else min(first, packet.pts)
                last = packet.pts if last is None else max(last, packet.pts)
        if packet.pts is not None and packet.time_base is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    if not count:
        raise UserError(f"{path}: a video of 0 frames")
    warnings = []
    start = (container.start_time or 0) / av.time_base
    length, found = (container.duration or 0) / av.time_base, end - start
    short = found < length - max(1.0, 0.02 * length)
    lost = video.frames - count - skipped  # frames that the index lists and the file does not have
    if not whole or _is_cut(path) or (short and lost > 0):
        raise UserError(f"{path}: cut off: of {length:.1f} seconds, only the first {found:.1f} are there")
    if short:
        warnings.append(f"its header says {length:.1f} seconds; all it holds are {found:.1f}")
    if lost > 0:
        warnings.append(f"damaged: of {video.frames} frames, {count + skipped} are there; later ones move up")
    if video.codec_context.color_trc in _HDR:
        curve = _HDR[video.codec_context.color_trc]
        warnings.append(f"HDR ({curve}): colours are read without tone mapping, paler than they are shown")
    rate = video.average_rate
    if first is not None and last is not None and last > first and count > 1 and video.time_base:
        measured = Fraction(count - 1) / ((last - first) * video.time_base)
        if rate is None or abs(float(measured / rate) - 1) > 0.01:  # a wrong or a variable rate
            rate = measured
    return Contents(count, known_rate(rate), warnings)


_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def _is_cut(path: Path) -> bool:
    """Whether an AVI, Matroska or WebM file is shorter than its header says. FFmpeg does not report this."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return 8 + int.from_bytes(head[4:8], "little") > size
    at = head.find(_SEGMENT)
    if head[:4] != _EBML or at < 0:
        return False
    at += len(_SEGMENT)
    width = 9 - head[at].bit_length()  # bytes of the number: leading zero bits of its first byte, plus 1
    value = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    unknown = (1 << 7 * width) - 1  # written by recorders that cannot seek back
    return value != unknown and at + width + value > size
