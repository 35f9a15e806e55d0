# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The model's output for each video, written to a separate file immediately.

Memory does not grow, and an interrupted evaluation resumes with the missing videos.

Shape shorthand:
    T: frames of a video
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from ausm_d2.data.items import TrackEntry, VideoResult
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write
from ausm_d2.masks.rle import Rle

_LONGEST = 200  # characters of a file name; file systems allow 255 bytes


class Output:
    """The model's output for one video, of either task."""

    def __init__(self, output: VideoResult) -> None:
        # a track may have several classes
        self.tracks: list[TrackEntry] = output.get("tracks", [])
        # masks (T) by object id; None: the video was not prompted
        self.objects: dict[int, list[Rle | None]] | None = None
        if "objects" in output:
            self.objects = {int(object_id): masks for object_id, masks in output["objects"].items()}  # JSON: text

    def best_classes(self) -> list[TrackEntry]:
        """Each track once, with its best class."""
        best: dict[int, TrackEntry] = {}
        for track in self.tracks:
            if track["track_id"] not in best or track["score"] > best[track["track_id"]]["score"]:
                best[track["track_id"]] = track
        return list(best.values())


class ResultFolder:
    """A folder with one JSON file per finished video: the model's output, unchanged."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, record: VideoRecord) -> Path:
        """The file of a video's results. Ids may have any characters and any length."""
        name = quote(str(record.video_id), safe="")
        if len(name) > _LONGEST:
            name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        return self.folder / f"{name}.json"

    def write(self, record: VideoRecord, text: str) -> None:
        """Write the model's output, as JSON text."""
        with atomic_write(self.path(record)) as path:
            path.write_text(text, encoding="utf-8")

    def read(self, record: VideoRecord) -> Output:
        """Read the model's output."""
        return Output(json.loads(self.path(record).read_text(encoding="utf-8")))

    def missing(self, records: Iterable[VideoRecord]) -> list[VideoRecord]:
        """The videos without results."""
        return [record for record in records if not self.path(record).exists()]

    def require(self, records: Iterable[VideoRecord]) -> None:
        """Raise ``UserError`` if videos have no results."""
        missing = self.missing(records)
        if missing:
            raise UserError(f"{self.folder}: {len(missing)} videos have no result, the first of them {missing[0].name}")

    def files(self) -> list[Path]:
        """All result files."""
        return sorted(self.folder.glob("*.json"))

    def clear(self) -> None:
        """Remove all results."""
        for path in self.files():
            path.unlink(missing_ok=True)  # several machines may share the folder
