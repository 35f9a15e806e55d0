# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from pathlib import Path

import pytest

from ausm_d2.names import natural_order, sorted_files


@pytest.mark.parametrize(
    "names",
    [
        ["1.jpg", "2.jpg", "10.jpg", "011.jpg"],
        ["frame_2.jpg", "frame_10.jpg", "frame_0100.jpg"],
        ["cam1_frame9.png", "cam1_frame10.png", "cam2_frame1.png", "cam10_frame1.png"],
        ["2.png", "2a.png", "a1.png", "a1b.png", "a2.png"],
        ["frame.jpg", "frame1.jpg", "frame1.png"],
        ["v2/10.jpg", "v10/1.jpg", "v10/2.jpg"],
        ["视频2.png", "视频10.png"],
        [f"{'9' * 200}.png", f"1{'0' * 200}.png"],
    ],
)
def test_numbers_inside_names_compare_as_numbers(names: list[str]) -> None:
    shuffled = random.Random(0).sample(names, len(names))
    assert sorted(shuffled, key=natural_order) == names
    assert sorted(map(Path, shuffled), key=natural_order) == [Path(name) for name in names]


def test_files_of_a_folder_come_in_natural_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("f10.JPG", "f9.jpg", "._f9.jpg", "f1.png", "notes.txt"):
        (tmp_path / name).touch()
    assert sorted_files(tmp_path, (".jpg", ".png")) == ["f1.png", "f9.jpg", "f10.JPG"]
