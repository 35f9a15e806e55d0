# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Frames from image files and from video files.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import av
import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ausm_d2.errors import UserError

# What Pillow raises for files that are no pictures, are cut off, or claim to be gigantic.
_BROKEN = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8: turned by 90 degrees


def read_image(path: str) -> np.ndarray:
    """A picture as uint8 (H, W, 3), RGB, turned upright where its EXIF says so.

    Raises:
        UserError: it is missing, no picture, or cut off. (OpenCV alone would return what there is, with grey below.)
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path}: the picture cannot be read: {error.strerror or error}") from None
    image = None
    if _looks_complete(data):
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if image is None:
        try:
            with Image.open(io.BytesIO(data.tobytes())) as picture:
                return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        except _BROKEN as error:
            reason = str(error).replace("\n", " ").partition(" <_io")[0] if len(data) else "the file is empty"
            raise UserError(f"{path}: the picture cannot be decoded: {reason}") from None
    return image


def open_video(path: str) -> av.container.InputContainer:
    """A video file, as PyAV opens it. FFmpeg's messages to Python are turned off, for the whole process.

    They are off unless somebody asks for them, as torchvision does in the versions that use PyAV. With them on, closing
    a damaged file can be a deadlock: who closes it holds Python's lock and waits for the thread that decodes, which has
    a message and waits for the lock.

    Raises:
        av.FFmpegError: it cannot be opened.
    """
    av.logging.set_level(None)
    return av.open(path)


def image_size(path: str) -> tuple[int, int]:
    """(H, W) of a picture as :func:`read_image` returns it; only its header is read."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(_ORIENTATION, 1) >= 5
    except _BROKEN as error:
        raise UserError(f"{path}: not a picture that can be read: {error}") from None
    return (width, height) if turned else (height, width)


def _looks_complete(data: np.ndarray) -> bool:
    """Whether a JPEG or PNG file ends as it should. False also for complete files with something behind the end."""
    tail = data[-64:].tobytes().rstrip(b"\0")
    if data[:2].tobytes() == b"\xff\xd8":
        return tail.endswith(b"\xff\xd9")
    return data[1:4].tobytes() == b"PNG" and tail.endswith(b"IEND\xaeB`\x82")


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
    """The frames of a video file, by their place in it.

    Frames are told apart by their time stamps, so that an index always gives the same frame, at any frame rate.
    Reading forwards decodes every frame once; going back starts at the key frame before.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._times: list[int] = []  # time stamp of each frame, ascending
        self._keys: list[int] = []  # those of key frames
        self._container: Any = None
        self._decoded: Iterator[Any] = iter(())
        self._next = 0  # frame that the iterator gives next

    def __reduce__(self) -> tuple[type[VideoFile], tuple[str]]:
        return VideoFile, (self.path,)

    @property
    def names(self) -> list[str]:
        return [f"{i:05d}" for i in range(len(self))]

    def __len__(self) -> int:
        self._open()
        return len(self._times)

    def __getitem__(self, index: int) -> np.ndarray:
        self._open()
        if not 0 <= index < len(self._times):
            raise UserError(f"{self.path}: frame {index} asked for, the video has {len(self._times)}")
        time = self._times[index]
        key = self._keys[max(bisect_right(self._keys, time) - 1, 0)] if self._keys else self._times[0]
        try:
            if index < self._next or key > self._times[self._next]:
                self._container.seek(key, stream=self._container.streams.video[0])
                self._decoded = self._container.decode(video=0)
            for frame in self._decoded:
                if frame.pts is not None and frame.pts >= time:
                    self._next = index + 1
                    return frame.to_ndarray(format="rgb24")
        except av.FFmpegError as error:
            self._next = len(self._times)  # where the decoder stands is not known any more
            raise UserError(f"{self.path}: frame {index} cannot be decoded: {error.strerror}") from None
        self._next = len(self._times)
        raise UserError(f"{self.path}: ends before frame {index} of {len(self._times)}")

    def _open(self) -> None:
        if self._container is not None:
            return
        try:
            container = open_video(self.path)
            if not container.streams.video:
                raise UserError(f"{self.path}: holds no video")
            stream = container.streams.video[0]
            packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None]
        except av.FFmpegError as error:
            raise UserError(f"{self.path}: the video cannot be opened: {error.strerror}") from None
        if not packets:
            raise UserError(f"{self.path}: a video of 0 frames")
        self._times = sorted(time for time, _ in packets)
        self._keys = sorted(time for time, is_key in packets if is_key)
        container.seek(self._times[0], stream=stream)
        self._container = container
        self._decoded = container.decode(video=0)
        self._next = 0
