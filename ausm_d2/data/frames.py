# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Frames from image files and from video files.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import av
import numpy as np

from ausm_d2.errors import UserError
from ausm_d2.pictures import read_image
from ausm_d2.video.container import Upright, open_container, video_stream


@dataclass(frozen=True, repr=False)
class ImageFiles:
    """The frames of one video as image files."""

    root: str
    files: tuple[str, ...]  # relative to root

    @property
    def names(self) -> list[str]:
        return [PurePosixPath(file).stem for file in self.files]

    def __repr__(self) -> str:
        return f"ImageFiles({self.root!r}, {len(self.files)} files)"

    def path(self, index: int) -> str:
        return f"{self.root}/{self.files[index]}"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_image(self.path(index))


class VideoFile:
    """The frames of a video file, by index.

    Frames are identified by their time stamps, so that an index always gives the same frame, at any frame rate. Reading
    forwards decodes every frame once; going back seeks to the preceding key frame.
    """

    def __init__(self, path: str, pixel_format: str = "rgb24") -> None:
        """
        Args:
            path: of the file.
            pixel_format: of the frames, uint8 (H, W, 3): "rgb24" or "bgr24".
        """
        self.path = path
        self.pixel_format = pixel_format
        self._times: list[int] = []  # time stamp of each frame, ascending
        self._keys: list[int] = []  # time stamps of the key frames
        self._upright = Upright(pixel_format)
        self._container: Any = None
        self._stream: Any = None
        self._decoded: Iterator[Any] = iter(())
        self._next = 0  # index of the iterator's next frame

    def __reduce__(self) -> tuple[type[VideoFile], tuple[str, str]]:
        return VideoFile, (self.path, self.pixel_format)

    @property
    def names(self) -> list[str]:
        return [f"{i:05d}" for i in range(len(self))]

    def __len__(self) -> int:
        self._open()
        return len(self._times)

    def seconds(self, index: int) -> float:
        """When a frame is shown, counted from the first one."""
        self._open()
        return float((self._times[index] - self._times[0]) * self._stream.time_base)

    def close(self) -> None:
        """Close the file; asking for a frame opens it again."""
        container, self._container = self._container, None
        self._decoded = iter(())
        if container is not None:
            container.close()

    def __getitem__(self, index: int) -> np.ndarray:
        self._open()
        if not 0 <= index < len(self._times):
            raise UserError(f"{self.path}: frame {index} requested, the video has {len(self._times)}")
        time = self._times[index]
        key = self._keys[max(bisect_right(self._keys, time) - 1, 0)] if self._keys else self._times[0]
        try:
            if index < self._next or key > self._times[self._next]:
                self._container.seek(key, stream=self._stream)
                self._decoded = self._container.decode(self._stream)
            for frame in self._decoded:
                if frame.pts is not None and frame.pts >= time:
                    self._next = index + 1
                    return self._upright(frame)
        except av.FFmpegError as error:
            self._next = len(self._times)  # the decoder's position is unknown: seek next time
            raise UserError(f"{self.path}: frame {index} cannot be decoded: {error.strerror}") from None
        self._next = len(self._times)
        raise UserError(f"{self.path}: ends before frame {index} of {len(self._times)}")

    def _open(self) -> None:
        if self._container is not None:
            return
        try:
            container = open_container(self.path)
            stream = video_stream(container, self.path)
            packets = [
                (p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None and not p.is_discard
            ]
        except av.FFmpegError as error:
            raise UserError(f"{self.path}: the video cannot be opened: {error.strerror}") from None
        if not packets:
            raise UserError(f"{self.path}: a video of 0 frames")
        self._times = sorted(time for time, _ in packets)
        self._keys = sorted(time for time, is_key in packets if is_key)
        container.seek(self._times[0], stream=stream)
        self._container, self._stream = container, stream
        self._decoded = container.decode(stream)
        self._next = 0
