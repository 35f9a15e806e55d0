# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ausm_d2.errors import UserError
from tests.tiny import write_tiny_config
from tools import train_decoder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["record", "-o", "recorded", "--frames", "0"], "--frames: 0, expected 1 or more"),
        (["train", "one", "two", "--shares", "1"], r"--shares: \[1\.0\], expected 2 numbers above 0"),
        (["train", "one", "--shares", "0"], r"--shares: \[0\.0\], expected 1 numbers above 0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_decoder", *arguments, "--config-file", str(write_tiny_config(tmp_path))])
    with pytest.raises(UserError, match=message):
        train_decoder.main()
    assert not (tmp_path / "recorded").exists()
