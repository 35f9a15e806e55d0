# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Random access to the frames of a video, as arrays and as JPEGs.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from ausm_d2.data.frames import VideoFile
from ausm_d2.errors import UserError
from ausm_d2.video.container import examine, open_container
from ausm_d2.video.frame import Frame

# FFmpeg's names of the containers that are read. Not among them: playlists, which open other files.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,yuv4mpegpipe,gif"
_JPEG_SIDE = 1280  # pixels: the long side of what the page shows, at most
_JPEG_QUALITY = 85
_JPEGS = 48 << 20  # bytes of cached JPEGs
_RECENT = 4  # cached decoded frames


class Clip:
    """A video file that was checked. Its methods may be called from any thread."""

    def __init__(self, path: Path, name: str, *, max_frames: int) -> None:
        """
        Args:
            path: of the file.
            name: what the user calls it.
            max_frames: a longer video is refused.

        Raises:
            UserError: the file is not a readable video, or is too long.
        """
        self.path, self.name = path, name
        try:
            with open_container(path, options={"format_whitelist": FORMATS}):
                pass
            self.fps: Fraction = examine(path).fps
            self._file = VideoFile(str(path), "bgr24")
            self.count = len(self._file)
            if self.count > max_frames:
                raise UserError(f"{self.count} frames, at most {max_frames} are taken (--max-frames)")
            self._lock = threading.Lock()
            self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
            self._jpegs: OrderedDict[int, bytes] = OrderedDict()
            self.height, self.width = self.frame(0).shape[:2]
        except av.FFmpegError as error:
            raise UserError(f"'{name}': no video that can be read: {error.strerror}") from None
        except UserError as error:
            raise UserError(f"'{name}': {str(error).removeprefix(f'{path}: ')}") from None

    @property
    def view(self) -> tuple[int, int]:
        """Width and height of the JPEGs."""
        scale = min(1.0, _JPEG_SIDE / max(self.height, self.width))
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    def frame(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), BGR.

        Raises:
            UserError: there is no such frame, or it cannot be decoded.
        """
        with self._lock:
            if index not in self._recent:
                self._keep(index, self._file[index])
            return self._recent[index]

    def frames(self, first: int) -> Iterator[Frame]:
        """The frames from ``first`` on, decoded in sequence by a reader of their own.

        Raises:
            UserError: one cannot be decoded.
        """
        file = VideoFile(str(self.path), "bgr24")
        try:
            for index in range(first, self.count):
                yield Frame(f"{index:05d}", file[index], file.seconds(index))
        finally:
            file.close()

    def at(self, index: int) -> Frame:
        """One frame with its time; see :meth:`frame`."""
        image = self.frame(index)
        with self._lock:
            return Frame(f"{index:05d}", image, self._file.seconds(index))

    def show(self, index: int, image: np.ndarray) -> None:
        """Cache a frame that was decoded elsewhere and will be shown soon."""
        with self._lock:
            self._keep(index, image)

    def _keep(self, index: int, image: np.ndarray) -> None:
        self._recent[index] = image
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)

    def jpeg(self, index: int) -> bytes:
        """A frame as the page shows it; see :meth:`frame`."""
        with self._lock:
            if index in self._jpegs:
                self._jpegs.move_to_end(index)
                return self._jpegs[index]
        image = self.frame(index)
        if image.shape[1::-1] != self.view:
            image = cv2.resize(image, self.view, interpolation=cv2.INTER_AREA)
        done, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
        assert done
        with self._lock:
            self._jpegs[index] = data.tobytes()
            while sum(map(len, self._jpegs.values())) > _JPEGS:
                self._jpegs.popitem(last=False)
            return self._jpegs[index]

    def close(self) -> None:
        with self._lock:
            self._file.close()
            self._recent.clear()
            self._jpegs.clear()
