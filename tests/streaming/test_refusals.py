# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What streams and sessions refuse, besides what the tests of each reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ausm_d2.errors import UserError
from ausm_d2.streaming.groups import GroupedStream
from ausm_d2.streaming.predictor import FORMAT, VideoPredictor
from tests.streaming.opened import box, frames, open_stream
from tests.tiny import tiny_cfg


@pytest.fixture(scope="module")
def predictor() -> VideoPredictor:
    torch.manual_seed(0)
    return VideoPredictor(tiny_cfg())


def test_files_of_torch_that_are_no_whole_session(predictor: VideoPredictor, tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    for saved in (Path("code that is not run"), {"format": FORMAT, "weights": predictor.fingerprint}):
        torch.save(saved, path)
        with pytest.raises(UserError, match=r"s\.pt: not a saved session, or a damaged one"):
            predictor.load(path)


def test_a_session_that_cannot_be_saved(
    predictor: VideoPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    session = predictor.start(frames(1)[0])
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"s\.pt: cannot be written: PytorchStreamWriter failed"):
        session.save(tmp_path / "s.pt")
    assert not list(tmp_path.iterdir())


def test_a_stream_is_of_a_label_set_of_its_network(predictor: VideoPredictor) -> None:
    with pytest.raises(UserError, match="no label set 'nope', the config has"):
        open_stream(predictor.model, label_set="nope")


def test_prompts_are_checked_before_a_frame_is_encoded(predictor: VideoPredictor) -> None:
    stream = GroupedStream(open_stream(predictor.model))
    with pytest.raises(UserError, match="16"):
        stream.encoded(frames(1)[0], {1: box((16, 16))})


def test_a_state_of_another_dtype_is_not_loaded(predictor: VideoPredictor) -> None:
    stream = open_stream(predictor.model)
    stream.step(frames(1)[0])
    assert stream.state is not None
    saved = stream.state.state_dict()
    saved["x_prev"] = saved["x_prev"].double()
    with pytest.raises(ValueError, match=r"x_prev: torch\.float64 .*, expected torch\.float32"):
        stream.state.load_state_dict(saved)
