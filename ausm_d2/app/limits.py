# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Limits of the server, and the exception for refused requests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ausm_d2.errors import UserError


class Refused(UserError):
    """A refused request; ``status`` is the HTTP status of the response."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Of one server."""

    folder: Path | None = None  # videos in it may be chosen; None: none
    max_bytes: int = 500 << 20  # of a video file
    max_frames: int = 20_000  # of a video
    sessions: int = 4  # at a time: each has a video, and up to 256 MB of keyframes
    idle: float = 1800.0  # seconds after which a session that nobody uses is dropped
