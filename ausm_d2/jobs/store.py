# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Results of many videos below an fsspec path, each committed once. Imports neither PyTorch nor Detectron2.

``OUT/<video>/`` contains what ``ausm track`` writes, and ``_COMMITTED.json``, the row of the report. That file is
written last; a video without it has no result. Files are first written to ``OUT/.attempts/<random>/``, so a killed
process leaves nothing incomplete under a final name with its marker. Two attempts at one video that end at the same
time write the same files: tracking is deterministic on one kind of machine.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec

from ausm_d2.errors import UserError
from ausm_d2.jobs.report import Row

MARKER = "_COMMITTED.json"
_ATTEMPTS = ".attempts"


class ResultStore:
    """Results below one path."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: a folder, or an fsspec address such as ``s3://bucket/results``.

        Raises:
            UserError: if fsspec has no such file system, or the path cannot be created.
        """
        self._fs, self._root = open_file_system(url)
        try:
            self._fs.makedirs(self._root, exist_ok=True)
        except OSError as error:
            raise UserError(f"'{url}' cannot be written: {error}") from None

    def committed(self, name: str) -> Row | None:
        """The row of a video whose result is complete."""
        try:
            return Row(**json.loads(self._fs.cat_file(f"{self._root}/{name}/{MARKER}")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError):  # its writer was killed in the middle of it
            return None

    def commit(self, row: Row, folder: Path) -> Row:
        """Commit a result.

        Args:
            row: of the video.
            folder: with its files, on this machine.

        Returns:
            The committed row; that of an earlier attempt, if there is one.
        """
        earlier = self.committed(row.video)
        if earlier is not None:
            return earlier
        attempt, target = f"{self._root}/{_ATTEMPTS}/{uuid.uuid4().hex}", f"{self._root}/{row.video}"
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            place = f"{attempt}/{file.relative_to(folder).as_posix()}"
            self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(file), place)
        if self._fs.exists(target):  # of an attempt that ended before its marker
            self._fs.rm(target, recursive=True)
        self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._fs.mv(attempt, target, recursive=True)
        with self._fs.open(f"{target}/{MARKER}", "w") as file:
            file.write(json.dumps(asdict(row)))
        return row

    def write(self, name: str, text: str) -> None:
        """A file beside the results, such as the report."""
        self._fs.pipe_file(f"{self._root}/{name}", text.encode())

    def discard_attempts(self) -> None:
        """Remove the files of killed attempts. Call it only while no other job writes here."""
        if self._fs.exists(f"{self._root}/{_ATTEMPTS}"):
            self._fs.rm(f"{self._root}/{_ATTEMPTS}", recursive=True)


def open_file_system(url: str) -> tuple[Any, str]:
    """The file system of a path or address, and the path in it.

    Raises:
        UserError: if fsspec has no such file system.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"'{url}': {error}") from None
    return fs, path.rstrip("/")
