# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from pathlib import Path

import pytest

from ausm_d2.names import (
    files_below,
    natural_order,
    numbering_shift,
    repeated,
    several_series,
    sorted_files,
    subfolders,
)


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
        ["f٢.png", "f١٠.png"],
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


def test_folders_behind_links_are_found_and_loops_end(tmp_path: Path) -> None:
    for folder in ("data/v1", "disk/v10", "data/.hidden"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.txt").touch()
    (tmp_path / "data/v2").symlink_to(tmp_path / "disk/v10")
    (tmp_path / "data/v1/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/self").symlink_to(tmp_path / "data/self")
    (tmp_path / "data/gone").symlink_to(tmp_path / "nothing")
    assert subfolders(tmp_path / "data") == ["v1", "v2"]
    found = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path / "data")]
    assert [name for name in found if name.endswith(".txt")] == ["data/.hidden/a.txt", "data/v1/a.txt", "data/v2/a.txt"]


def test_names_that_differ_in_suffix_or_padding_only_are_found() -> None:
    assert repeated(["1.jpg", "2.jpg", "2.png"]) == ("2.jpg", "2.png")
    assert repeated(["f_01.png", "f_1.png"]) == ("f_01.png", "f_1.png")
    assert repeated(["1.jpg", "11.jpg", "a.jpg"]) is None


@pytest.mark.parametrize(
    ("names", "of", "shift"),
    [
        (["00001", "00002", "00003"], ["00000", "00001", "00002"], 1),
        (["f0", "f1"], ["f1", "f2", "f3"], -1),
        (["0", "4", "8"], ["4", "8", "12"], -4),
        (["0", "1"], ["0", "1", "2"], None),  # all fit
        (["0", "1", "9"], ["0", "1", "2"], None),  # one fits nothing
        (["a1", "a2"], ["b0", "b1"], None),
        ([], ["1"], None),
        (["x", "y"], ["0", "1"], None),
    ],
)
def test_shifted_numbering_is_distinguished_from_missing_files(
    names: list[str], of: list[str], shift: int | None
) -> None:
    assert numbering_shift(names, of) == shift


def test_a_name_of_thousands_of_digits_has_an_order() -> None:
    assert natural_order("9" * 5000) > natural_order("8")


def test_series_of_names_differ_in_more_than_numbers() -> None:
    assert several_series(["0", "0_mask", "1", "1_mask"]) == ["0", "0_mask"]
    assert several_series(["a_1", "a_2", "b_1"]) == ["a_1", "b_1"]
    assert several_series(["a_1", "a_2", "a_010"]) == []
    assert several_series(["one", "two"]) == [], "names without any rule"
    assert several_series(["a_1"]) == []
