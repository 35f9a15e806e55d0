# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The outputs that are written frame by frame.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ausm_d2.io import atomic_write
from ausm_d2.masks.png import write_mask_png
from ausm_d2.video.movie import VP8_ALPHA, MovieWriter
from ausm_d2.video.tracked import Done, TrackedFrame, TrackedObject, VideoInfo
from ausm_d2.visualization import contact_sheet, draw_masks, readable_scale

OBJECTS = "objects"  # folder of the outputs per object


class Output(ABC):
    """Takes the frames of a video in order."""

    def __init__(self, folder: Path, scratch: Path, info: VideoInfo, done: Done | None) -> None:
        """
        Args:
            folder: of the results.
            scratch: folder for temporary files.
            info: of the video.
            done: where an existing output is continued; None: start a new one.
        """
        self.folder = folder
        self.scratch = scratch
        self.info = info
        self.done = done

    @abstractmethod
    def write(self, frame: TrackedFrame) -> None:
        """Write the next frame."""

    def close(self) -> None:  # noqa: B027  # most have nothing to do
        """Complete the files, after the last frame or an interruption."""


class Overlay(Output):
    """``overlay.mp4``, of a picture ``overlay.png``: every object in its own colour, with its id, class and score."""

    def __init__(self, folder: Path, scratch: Path, info: VideoInfo, done: Done | None) -> None:
        super().__init__(folder, scratch, info, done)
        self._movie = None
        if not info.is_image:
            until = None if done is None else done.time
            self._movie = MovieWriter(folder / "overlay.mp4", info.fps, scratch=scratch, until=until)

    def write(self, frame: TrackedFrame) -> None:
        assert frame.image is not None
        picture = draw_frame(frame.image, frame.objects, prompted=self.info.prompted)
        if self._movie is not None:
            self._movie.write(picture, frame.time)
        else:
            write_picture(self.folder / "overlay.png", picture)

    def close(self) -> None:
        if self._movie is not None:
            self._movie.close()


def draw_frame(image: np.ndarray, objects: list[TrackedObject], *, prompted: bool) -> np.ndarray:
    """Draw objects over a frame, uint8 (H, W, 3) BGR; small frames are enlarged by an integer factor."""
    labels = [
        f"{each.id} {each.score:.2f}" if prompted else f"{each.id} {each.name} {each.score:.2f}" for each in objects
    ]
    scale = readable_scale(*image.shape[:2])
    return draw_masks(image, [each.array() for each in objects], [each.id for each in objects], labels, scale=scale)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a PNG atomically.

    Raises:
        OSError: if it cannot be written. (OpenCV would only return False.)
    """
    done, data = cv2.imencode(".png", picture)
    assert done
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())


class Masks(Output):
    """``masks/<frame>.png``: pixel = object id; a palette PNG, 16-bit grey in frames with an id over 254."""

    def write(self, frame: TrackedFrame) -> None:
        id_map = frame.id_map(self.info.height, self.info.width)
        write_mask_png(self.folder / "masks" / f"{frame.name}.png", id_map)


class Cutouts(Output):
    """``objects/<id>/<frame>.png``: the object on a transparent background, in the frames where it is visible."""

    def write(self, frame: TrackedFrame) -> None:
        assert frame.image is not None
        for each in frame.objects:
            write_picture(
                self.folder / OBJECTS / str(each.id) / f"{frame.name}.png", cut_out(frame.image, each.array())
            )


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4), BGRA: the image, transparent outside of the mask, bool (H, W)."""
    return np.dstack([image, mask.view(np.uint8) * np.uint8(255)])


_REST = 50  # hidden frames after which an object's encoder is closed


class AlphaMovies(Output):
    """``objects/<id>.webm``: the object on a transparent background, synchronous with the video (VP8 with alpha).

    It is transparent until the object appears. While the object is hidden, the last, empty frame stays.
    """

    def __init__(self, folder: Path, scratch: Path, info: VideoInfo, done: Done | None) -> None:
        super().__init__(folder, scratch, info, done)
        self._movies: dict[int, MovieWriter] = {}
        self._hidden: dict[int, int] = {}  # by object with an open encoder: frames since it was visible
        if done is not None:
            for path in sorted((folder / OBJECTS).glob("*.webm")):
                if path.stem.isdecimal():
                    self._movies[int(path.stem)] = self._movie(int(path.stem), done.time)

    def _movie(self, object_id: int, until: float | None) -> MovieWriter:
        path = self.folder / OBJECTS / f"{object_id}.webm"
        path.parent.mkdir(exist_ok=True)
        return MovieWriter(path, self.info.fps, form=VP8_ALPHA, scratch=self.scratch, until=until)

    def write(self, frame: TrackedFrame) -> None:
        assert frame.image is not None
        nothing = np.zeros((self.info.height, self.info.width, 4), np.uint8)
        for each in frame.objects:
            if each.id not in self._movies:
                self._movies[each.id] = self._movie(each.id, None)
                if frame.time > 0:
                    self._movies[each.id].write(nothing, 0.0)
            self._movies[each.id].write(cut_out(frame.image, each.array()), frame.time)
            self._hidden[each.id] = 0
        for object_id in [*self._hidden]:
            if all(each.id != object_id for each in frame.objects):
                if self._hidden[object_id] == 0:
                    self._movies[object_id].write(nothing, frame.time)
                self._hidden[object_id] += 1
                if self._hidden[object_id] >= _REST:
                    self._movies[object_id].close()
                    del self._hidden[object_id]

    def close(self) -> None:
        for movie in self._movies.values():
            movie.close()


class MOTText(Output):
    """``mot.txt``, as MOTChallenge has it: frame (from 1), id, left, top, width, height, score, -1, -1, -1."""

    file = "mot.txt"

    def __init__(self, folder: Path, scratch: Path, info: VideoInfo, done: Done | None) -> None:
        super().__init__(folder, scratch, info, done)
        path = folder / self.file
        kept = b""
        if done is not None and path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            kept = b"".join(line for line in lines if int(line.replace(b",", b" ").split()[0]) <= done.frames)
        path.write_bytes(kept)
        self._file = path.open("ab", buffering=0)

    def write(self, frame: TrackedFrame) -> None:
        lines = (self.line(frame.index + 1, each) for each in frame.objects)
        data = memoryview("".join(line + "\n" for line in lines if line).encode())
        while data:
            data = data[self._file.write(data) :]

    def line(self, number: int, found: TrackedObject) -> str:
        """The line of one object in frame ``number``."""
        left, top, width, height = coco_mask.toBbox(found.mask)
        return f"{number},{found.id},{left + 1:g},{top + 1:g},{width:g},{height:g},{found.score:.6g},-1,-1,-1"

    def close(self) -> None:
        self._file.close()


class MOTSText(MOTText):
    """``mots.txt``: frame (from 1), id, class (from 1), height, width, run lengths; no pixel belongs to two objects."""

    file = "mots.txt"

    def line(self, number: int, found: TrackedObject) -> str:
        if not coco_mask.area(found.owned):
            return ""
        height, width = found.owned["size"]
        return f"{number} {found.id} {found.class_id + 1} {height} {width} {found.owned['counts']}"


_SHEET = 12  # maximum number of images
_THUMBNAIL = 360  # width in pixels


class Sheet(Output):
    """``sheet.png``: up to twelve frames with their objects, evenly over the video."""

    def __init__(self, folder: Path, scratch: Path, info: VideoInfo, done: Done | None) -> None:
        super().__init__(folder, scratch, info, done)
        self._thumbnails = scratch / "sheet"
        self._thumbnails.mkdir(exist_ok=True)
        for path in self._thumbnails.iterdir():
            if done is None or int(path.stem) >= done.frames:
                path.unlink()
        self._kept = sorted(int(path.stem) for path in self._thumbnails.iterdir())
        self._stride = self._kept[1] - self._kept[0] if len(self._kept) > 1 else 1

    def write(self, frame: TrackedFrame) -> None:
        if frame.index % self._stride:
            return
        assert frame.image is not None
        if len(self._kept) == 2 * _SHEET:  # the length of the video may be unknown: double the stride
            self._stride *= 2
            for index in self._kept[1::2]:
                (self._thumbnails / f"{index}.png").unlink()
            self._kept = self._kept[::2]
            if frame.index % self._stride:
                return
        height, width = frame.image.shape[:2]
        size = (_THUMBNAIL, max(1, round(height * _THUMBNAIL / width)))
        small = cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA)
        masks = [
            cv2.resize(each.array().view(np.uint8), size, interpolation=cv2.INTER_NEAREST) for each in frame.objects
        ]
        ids = [each.id for each in frame.objects]
        picture = draw_masks(small, [mask.astype(bool) for mask in masks], ids, [str(each) for each in ids])
        cv2.putText(picture, f"{frame.time:.1f} s", (6, size[1] - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3)
        cv2.putText(picture, f"{frame.time:.1f} s", (6, size[1] - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
        write_picture(self._thumbnails / f"{frame.index}.png", picture)
        self._kept.append(frame.index)

    def close(self) -> None:
        if not self._kept:
            return
        places = np.linspace(0, len(self._kept) - 1, min(_SHEET, len(self._kept))).round().astype(int)
        files = [self._thumbnails / f"{self._kept[place]}.png" for place in places]
        pictures: list[Any] = [cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR) for file in files]
        rows = [pictures[first : first + 4] for first in range(0, len(pictures), 4)]
        write_picture(self.folder / "sheet.png", contact_sheet(rows))


STREAMED: dict[str, type[Output]] = {
    "overlay": Overlay,
    "masks": Masks,
    "cutouts": Cutouts,
    "alpha": AlphaMovies,
    "mot": MOTText,
    "mots": MOTSText,
    "sheet": Sheet,
}
