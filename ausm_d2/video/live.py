# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Reads a camera of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator

import cv2

from ausm_d2.errors import UserError
from ausm_d2.video.frame import Frame, Source, known_rate


def open_camera(number: int) -> Source:
    """Open a camera. It is read until it stops or the source's ``frames`` are closed.

    Raises:
        UserError: if there is no such camera, or another program uses it.
    """
    levels = cv2.utils.logging
    level = levels.getLogLevel()
    levels.setLogLevel(levels.LOG_LEVEL_SILENT)  # it prints lines of its own about a camera that is not there
    try:
        camera = cv2.VideoCapture(number)
    finally:
        levels.setLogLevel(level)
    if not camera.isOpened():
        raise UserError(f"camera {number} cannot be opened")

    def frames() -> Iterator[Frame]:
        start, index = None, 0
        try:
            while True:
                there, picture = camera.read()
                if not there:
                    return
                now = time.monotonic()
                start = now if start is None else start
                yield Frame(f"{index:05d}", picture, now - start)
                index += 1
        finally:
            camera.release()

    return Source(f"camera {number}", frames(), None, known_rate(camera.get(cv2.CAP_PROP_FPS)), live=True)
