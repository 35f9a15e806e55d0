# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The videos that can be chosen: those in the user's folder, the shipped ones, and uploads."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path

import numpy as np

import ausm_d2
from ausm_d2.app.limits import Limits, Refused
from ausm_d2.data.synthvis import SynthVis
from ausm_d2.errors import UserError
from ausm_d2.jobs.folder import MOVIES
from ausm_d2.names import files_below
from ausm_d2.video.movie import MovieWriter

SUFFIXES = (*MOVIES, ".gif")
_SHIPPED = Path(ausm_d2.__file__).resolve().parents[1] / "demo" / "clips"  # of a checkout; wheels hold no videos
_DRAWN = "drawn shapes.mp4"
_LISTED = 300  # files at most
_LOOKED_AT = 20_000


class Library:
    """Finds videos by the names that it lists. Files outside its folders cannot be reached."""

    def __init__(self, limits: Limits, scratch: Path) -> None:
        self._limits = limits
        self._scratch = scratch
        self._drawing = threading.Lock()

    def folder(self) -> tuple[list[str], bool]:
        """Names of the videos in the user's folder and below, and whether these are all."""
        root = self._limits.folder
        if root is None:
            return [], True
        found: list[str] = []
        looked_at = 0
        for path in islice(files_below(root), _LOOKED_AT):
            looked_at += 1
            name = path.relative_to(root)
            hidden = any(part.startswith(".") for part in name.parts)
            if not hidden and path.suffix.lower() in SUFFIXES and _inside(path, root):
                found.append(str(name))
        return found[:_LISTED], len(found) <= _LISTED and looked_at < _LOOKED_AT

    def clips(self) -> list[str]:
        """Names of the shipped videos."""
        return [path.name for path in sorted(_SHIPPED.glob("*.mp4"))] + [_DRAWN]

    def in_folder(self, name: str) -> Path:
        """The file of a name in the user's folder.

        Raises:
            Refused: the file does not exist, is outside the folder, is too large, or does not have a video's suffix.
        """
        root = self._limits.folder
        if root is None or "\0" in name:
            raise Refused(404, f"'{name}' is not in the folder")
        path = root / name
        if any(part.startswith(".") for part in Path(name).parts) or not _inside(path, root):
            raise Refused(404, f"'{name}' is not in the folder")
        self.check_name(name)
        if path.stat().st_size > self._limits.max_bytes:
            raise Refused(413, f"'{name}': {_megabytes(path.stat().st_size)}, {self._at_most()}")
        return path

    def shipped(self, name: str) -> Path:
        """The file of a shipped video.

        Raises:
            Refused: there is no such video.
        """
        if name not in self.clips():
            raise Refused(404, f"there is no clip '{name}'")
        return self._drawn() if name == _DRAWN else _SHIPPED / name

    def check_name(self, name: str) -> str:
        """The suffix of a video file's name.

        Raises:
            Refused: it is not a video's suffix.
        """
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in SUFFIXES:
            raise Refused(415, f"'{name}': not a video; expected one of {' '.join(SUFFIXES)}")
        return suffix

    async def upload(self, name: str, claimed: str | None, chunks: AsyncIterator[bytes], folder: Path) -> Path:
        """Write an upload to a folder.

        Args:
            name: of the file, as the browser has it; only its suffix is used.
            claimed: the Content-Length.
            chunks: the contents.

        Raises:
            Refused: it is too large (as claimed, or as received), empty, or does not have a video's suffix. No file is
                left.
        """
        suffix = self.check_name(name)
        if claimed is not None and claimed.isdecimal() and int(claimed) > self._limits.max_bytes:
            raise Refused(413, f"'{name}': {_megabytes(int(claimed))}, {self._at_most()}")
        path = folder / f"upload{suffix}"
        size = 0
        try:
            with path.open("wb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self._limits.max_bytes:
                        raise Refused(413, f"'{name}': {self._at_most()}")
                    file.write(chunk)
            if not size:
                raise Refused(415, f"'{name}': an empty file")
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UserError(f"'{name}': cannot be stored: {error.strerror}") from None
        except BaseException:  # the browser has gone away, say
            path.unlink(missing_ok=True)
            raise
        return path

    def _at_most(self) -> str:
        return f"at most {_megabytes(self._limits.max_bytes)} are taken (--max-mb)"

    def _drawn(self) -> Path:
        """Write a generated video, so that there is always one to try."""
        path = self._scratch / _DRAWN
        with self._drawing:
            if not path.exists():
                frames = SynthVis(seed=1, num_videos=1, num_frames=48)[0].frames
                with MovieWriter(path, 12) as movie:
                    for index in range(len(frames)):
                        large = np.kron(frames[index], np.ones((3, 3, 1), np.uint8))
                        movie.write(np.ascontiguousarray(large[..., ::-1]))
        return path


def _inside(path: Path, root: Path) -> bool:
    """Whether a path, with links resolved, is a file inside a folder."""
    try:
        return path.resolve().is_relative_to(root.resolve()) and path.is_file()
    except (OSError, RuntimeError):  # too long a name, a circle of links
        return False


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MB"
