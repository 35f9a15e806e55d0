# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A tiny model, a server around it, and pages that ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ausm_d2.app.limits import Limits
from ausm_d2.config import load_config
from ausm_d2.streaming.predictor import VideoPredictor
from tests.tiny import write_tiny_config
from tests.video.clips import write_clip

FRAMES = 6


@pytest.fixture(scope="session")
def tiny_config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_config(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_predictor(tiny_config_file: Path) -> VideoPredictor:
    return VideoPredictor(load_config(str(tiny_config_file)))


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video, one below, and things that are none."""
    folder = tmp_path_factory.mktemp("videos")
    write_clip(folder / "a.mp4", FRAMES)
    (folder / "below").mkdir()
    write_clip(folder / "below" / "one.mp4", 1)
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.mp4").touch()
    (folder / "notes.txt").write_text("no video")
    (folder / ".hidden.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n")
    outside = tmp_path_factory.mktemp("outside")
    write_clip(outside / "secret.mp4", 2)
    (folder / "link.mp4").symlink_to(outside / "secret.mp4")
    return folder


@pytest.fixture
def limits(videos: Path) -> Limits:
    return Limits(folder=videos.resolve(), max_bytes=1 << 20, max_frames=50, sessions=2, idle=600)


def until(true: Callable[[], Any], seconds: float = 20) -> Any:
    """What a function returns once that is true."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)
    return value
