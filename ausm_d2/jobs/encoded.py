# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Encodes the frames of a file in a second thread, ahead of the session."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np

from ausm_d2.cores import available_cores
from ausm_d2.streaming.ahead import EncodedFrame
from ausm_d2.streaming.session import Session
from ausm_d2.video.frame import Frame


def encoded(
    session: Session, frames: Iterator[Frame], *, live: bool, stopped: Callable[[], bool] = lambda: False
) -> Iterator[tuple[Frame, np.ndarray | EncodedFrame]]:
    """Yields each frame with the argument for ``session.step``: encoded ahead for a file, if a core is free for that.

    A camera's frames are not encoded ahead, since newer ones may replace them. On a CPU frames are encoded one by one:
    then results do not depend on where a resumed run began.

    Args:
        session: after its first frame.
        frames: those after it.
        live: the frames come from a camera.
        stopped: True ends the iteration.
    """
    on_gpu = session.device.type == "cuda"
    if live or not (on_gpu or available_cores() > 1):
        yield from ((frame, frame.image) for frame in frames)
        return
    waiting: deque[Frame] = deque()  # read, not yet yielded; appended to by the second thread

    def images() -> Iterator[np.ndarray]:
        for frame in frames:
            waiting.append(frame)
            yield frame.image

    with closing(session.ahead(images(), at_once=None if on_gpu else 1)) as ahead:
        for image in ahead:
            if stopped():
                break
            yield waiting.popleft(), image
