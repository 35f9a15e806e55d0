# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ausm_d2.errors import UserError
from ausm_d2.masks import png
from ausm_d2.masks.png import read_labels, read_mask, write_mask_png


def test_palette(tmp_path: Path) -> None:
    ids = np.arange(24).reshape(4, 6)
    write_mask_png(tmp_path / "a.png", ids)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P" and picture.size == (6, 4)
        # DAVIS's first colours
        assert picture.getpalette()[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
        assert np.array_equal(np.asarray(picture), ids)
    assert np.array_equal(read_labels(tmp_path / "a.png"), ids)


@pytest.mark.parametrize(("largest", "mode"), [(254, "P"), (255, "I;16"), (65534, "I;16")])
def test_many_objects_need_16_bits(tmp_path: Path, largest: int, mode: str) -> None:
    ids = np.array([[0, 1], [255 if largest > 254 else 3, largest]])
    write_mask_png(tmp_path / "a.png", ids)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == mode
    assert np.array_equal(read_labels(tmp_path / "a.png"), ids)


@pytest.mark.parametrize("wrong", [-1, 65535])
def test_ids_out_of_range_are_refused(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(UserError, match=r"a\.png: object ids from"):
        write_mask_png(tmp_path / "a.png", np.array([[0, wrong]]))
    assert not list(tmp_path.iterdir())


def ids(largest: int) -> np.ndarray:
    """Every id up to ``largest`` once."""
    return np.arange(largest + 1, dtype=np.uint8).reshape(2, -1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 100}),
        ("a.png", {"format": "JPEG"}),  # by its content, not its name
        ("a.webp", {"quality": 100}),
        ("a.jp2", {}),
        ("a.tif", {"compression": "jpeg"}),
    ],
)
def test_lossy_pictures_are_no_masks(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    Image.fromarray(ids(3) * 60).save(tmp_path / name, **options)
    with pytest.raises(UserError, match=r"a\.\w+: a \w+ picture: its compression changes pixel values"):
        read_labels(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.gif", "a.pgm", "a.webp"])
def test_lossless_pictures_are_masks(tmp_path: Path, name: str) -> None:
    Image.fromarray(ids(3)).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    assert np.array_equal(read_labels(tmp_path / name), ids(3))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.gif", "a.webp"])
def test_a_file_with_several_pages_is_refused(tmp_path: Path, name: str) -> None:
    pages = [Image.fromarray(ids(3) * value) for value in (1, 2)]
    options = {"lossless": True} if name == "a.webp" else {}
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], **options)
    with pytest.raises(UserError, match=r"a\.\w+: holds 2 pictures; a mask is one picture"):
        read_labels(tmp_path / name)


@pytest.mark.parametrize("depth", [2, 4])
def test_grey_pictures_of_few_bits_hold_ids_not_shades(tmp_path: Path, depth: int) -> None:
    expected = ids(2**depth - 1)
    write_grey_png(tmp_path / "a.png", expected, depth)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "L" and np.asarray(picture).max() == 255, "as Pillow reads them"
    assert np.array_equal(read_labels(tmp_path / "a.png"), expected)


def write_grey_png(path: Path, values: np.ndarray, depth: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    bits = np.unpackbits(values[..., None], axis=-1)[..., -depth:].reshape(len(values), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), depth, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def test_a_mask_in_the_alpha_channel_is_refused(tmp_path: Path) -> None:
    grey, alpha = np.full((4, 4), 255, np.uint8), np.eye(4, dtype=np.uint8) * 255
    Image.fromarray(np.dstack([grey, grey, grey, alpha])).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: a mask with an alpha channel"):
        read_labels(tmp_path / "a.png")
    Image.fromarray(np.dstack([alpha, alpha, alpha, alpha])).save(tmp_path / "a.png")  # transparent background
    assert np.array_equal(read_labels(tmp_path / "a.png"), np.eye(4))


def test_values_that_are_not_ids_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.eye(3, dtype=np.int32) * -7).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: a picture with the value -7; object ids from 0 on expected"):
        read_labels(tmp_path / "a.tif")
    Image.fromarray(np.eye(3, dtype=np.uint8) * 7).save(tmp_path / "a.gif")  # a palette of black and grey 7
    with pytest.raises(UserError, match=r"a\.gif: a GIF of greys, whose grey 7 is index 1"):
        read_labels(tmp_path / "a.gif")
    Image.fromarray(np.eye(3, dtype=np.uint8) * 255).save(tmp_path / "b.gif")
    assert np.array_equal(read_labels(tmp_path / "b.gif"), np.eye(3))
    Image.fromarray(ids(3).astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: a picture of floating-point pixels"):
        read_labels(tmp_path / "a.tif")
    cv2.imwrite(str(tmp_path / "a.png"), np.repeat(ids(3).astype(np.uint16)[..., None], 3, axis=2))
    with pytest.raises(UserError, match=r"a\.png: 16 bits per channel, with several channels"):
        read_labels(tmp_path / "a.png")
    picture = Image.fromarray(ids(3))
    picture.putpalette([255, 255, 255, 0, 0, 0, 9, 9, 9, 8, 8, 8])
    picture.save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: a palette whose black is index 1"):
        read_labels(tmp_path / "a.png")


@pytest.mark.parametrize(("white", "kind"), [(255, np.uint8), (65535, np.uint16)])
def test_white_alone_is_one_object_by_all_masks_of_the_video_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, white: int, kind: type
) -> None:
    monkeypatch.setattr(png, "_said", set())
    for name in "ab":
        Image.fromarray(np.eye(3, dtype=kind) * kind(white)).save(tmp_path / f"{name}.png")
    both = [str(tmp_path / f"{name}.png") for name in "ab"]
    for path in both:
        assert np.array_equal(read_labels(path), np.eye(3)) and np.array_equal(read_labels(path, both), np.eye(3))
    assert caplog.text.count(f"black-and-white mask (0 and {white} only): white is object 1") == 1
    Image.fromarray(np.eye(3, dtype=kind) * kind(7)).save(tmp_path / "c.png")
    expected = np.eye(3) * (0 if white == 255 else white)
    assert np.array_equal(read_labels(both[0], [*both, str(tmp_path / "c.png")]), expected)


def test_the_mask_of_one_object_has_two_values(tmp_path: Path) -> None:
    Image.fromarray(np.eye(3, dtype=np.uint8) * 7).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png"), np.eye(3))
    Image.fromarray(ids(3)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: values \[0, 1, 2, 3\] found; 0 and one other expected"):
        read_mask(tmp_path / "a.png")
