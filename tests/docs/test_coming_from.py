# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The Python of docs/coming_from.md runs as it stands there, with a tiny model and 10 frames for 10,000."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ausm_d2.streaming.predictor import VideoPredictor
from tests.tiny import HEIGHT, WIDTH, tiny_cfg

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "coming_from.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = VideoPredictor(tiny_cfg("TEST.AUSM.FG_THRESHOLD", 0.0))
    monkeypatch.setattr(VideoPredictor, "from_pretrained", classmethod(lambda cls, name: tiny))
    monkeypatch.chdir(tmp_path)
    frames = list(np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3), np.uint8))
    names: dict[str, Any] = {"frames": frames}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 9 and "10_000" in blocks[2]
    for block in blocks:
        exec(compile(block.replace("10_000", "10"), "docs/coming_from.md", "exec"), names)
    assert names["ids"].shape == (HEIGHT, WIDTH)
    assert len(names["forward"]) == len(names["again"]) == len(names["backward"]) == 4
    assert names["continued"].track_ids == [] and names["labels"].shape == (HEIGHT, WIDTH)
    said = capsys.readouterr().out
    assert "objects in 10 frames" in said and re.search(r"\b1, 20\b", said)


def test_every_issue_that_the_page_answers_is_linked() -> None:
    for issue in ("sam3/issues/408", "sam3/issues/169", "sam3/issues/261", "ultralytics/issues/25707"):
        assert f"{issue})" in PAGE
