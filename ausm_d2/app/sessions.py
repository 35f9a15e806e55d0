# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The sessions of one server: each has an unguessable token; their number is limited, and idle ones are dropped."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from pathlib import Path

from ausm_d2.app.follower import Turns
from ausm_d2.app.limits import Limits, Refused
from ausm_d2.app.project import Project
from ausm_d2.streaming.predictor import VideoPredictor

logger = logging.getLogger(__name__)


class Sessions:
    """Projects by token."""

    def __init__(self, predictor: VideoPredictor, limits: Limits, scratch: Path) -> None:
        """
        Args:
            scratch: folder for the files of all sessions.
        """
        self._predictor, self._limits, self._scratch = predictor, limits, scratch
        self._turns = Turns()
        self._lock = threading.Lock()
        self._projects: dict[str, Project] = {}

    def create(self) -> str:
        """The token of a new session. If there are too many, the least recently used one without a page is dropped.

        Raises:
            Refused: all sessions have a page open.
        """
        self.sweep()
        gone = None
        with self._lock:
            if len(self._projects) >= self._limits.sessions:
                left = {token: each for token, each in self._projects.items() if not each.events.listened_to}
                if not left:
                    raise Refused(
                        503, f"{len(self._projects)} sessions are in use (--sessions); close one of the pages"
                    )
                gone = self._projects.pop(min(left, key=lambda token: left[token].used))
            token = secrets.token_urlsafe(32)
            folder = self._scratch / secrets.token_hex(8)
            self._projects[token] = Project(self._predictor, self._turns, folder, self._limits)
        if gone is not None:
            gone.close()
        return token

    def get(self, token: str) -> Project:
        """The session of a token; this counts as use.

        Raises:
            Refused: the session does not exist, or has ended.
        """
        with self._lock:
            project = self._projects.get(token)
        if project is None:
            raise Refused(404, "the session has ended")
        project.used = time.monotonic()
        return project

    def sweep(self) -> None:
        """Drop idle sessions."""
        oldest = time.monotonic() - self._limits.idle
        with self._lock:
            idle = [token for token, each in self._projects.items() if each.used < oldest]
            gone = [self._projects.pop(token) for token in idle]
        for project in gone:
            project.close()

    def close(self) -> None:
        """End all sessions."""
        with self._lock:
            gone, self._projects = list(self._projects.values()), {}
        for project in gone:
            project.close()
