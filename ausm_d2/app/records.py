# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The results of all frames of a video, any of which may be replaced: a database file of one session."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path

from ausm_d2.masks.rle import Rle
from ausm_d2.video.tracked import TrackedObject


class Records:
    """Objects by frame. Only ids and scores are held in memory. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.seen: dict[int, dict[int, float]] = {}  # scores of the objects in sight, by frame and id
        self.names: dict[int, str] = {}  # as the model calls the objects, by id
        self._lock = threading.Lock()
        self._closed = False
        self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        # The file is deleted with its session, so it does not have to survive a crash.
        self._file.execute("PRAGMA journal_mode = OFF")
        self._file.execute("PRAGMA synchronous = OFF")
        self._file.execute("CREATE TABLE IF NOT EXISTS frames (number INTEGER PRIMARY KEY, objects TEXT)")

    def put(self, index: int, objects: list[TrackedObject]) -> None:
        """Store the visible objects of a frame, replacing earlier ones."""
        entries = []
        for each in objects:
            mask, owned = each.mask, None if each.owned is each.mask else each.owned["counts"]
            entries.append([each.id, each.name, each.class_id, each.score, mask["size"], mask["counts"], owned])
        with self._lock:
            self._file.execute("INSERT OR REPLACE INTO frames VALUES (?, ?)", (index, json.dumps(entries)))
            self.seen[index] = {each.id: each.score for each in objects}
            self.names.update({each.id: each.name for each in objects})

    def get(self, index: int) -> list[TrackedObject]:
        """The objects of a frame; empty if it has not been processed."""
        with self._lock:
            if self._closed:  # another video was chosen meanwhile
                return []
            row = self._file.execute("SELECT objects FROM frames WHERE number = ?", (index,)).fetchone()
        objects = []
        for object_id, name, class_id, score, size, counts, owned in json.loads(row[0]) if row else []:
            mask: Rle = {"size": size, "counts": counts}
            own: Rle = mask if owned is None else {"size": size, "counts": owned}
            objects.append(TrackedObject(object_id, name, class_id, score, mask, own))
        return objects

    def clear(self) -> None:
        with self._lock:
            self._file.execute("DELETE FROM frames")
            self.seen, self.names = {}, {}

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._file.close()
