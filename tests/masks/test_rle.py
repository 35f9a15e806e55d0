# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ausm_d2.errors import UserError
from ausm_d2.masks.rle import cut_out, decode, encode, first_invalid, intersections, measure, to_rle
from tests.data.disk import SIZE
from tests.evaluation.cases import rectangle, uncompressed


def random_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    kind = rng.integers(0, 4)
    if kind == 0:
        return rng.random((height, width)) < rng.random()
    if kind == 1:
        return np.full((height, width), bool(rng.integers(2)))
    return rectangle(rng, height, width)


def test_counts_equal_those_of_arrays() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(1, 60, 2)
        rows = [random_mask(rng, height, width) for _ in range(3)]
        columns = [random_mask(rng, height, width) for _ in range(4)]
        row_areas = np.array([row.sum() for row in rows])
        shared = intersections([encode(mask) for mask in rows], row_areas, [encode(mask) for mask in columns])
        assert shared.tolist() == [[int((row & column).sum()) for column in columns] for row in rows]
        assert measure([None, *map(encode, rows)]).areas.tolist() == [0, *(int(row.sum()) for row in rows)]


def test_areas_of_more_than_255_masks() -> None:
    # pycocotools.mask.area takes no more in one call.
    masks = [np.arange(12).reshape(3, 4) < i % 13 for i in range(600)]
    assert measure([encode(mask) for mask in masks]).areas.tolist() == [i % 13 for i in range(600)]


def test_measures_are_those_of_pixels() -> None:
    rng = np.random.default_rng(2)
    for _ in range(120):
        height, width = rng.integers(1, 60, 2)
        masks = [random_mask(rng, height, width) for _ in range(6)]
        measured = measure([None, *map(encode, masks)])
        for index, mask in enumerate(masks, start=1):
            pixels = np.flatnonzero(mask.ravel(order="F"))
            assert measured.areas[index] == len(pixels) and not measured.broken[index]
            if len(pixels):
                assert (measured.starts[index], measured.stops[index]) == (pixels[0], pixels[-1] + 1)
            else:
                assert measured.starts[index] >= measured.stops[index]
        assert [field[0] for field in measured] == [0, 0, 0, False]


def test_sums_that_leave_32_bits() -> None:
    height, width = 8000, 16000
    rng = np.random.default_rng(4)
    bounds = np.sort(rng.integers(1, height * width, (300, 4)))
    runs = np.diff(bounds, prepend=0, append=height * width)
    rles = [to_rle({"size": [height, width], "counts": of_one.tolist()}, height, width) for of_one in runs]
    measured = measure(rles)
    assert not measured.broken.any()
    assert measured.areas.tolist() == runs[:, 1::2].sum(axis=1).tolist()
    assert measured.starts.tolist() == bounds[:, 0].tolist() and measured.stops.tolist() == bounds[:, 3].tolist()


def read_plainly(text: bytes) -> list[int] | None:
    """Run lengths of compressed counts, character by character; ``None``: they are no such text."""
    runs: list[int] = []
    number = digits = 0
    for character in text:
        if not 48 <= character < 112:
            return None
        number |= (character - 48 & 31) << 5 * digits
        digits += 1
        if character - 48 < 32:
            number -= (number >> 5 * digits - 1 & 1) << 5 * digits
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = digits = 0
    return None if digits else runs


def test_random_texts_are_read_as_they_are() -> None:
    rng = np.random.default_rng(3)
    broken = 0
    for case in range(3000):
        size = [int(side) for side in rng.integers(1, 9, 2)]
        text = bytes(rng.integers(47, rng.choice([56, 64, 112, 114]), rng.integers(1, 12)).tolist()).decode()
        if case % 2:
            text = encode(rng.random(size) < 0.4)["counts"] + (text[:1] if case % 4 == 1 else "")
        runs = read_plainly(text.encode())
        expected = runs is None or min(runs) < 0 or sum(runs) != size[0] * size[1]
        measured = measure([{"size": size, "counts": text}, encode(np.ones((2, 2), bool))])
        assert measured.broken.tolist() == [expected, False], (text, size)
        assert expected or measured.areas[0] == sum(runs[1::2])
        broken += expected
    assert 1000 < broken < 2900


def test_valid_counts_pass_and_broken_ones_are_found() -> None:
    rng = np.random.default_rng(1)
    for _ in range(150):
        height, width = rng.integers(1, 60, 2)
        masks = [random_mask(rng, height, width) for _ in range(rng.integers(1, 100))]
        rles = [encode(mask) for mask in masks]
        assert first_invalid(rles) is None
        broken = int(rng.integers(len(rles)))
        counts = rles[broken]["counts"]
        # One more pixel at the end, or text that ends within a number
        rles[broken] = {**rles[broken], "counts": counts + "1" if rng.random() < 0.5 else counts[:-1] + "P"}
        assert first_invalid(rles) == broken


@pytest.mark.parametrize(
    "counts",
    [
        "0",  # no pixel at all
        "9" * 50,  # too many
        "\x10\x11",  # characters that are no digits
        "é" * 4,
        "PPPPPPPPPPP1",  # a number of 55 bits
        "d0Mc0",  # runs of 20, -3 and 19: 36 pixels, but one run is negative
    ],
)
def test_text_that_is_not_a_mask_is_refused(counts: str) -> None:
    assert first_invalid([{"size": [6, 6], "counts": counts}]) == 0


def test_every_form_of_mask() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    forms = [
        mask,
        encode(mask),
        uncompressed(mask),
        {**uncompressed(mask), "counts": tuple(uncompressed(mask)["counts"])},
        {**uncompressed(mask), "counts": [float(run) for run in uncompressed(mask)["counts"]]},
        {**uncompressed(mask), "counts": [str(run) for run in uncompressed(mask)["counts"]]},
    ]
    for form in forms:
        rle = to_rle(form, 6, 8)
        assert rle is not None and np.array_equal(decode(rle), mask)
    polygon = to_rle([[2, 1, 7, 1, 7, 4, 2, 4]], 6, 8)
    assert polygon is not None and np.array_equal(decode(polygon), mask)
    assert all(to_rle(nothing, 6, 8) is None for nothing in (None, {}, [], {"size": [6, 8], "counts": []}))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((8, 6), bool), "mask of size 8x6, expected 6x8"),
        ({"size": [8, 6], "counts": "abc"}, r"size \[8, 6\], expected \[6, 8\]"),
        ({"counts": "abc"}, r"size None, expected \[6, 8\]"),
        ({"size": [6, 8], "counts": [40, 2]}, "add up to 42 pixels, expected 6x8 = 48"),
        ({"size": [6, 8], "counts": [50, -2]}, "a number that is no run length"),
        ({"size": [6, 8], "counts": [24.5, 23.5]}, "something that is no whole number"),
        ({"size": [6, 8], "counts": [float("nan"), 48]}, "something that is no whole number"),
        ({"size": [6, 8], "counts": [1, "x"]}, "something that is no whole number"),
        ({"size": [6, 8], "counts": [1, None]}, "something that is no whole number"),
        ({"size": [6, 8], "counts": [47, 2**40]}, "a number that is no run length"),
        ({"size": [6, 8], "counts": 5}, "counts is int"),
        ([[1, 2, 3, 4]], "three at least"),
        ("text", "expected null, run lengths"),
    ],
)
def test_errors_say_what_is_wrong(mask: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_rle(mask, 6, 8)  # type: ignore[arg-type]


def whole(part: np.ndarray, x: int, y: int, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y : y + part.shape[1], x : x + part.shape[0]] = part.T > 0
    return mask


def test_cut_out_decodes_exactly_what_pycocotools_does() -> None:
    rng = np.random.default_rng(0)
    for case in range(400):
        size = tuple(int(side) for side in rng.integers(1, 40, 2))
        mask = cv2.GaussianBlur(rng.random(size), (0, 0), rng.uniform(0.2, 5))
        mask = np.ascontiguousarray(mask > np.quantile(mask, rng.random()))
        if case % 10 == 0:
            mask[:] = case % 20 == 0  # empty and full
        rle = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
        counts = {"size": rle["size"], "counts": rle["counts"].decode()}
        for stored in (rle, counts, mask):
            part, x, y = cut_out(stored, size)
            assert np.array_equal(whole(part, x, y, size), mask)
            if part.size:
                assert part.any(axis=1)[[0, -1]].all()  # no empty column at its ends


@pytest.mark.parametrize(
    "stored",
    [
        {"size": [5, 5], "counts": [25]},
        {"size": list(SIZE), "counts": [3]},
        {"size": list(SIZE)},
        {"counts": "abc"},
        np.zeros((3, 3), bool),
        "mask",
    ],
)
def test_a_mask_that_does_not_fit_the_frame_is_an_error(stored: object) -> None:
    with pytest.raises(UserError):
        cut_out(stored, SIZE)  # type: ignore[arg-type]
