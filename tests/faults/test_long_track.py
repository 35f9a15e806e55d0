# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A short run of tests/faults/long_track.py, which is for 10,000 frames."""

from __future__ import annotations

from pathlib import Path

from tests.faults.long_track import OBJECTS, figures, run


def test_a_looped_clip_is_tracked_and_measured(tmp_path: Path) -> None:
    found = run(24, tmp_path, ["mot", "masks"], sample=6)
    report = figures(found, settled=12)
    assert report["frames"] == 24 and report["objects"] >= OBJECTS
    assert report["mb_most"] - report["mb_settled"] < 20  # the outputs and the stream keep nothing of a frame
