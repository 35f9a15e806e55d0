# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

from ausm_d2.cli.main import build_parser
from ausm_d2.errors import UserError
from tools import gallery

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("entry", gallery.ENTRIES, ids=lambda entry: entry.name)
def test_the_page_has_every_picture_with_its_command(entry: gallery.Entry) -> None:
    assert build_parser().parse_args(shlex.split(entry.command)[1:]).command == "track"
    assert entry.command in PAGE
    [name] = re.findall(rf"images/gallery/({entry.name}\.\w+)\)", PAGE)
    assert (gallery.PICTURES / name).stat().st_size < 150_000
    assert (ROOT / shlex.split(entry.command)[2]).is_file()


def test_the_pictures_are_small_and_none_is_left_over() -> None:
    files = list(gallery.PICTURES.iterdir())
    assert {path.stem for path in files} == {entry.name for entry in gallery.ENTRIES}
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert set(gallery.README_ROWS.values()) < {entry.name for entry in gallery.ENTRIES}
    assert gallery.README_PICTURE.is_file()


def test_a_cutout_is_put_on_a_chequered_ground(tmp_path: Path) -> None:
    picture = np.zeros((48, 60, 4), np.uint8)
    picture[:24] = (10, 20, 30, 255)
    (tmp_path / "objects" / "3").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "objects" / "3" / "00000.png"), picture)
    sheet = gallery.cutouts(tmp_path, 3)
    np.testing.assert_array_equal(sheet[20, 50], [10, 20, 30])
    assert sheet[200, 50].min() >= 220
    with pytest.raises(UserError, match="no such picture: nothing"):
        gallery.main(["nothing"])
