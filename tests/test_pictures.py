# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ausm_d2 import pictures
from ausm_d2.errors import UserError
from ausm_d2.pictures import check_picture, image_size, read_image


def picture(size: tuple[int, int] = (40, 60)) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def test_png_is_read_as_rgb_bit_for_bit(tmp_path: Path) -> None:
    image = picture()
    Image.fromarray(image).save(tmp_path / "a.png")
    assert np.array_equal(read_image(str(tmp_path / "a.png")), image)
    assert image_size(str(tmp_path / "a.png")) == (40, 60)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_other_kinds_of_picture_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(picture()[..., 0])
    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 256) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / "a.png")
    found = read_image(str(tmp_path / "a.png"))
    assert found.dtype == np.uint8 and found.shape == (40, 60, 3)


def test_grey_and_cmyk_jpeg(tmp_path: Path) -> None:
    for mode in ("L", "CMYK"):
        Image.fromarray(picture()).convert(mode).save(tmp_path / "a.jpg")
        assert read_image(str(tmp_path / "a.jpg")).shape == (40, 60, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.99])
def test_a_file_that_is_cut_off_is_an_error_not_a_grey_picture(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture((200, 300))).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match=rf"a\.{suffix}: the picture cannot be decoded: \S"):
        read_image(str(path))


def test_bytes_after_the_end_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(picture()).save(path)
    whole = read_image(str(path))
    path.write_bytes(path.read_bytes() + b"trailer" * 50)
    assert np.abs(read_image(str(path)).astype(int) - whole).max() <= 2  # another decoder


def test_files_that_are_missing_or_not_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"a\.jpg: the picture cannot be decoded"):
        read_image(str(tmp_path / "a.jpg"))
    with pytest.raises(UserError, match=r"a\.jpg: not a picture"):
        image_size(str(tmp_path / "a.jpg"))
    with pytest.raises(UserError, match=r"b\.jpg: the picture cannot be read: No such file"):
        read_image(str(tmp_path / "b.jpg"))


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr("ausm_d2.pictures.MAX_PIXELS", 40 * 60 - 1)
    with pytest.raises(UserError, match=r"a\.png: 60 x 40 pixels, expected 0 million at most"):
        image_size(str(tmp_path / "a.png"))


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=95, exif=exif)
    found = read_image(str(tmp_path / "a.jpg"))
    assert found.shape[:2] == image_size(str(tmp_path / "a.jpg")) == (60, 40)
    assert np.abs(found.astype(int) - np.rot90(image, -1)).mean() < 4


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_pictures_keep_their_upper_half(tmp_path: Path, suffix: str) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    path = str(tmp_path / f"a.{suffix}")
    Image.fromarray(values).save(path)
    assert np.array_equal(read_image(path), np.repeat((values >> 8)[..., None], 3, 2))


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "floating-point"), (np.int32, "32-bit")])
def test_pictures_without_a_known_range_are_refused(tmp_path: Path, dtype: type, kind: str) -> None:
    Image.fromarray(np.full((8, 8), 300, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=rf"a\.tif: {kind} pixels, whose range is unknown"):
        read_image(str(tmp_path / "a.tif"))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_a_cut_off_picture_is_found_without_decoding_the_whole_ones(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture()).save(path)
    assert check_picture(str(path)) == (40, 60)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"a\.\w+: (the picture cannot be decoded|not a picture that can be read)"):
        check_picture(str(path))


@pytest.mark.parametrize("suffix", ["png", "tif", "gif", "webp"])
def test_a_file_with_several_images_is_not_a_frame(tmp_path: Path, suffix: str) -> None:
    pages = [Image.fromarray(picture() // value) for value in (1, 2, 3)]
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match=rf"a\.{suffix}: holds 3 pictures; a frame is one picture"):
        read_image(str(tmp_path / f"a.{suffix}"))


def test_reduced_copies_in_a_tiff_are_not_frames(tmp_path: Path) -> None:
    copy = Image.fromarray(picture()[::2, ::2])
    copy.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(picture()).save(tmp_path / "a.tif", save_all=True, append_images=[copy])
    assert np.array_equal(read_image(str(tmp_path / "a.tif")), picture())


@pytest.mark.parametrize("name", ["a\0.png", "a\ud800.png"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(UserError, match="no file can have this name"):
        read_image(name)


def test_a_header_that_claims_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "a.png")
    Image.fromarray(picture()).save(path)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "MAX_PIXELS", 100)
        with pytest.raises(UserError, match=r"a\.png: 60 x 40 pixels, expected 0 million at most"):
            read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"a\.png: the picture cannot be decoded: .*decompression bomb"):
        read_image(path)
