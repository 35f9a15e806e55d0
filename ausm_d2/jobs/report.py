# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The report of a job on many videos. Imports neither PyTorch nor Detectron2."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ausm_d2.io import atomic_write

REPORT = "report.json"
TABLE = "report.md"


@dataclass
class Row:
    """The outcome of one video."""

    video: str
    status: str  # done, stopped or failed
    frames: int = 0
    objects: int = 0
    seconds: float = 0.0
    error: str = ""


class Report:
    """``report.json`` and ``report.md``, rewritten after every video."""

    def __init__(self, names: Sequence[str], write: Callable[[str, str], None]) -> None:
        """
        Args:
            names: of the videos, in the order of the report.
            write: called with the name of a file and its text.
        """
        self.rows: dict[str, Row] = {}
        self._order = list(names)
        self._write = write
        self._begin = time.monotonic()

    def add(self, row: Row) -> None:
        """Add the outcome of a video."""
        self.rows[row.video] = row
        self.write()

    def write(self) -> None:
        """Write both files."""
        rows = [self.rows[name] for name in self._order if name in self.rows]
        seconds = time.monotonic() - self._begin
        data: dict[str, Any] = {
            "version": 1,
            **{status: self.count(status) for status in ("done", "stopped", "failed")},
            "waiting": len(self._order) - len(rows),
            "seconds": round(seconds, 2),
            "videos": [asdict(each) for each in rows],
        }
        self._write(REPORT, json.dumps(data, indent=1, ensure_ascii=False))
        self._write(TABLE, self.table() + "\n")

    def count(self, status: str) -> int:
        return sum(row.status == status for row in self.rows.values())

    def table(self) -> str:
        """A Markdown table."""
        rows = [asdict(self.rows[name]) for name in self._order if name in self.rows]
        return tabulate(rows, headers="keys", tablefmt="github")


def write_into(folder: Path) -> Callable[[str, str], None]:
    """For :class:`Report`: write the files into a folder."""

    def write(name: str, text: str) -> None:
        with atomic_write(folder / name) as path:
            path.write_text(text, encoding="utf-8")

    return write
