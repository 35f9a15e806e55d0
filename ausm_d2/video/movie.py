# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Writes video files that are playable at any time, even after a kill, and can be continued.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import cv2
import numpy as np

from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write
from ausm_d2.video.container import open_container, video_stream

_CLOCK = Fraction(1, 90000)  # unit of time stamps, seconds
_START = "comment"  # metadata entry with the time stamp of the first frame of an unfinished file


@dataclass(frozen=True)
class MovieFormat:
    """How frames are encoded. All names are FFmpeg's."""

    container: str
    codec: str
    pixel_format: str
    source_format: str  # of the frames given
    encoder: tuple[tuple[str, str], ...]  # options of the encoder
    growing: tuple[tuple[str, str], ...]  # options of the unfinished file: each frame is flushed to disk
    finished: tuple[tuple[str, str], ...]  # options of the complete file


# The encoder buffers no frames (zerolatency, lag 0), so every frame written so far can be played.
H264 = MovieFormat(
    container="mp4",
    codec="libx264",
    pixel_format="yuv420p",
    source_format="bgr24",
    encoder=(("preset", "veryfast"), ("crf", "20"), ("tune", "zerolatency"), ("g", "50")),
    growing=(("movflags", "frag_every_frame+empty_moov+default_base_moof"), ("flush_packets", "1")),
    finished=(("movflags", "faststart"),),
)
# VP8: at 854x480 its encoder takes 33 MB per object in sight, that of VP9 91 MB; its files are 1.5 times as large.
VP8_ALPHA = MovieFormat(
    container="webm",
    codec="libvpx",
    pixel_format="yuva420p",
    source_format="bgra",
    encoder=(
        ("crf", "10"),
        ("b", "20M"),  # highest bit rate; without one, libvpx ignores crf for VP8
        ("deadline", "realtime"),
        ("cpu-used", "8"),
        ("lag-in-frames", "0"),
        ("auto-alt-ref", "0"),  # otherwise the alpha channel is lost
        ("g", "50"),
    ),
    growing=(("cluster_time_limit", "1"), ("flush_packets", "1")),
    finished=(),
)


class MovieWriter:
    """Writes frames with time stamps to a video file (default: H.264 in MP4, which browsers play).

    The file is fragmented while it is written; ``close`` rewrites it with its index at the front. A closed writer, or a
    new one for an existing file, appends to the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: Fraction | int,
        *,
        form: MovieFormat = H264,
        scratch: Path | None = None,
        until: float | None = None,
    ) -> None:
        """
        Args:
            path: of the video.
            fps: frames per second, for frames without a time and for the encoder's bit rate.
            form: container and codec.
            scratch: folder for the earlier part of a file that is continued; default: that of ``path``.
            until: continue an existing file from this time in seconds; None: replace it.
        """
        self.path = Path(path)
        self._fps = Fraction(fps)
        self._form = form
        self._earlier = (scratch or self.path.parent) / f".{self.path.name}.earlier"
        self._container: Any = None
        self._stream: Any = None
        self._last = -1  # time stamp of the last frame
        self.empty = True
        if until is not None:
            self._last = self._set_aside(round(until / _CLOCK))
            self.empty = self._last < 0
        else:
            self._earlier.unlink(missing_ok=True)

    def write(self, picture: np.ndarray, time: float | None = None) -> None:
        """Write the next frame: uint8 (H, W, 3) BGR, or (H, W, 4) BGRA for a format with alpha; all of one size.

        Odd sides are padded by one pixel, as 4:2:0 needs even ones. Time stamps always increase.

        Args:
            time: seconds since the first frame of the video; None: one frame interval after the last frame.
        """
        picture = cv2.copyMakeBorder(picture, 0, picture.shape[0] % 2, 0, picture.shape[1] % 2, cv2.BORDER_REPLICATE)
        step = max(1, round(1 / self._fps / _CLOCK))
        stamp = self._last + step if time is None else round(time / _CLOCK)
        if time is None and self._last < 0:
            stamp = 0
        self._last = max(stamp, self._last + 1)
        if self._container is None:
            self._begin(*picture.shape[:2])
        frame = av.VideoFrame.from_ndarray(picture, format=self._form.source_format)
        frame.pts, frame.time_base = self._last, _CLOCK
        self._container.mux(self._stream.encode(frame))

    def _begin(self, height: int, width: int) -> None:
        if self.path.exists() and not self.empty:
            self._set_aside(None)
        form = self._form
        self._container = av.open(os.path.abspath(self.path), "w", format=form.container, options=dict(form.growing))
        self._stream = self._container.add_stream(form.codec, rate=self._fps, options=dict(form.encoder))
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, form.pixel_format
        self._stream.codec_context.time_base = _CLOCK
        # FFmpeg shifts every MP4 to start at 0, even one that will be appended to another.
        self._container.metadata[_START] = str(self._last)
        self.empty = False

    def _set_aside(self, until: int | None) -> int:
        """Move the frames written so far, up to a time stamp, to the earlier part, which later frames are appended to.

        Returns:
            Its last time stamp; -1 if it is empty.
        """
        last = -1
        parts = [part for part in (self._earlier, self.path) if part.exists()]
        if parts and until != 0:
            last = _join(parts, self._earlier, self._form, until)
        self.path.unlink(missing_ok=True)
        return last

    def close(self) -> None:
        """Complete the file. If nothing was written, there is no file, or the earlier one."""
        container, self._container = self._container, None
        stream, self._stream = self._stream, None  # it holds the encoder, megabytes of it
        if container is not None:
            try:
                container.mux(stream.encode(None))
            finally:
                container.close()
        parts = [part for part in (self._earlier, self.path) if part.exists()]
        if parts:
            _join(parts, self.path, self._form, None)
            self._earlier.unlink(missing_ok=True)

    def __enter__(self) -> MovieWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _join(parts: Sequence[Path], target: Path, form: MovieFormat, until: int | None) -> int:
    """Concatenate several files without re-encoding, into one file with its index at the front.

    Args:
        until: time stamp; frames from there on are left out.

    Returns:
        The time stamp of the last frame; -1 if there is none.

    Raises:
        UserError: if their encodings differ.
    """
    last = -1
    with (
        atomic_write(target) as temporary,
        av.open(str(temporary), "w", format=form.container, options=dict(form.finished)) as out,
    ):
        stream: Any = None
        encoding = None
        for part in parts:
            with open_container(part) as container:
                video = video_stream(container, part)
                of_part = (video.codec_context.name, video.codec_context.extradata)
                if stream is None:
                    stream, encoding = out.add_stream_from_template(video), of_part
                elif of_part != encoding:
                    raise UserError(
                        f"{target}: the existing part was encoded by another version of the encoder and cannot be "
                        "continued; start again without --resume"
                    )
                shift = None
                for packet in container.demux(video):
                    if packet.pts is None or packet.time_base is None or not packet.size:
                        continue
                    stamp = round(packet.pts * packet.time_base / _CLOCK)
                    if shift is None:
                        shift = int(container.metadata.get(_START, stamp)) - stamp
                    stamp += shift
                    if stamp <= last or (until is not None and stamp >= until):
                        continue  # after an interrupted join, a part may contain the one before it
                    packet.stream = stream
                    packet.pts = packet.dts = round(stamp * _CLOCK / packet.time_base)
                    out.mux(packet)
                    last = stamp
    return last
