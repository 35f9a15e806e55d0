# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ausm_d2.data.mask_sources import FirstFrames, LabelPictures, ListedMasks, ObjectFolders
from ausm_d2.errors import UserError
from tests.data.disk import SIZE, square, write_labels


def label_pictures(folder: Path, *pictures: np.ndarray | None) -> LabelPictures:
    files = []
    for t, labels in enumerate(pictures):
        files.append(None if labels is None else f"{t}.png")
        if labels is not None:
            write_labels(folder / f"{t}.png", labels)
    return LabelPictures(str(folder), tuple(files), SIZE)


def test_label_pictures(tmp_path: Path) -> None:
    both = square(0) * 1 + square(0, offset=10) * 2
    masks = label_pictures(tmp_path, both, None, square(2) * 0)
    assert {i: mask.sum() for i, mask in masks.read(0).items()} == {1: 36, 2: 36}
    assert masks.read(1) == {} and masks.read(2) == {}


def test_255_is_an_object_or_void_depending_on_all_masks_of_a_video(tmp_path: Path) -> None:
    masks = label_pictures(tmp_path / "white", square(0) * 0, None, square(2) * 255)
    assert list(masks.read(2)) == [1] and np.array_equal(masks.read(2)[1], square(2))
    void = np.where(square(0, offset=10), 255, square(0) * 7)
    masks = label_pictures(tmp_path / "void", void, square(1) * 255, square(2) * 7)
    assert list(masks.read(0)) == [7] and list(masks.read(2)) == [7]
    assert masks.read(1) == {}, "the object is hidden, and only void is left"


def test_antialiased_edges_are_refused(tmp_path: Path) -> None:
    smooth = np.zeros(SIZE, np.uint8)
    cv2.circle(smooth, (18, 12), 9, 255, -1, cv2.LINE_AA)
    with pytest.raises(UserError, match=r"0\.png: \d+ object ids, \d+ of them on hardly any pixels"):
        label_pictures(tmp_path, smooth).read(0)


def test_label_picture_of_another_size_names_the_file(tmp_path: Path) -> None:
    masks = label_pictures(tmp_path, square(0) * 1)
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(UserError, match=r"0\.png: is 5 x 6 \(height x width\), its frame is 24 x 36"):
        masks.read(0)


def test_missing_and_broken_label_pictures_name_the_file(tmp_path: Path) -> None:
    masks = label_pictures(tmp_path, square(0) * 1)
    data = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"0\.png: the mask cannot be decoded"):
        masks.read(0)
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match=r"0\.png: the mask is missing"):
        masks.read(0)


def test_object_folders_overlap_and_object_zero_counts(tmp_path: Path) -> None:
    for name, offset in (("000", 0), ("003", 2)):
        write_labels(tmp_path / name / "00000.png", square(0, offset) * 255, mode="L")
    write_labels(tmp_path / "003" / "00004.png", square(0) * 1, mode="L")
    pictures = {0: frozenset({"00000"}), 3: frozenset({"00000", "00004"})}
    masks = ObjectFolders(str(tmp_path), {0: "000", 3: "003"}, ("00000", "00004"), pictures, SIZE)
    first = masks.read(0)
    assert np.array_equal(first[0], square(0)) and np.array_equal(first[3], square(0, 2))
    assert (first[0] & first[3]).any()
    assert list(masks.read(1)) == [3]


def test_first_frames_are_found_when_asked_for() -> None:
    reads = []

    class Counted(ListedMasks):
        def read(self, index: int) -> dict:
            reads.append(index)
            return super().read(index)

    masks = Counted({4: [None, square(0), square(0)], 9: [None, None, square(0)]})
    first = FirstFrames(masks, [1, 2])
    assert not reads
    assert dict(first) == {4: 1, 9: 2} and len(first) == 2 and 5 not in first
    assert reads == [1, 2]
    assert dict(FirstFrames(masks, [1, 2], objects=[4])) == {4: 1}
    assert reads == [1, 2, 1]
