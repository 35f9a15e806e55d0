# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ausm_d2.errors import UserError
from ausm_d2.masks.png import read_labels, write_mask_png


def test_palette(tmp_path: Path) -> None:
    ids = np.arange(24).reshape(4, 6)
    write_mask_png(tmp_path / "a.png", ids)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P" and picture.size == (6, 4)
        # DAVIS's first colours
        assert picture.getpalette()[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
        assert np.array_equal(np.asarray(picture), ids)
    assert np.array_equal(read_labels(tmp_path / "a.png"), ids)


@pytest.mark.parametrize(("largest", "mode"), [(254, "P"), (255, "I;16"), (65535, "I;16")])
def test_many_objects_need_16_bits(tmp_path: Path, largest: int, mode: str) -> None:
    ids = np.array([[0, 1], [255 if largest > 254 else 3, largest]])
    write_mask_png(tmp_path / "a.png", ids)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == mode
    assert np.array_equal(read_labels(tmp_path / "a.png"), ids)


@pytest.mark.parametrize("wrong", [-1, 65536])
def test_ids_that_no_png_holds(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(UserError, match=r"a\.png: object ids from"):
        write_mask_png(tmp_path / "a.png", np.array([[0, wrong]]))
    assert not list(tmp_path.iterdir())
