# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import io
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from ausm_d2.errors import UserError
from ausm_d2.video import files
from ausm_d2.video.container import Contents
from ausm_d2.video.files import RawFormat, open_pipe, read_video
from ausm_d2.video.frame import Source, known_rate
from ausm_d2.video.inputs import open_source
from tests.video.clips import SIZE, damaged, half, pictures, turn, write_clip, write_folder, write_sound
from tests.video.rtsp_server import RtspServer


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 25


def read(source: Source) -> tuple[list[str], list[np.ndarray], list[float]]:
    frames = list(source)
    return [each.name for each in frames], [each.image for each in frames], [round(each.time, 3) for each in frames]


# ------------------------------------------------------------------------------------------------------------ pictures


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "v", ["f2.png", "f10.png", "f1.png"])
    (folder / "notes.txt").touch()
    source = open_source(folder, fps=Fraction(10))
    assert (source.name, source.count, source.is_image) == ("v", 3, False)
    names, images, times = read(source)
    assert names == ["f1", "f2", "f10"] and times == [0, 0.1, 0.2]
    assert [np.array_equal(found, pictures(3)[i]) for found, i in zip(images, (2, 0, 1), strict=True)] == [True] * 3


def test_a_pattern_and_a_list_of_paths_are_read_as_a_folder_is(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "v", ["2.png", "10.png", "x.jpg"])
    assert read(open_source(f"{folder}/*.png"))[0] == ["2", "10"]
    assert read(open_source([folder / "10.png", folder / "2.png"]))[0] == ["10", "2"]
    assert read(open_source(f"{folder}/2*"))[0] == ["2"]
    with pytest.raises(UserError, match=r"'.*/\*\.gif' matches no file"):
        open_source(f"{folder}/*.gif")


def test_arrays_and_generators_are_frames() -> None:
    images = pictures(3)
    assert open_source(images).count == 3 and open_source(iter(images)).count is None
    names, found, _ = read(open_source(image for image in images))
    assert names == ["00000", "00001", "00002"] and all(a is b for a, b in zip(found, images, strict=True))


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_all_pages_of_a_file_are_frames(tmp_path: Path, suffix: str) -> None:
    images = [Image.fromarray(image[..., ::-1].copy()) for image in pictures(4)]
    timed: dict[str, Any] = {} if suffix == "tif" else {"duration": [100, 300, 100, 100]}
    images[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=images[1:], **timed)
    source = open_source(tmp_path / f"a.{suffix}")
    names, found, times = read(source)
    assert source.count == 4 and not source.is_image and names == [f"{i:05d}" for i in range(4)]
    assert times == ([0.0, 0.042, 0.083, 0.125] if suffix == "tif" else [0.0, 0.1, 0.4, 0.5])
    assert all(np.abs(a.astype(int) - b).mean() < 12 for a, b in zip(found, pictures(4), strict=True))
    assert read(open_source(tmp_path / f"a.{suffix}", first=2))[0] == names[2:]


def test_16_bit_pages_are_scaled(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full(SIZE, 1000 * (i + 1), np.uint16)) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert [int(image.max()) for image in read(open_source(tmp_path / "a.tif"))[1]] == [3, 7, 11]


def test_one_picture_is_an_image(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "dog.jpg"), pictures(1)[0])
    source = open_source(tmp_path / "dog.jpg")
    assert source.is_image and source.count == 1 and read(source)[0] == ["dog"]


# -------------------------------------------------------------------------------------------------------------- videos


@pytest.mark.parametrize("name", ["12:30:05.mp4", "cam1:front.mkv", "视频 #1.avi", "-x.mp4"])
def test_a_file_is_opened_whatever_its_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "a.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    source = open_source(name)
    names, images, times = read(source)
    assert (source.name, source.count, source.fps) == (name, 6, 25) and names[5] == "00005"
    assert times == [0.0, 0.04, 0.08, 0.12, 0.16, 0.2]
    assert all(close(a, b) for a, b in zip(images, pictures(6), strict=True))
    assert read(open_source(name, first=4))[0] == ["00004", "00005"]


def test_frames_keep_the_times_of_a_variable_rate(tmp_path: Path) -> None:
    milliseconds = [0, 40, 80, 120, 5000, 9000]
    source = open_source(write_clip(tmp_path / "a.mp4", milliseconds=milliseconds))
    assert read(source)[2] == [value / 1000 for value in milliseconds]
    assert float(source.fps) == pytest.approx(5 / 9, rel=0.01)


MATRICES: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
    "clockwise": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "upside down": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "anticlockwise": ((0, -1, 1, 0), np.rot90),
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "flipped": ((1, 0, 0, -1), lambda image: image[::-1]),
    "transposed": ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    "across": ((0, -1, -1, 0), lambda image: image[::-1, ::-1].transpose(1, 0, 2)),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_a_video_is_rotated_and_mirrored_by_its_metadata(tmp_path: Path, kind: str) -> None:
    path = write_clip(tmp_path / "a.mp4", 1, size=(48, 64))
    stored = read(open_source(path))[1][0]
    matrix, expected = MATRICES[kind]
    turn(path, matrix)
    found = read(open_source(path))[1][0]
    assert np.array_equal(found, expected(stored)) and found.flags.c_contiguous


def test_decoded_frames_are_free_without_the_garbage_collector(tmp_path: Path) -> None:
    frames = iter(open_source(write_clip(tmp_path / "a.mp4", 40)).frames)
    next(frames)
    gc.collect()
    gc.disable()
    try:
        sum(1 for _ in frames)
        assert gc.collect() < 40  # unreachable objects that were in cycles
    finally:
        gc.enable()


def test_the_video_is_read_and_not_the_cover_in_front_of_it(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        cover, main = container.add_stream("mjpeg", rate=1), container.add_stream("h264", rate=24)
        cover.pix_fmt, cover.width, cover.height = "yuvj420p", 16, 16
        main.pix_fmt, (main.height, main.width) = "yuv420p", SIZE
        container.mux(cover.encode(av.VideoFrame.from_ndarray(pictures(1, (16, 16))[0], format="bgr24")))
        container.mux(cover.encode(None))
        for image in pictures(4):
            container.mux(main.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(main.encode(None))
    source = open_source(tmp_path / "a.mkv")
    assert source.count == 4 and read(source)[1][0].shape == (*SIZE, 3)


def test_a_recording_whose_header_names_another_length_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_clip(tmp_path / "a.flv", 12)
    data = bytearray(path.read_bytes())
    at = data.find(b"duration") + 9
    data[at : at + 8] = struct.pack(">d", 600.0)
    path.write_bytes(data)
    assert len(read(open_source(path))[0]) == 12
    assert "a.flv: its header says 600.0 seconds; all it holds are 0." in caplog.text


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 90000.0, None])
def test_an_impossible_rate_is_replaced_by_the_default(rate: float | None) -> None:
    assert known_rate(rate) == 24


def test_known_rates_are_kept() -> None:
    assert known_rate(1e-5) == 24, "a damaged file; it would round to 0"
    assert known_rate(30.0) == 30 and known_rate(30000 / 1001) == Fraction(30000, 1001)


# ---------------------------------------------------------------------------------------------------------------- pipes


def test_y4m_raw_frames_and_files_come_through_a_pipe(tmp_path: Path) -> None:
    images = pictures(3)
    with av.open(str(tmp_path / "a.y4m"), "w", format="yuv4mpegpipe") as container:
        stream = container.add_stream("rawvideo", rate=10)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv444p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
    for data, raw in (
        ((tmp_path / "a.y4m").read_bytes(), None),
        (b"".join(image.tobytes() for image in images), RawFormat(SIZE[1], SIZE[0])),
        (write_clip(tmp_path / "a.mkv", 3, fps=10).read_bytes(), None),
    ):
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as out:
            out.write(data)  # less than a pipe holds
        with os.fdopen(reading, "rb") as pipe:
            source = open_pipe(pipe, raw, Fraction(10))
            _, found, times = read(source)
        assert source.count is None and source.key is None and times == [0.0, 0.1, 0.2]
        assert all(close(a, b) for a, b in zip(found, images, strict=True))


def test_a_pipe_without_a_video_is_refused() -> None:
    with pytest.raises(UserError, match=r"standard input: no video that can be read .*; expected Y4M"):
        open_pipe(io.BytesIO(b"hello" * 100))


# ------------------------------------------------------------------------------------------------------ network cameras


def even(count: int) -> list[np.ndarray]:
    """Pictures whose sides are even, as H.264 wants them."""
    return [picture[:48, :64] for picture in pictures(count)]


@pytest.mark.parametrize("at_end", ["close", "reset"])
def test_a_network_camera_is_read_until_it_goes(at_end: str, caplog: pytest.LogCaptureFixture) -> None:
    with RtspServer(even(9), 25, at_end=at_end) as server:
        source = open_source(server.address)
        assert source.live and source.fps == 25 and source.count is None and source.key is None
        _, images, times = read(source)
    assert len(images) == 9 and times == [round(t / 25, 3) for t in range(9)]
    assert all(close(found, expected) for found, expected in zip(images, even(9), strict=True))
    assert "the stream ended, or the connection was lost, after 9 frames" in caplog.text


def test_a_network_camera_that_sends_over_udp_only() -> None:
    with RtspServer(even(12), 25, udp=True) as server:
        images = [frame.image for frame in open_source(server.address)]
    assert len(images) >= 6 and close(images[0], even(1)[0])


def test_a_network_camera_that_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SILENCE", 0.7)
    found: list[Any] = []
    lost = pytest.raises(UserError, match=r"/clip: nothing came for 0\.7 seconds after frame \d+$")
    with RtspServer(even(12), 25, at_end="silence") as server, lost:
        found.extend(open_source(server.address))
    assert len(found) >= 9
    never = pytest.raises(UserError, match=r"/clip: nothing came for 0\.7 seconds before the first frame$")
    with RtspServer([], 25, at_end="silence") as server, never:
        list(open_source(server.address))


# ------------------------------------------------------------------------------------------------------------- mistakes


def text(path: Path) -> Path:
    path.write_text("hello")
    return path


def two_sizes(folder: Path) -> Path:
    write_folder(folder, ["a.png", "b.png"])
    cv2.imwrite(str(folder / "c.png"), pictures(1, (50, 64))[0])
    return folder


def cut_picture(folder: Path) -> Path:
    write_folder(folder, ["a.png", "b.png"])
    half(folder / "b.png")
    return folder


def paged_among_frames(folder: Path) -> Path:
    write_folder(folder, ["a.png"])
    pages = [Image.fromarray(image) for image in pictures(2)]
    pages[0].save(folder / "b.tif", save_all=True, append_images=pages[1:])
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.mp4", r"'.*none\.mp4' does not exist"),
        (lambda p: 97, r"camera 97 cannot be opened, and there is no file or folder '97'"),
        (lambda p: write_folder(p / "empty", []), r"the folder '.*empty' holds no pictures \(\.jpg"),
        (lambda p: write_folder(p / "f", ["a.png", "a.jpg"]), r"f' holds two pictures of the name 'a'"),
        (lambda p: two_sizes(p / "f"), r"f: frame 'c': a frame of 64x50 pixels follows frames of 70x50"),
        (lambda p: cut_picture(p / "f"), r"b\.png: the picture cannot be decoded"),
        (lambda p: paged_among_frames(p / "f"), r"b\.tif: holds 2 pictures; a frame is one picture"),
        (
            lambda p: f"{text(write_folder(p / 'f', ['a.png']) / 'b.txt').parent}/*",
            r"matches 2 files, and '.*b\.txt' is no",
        ),
        (lambda p: text(p / "a.mp4"), r"a\.mp4: cannot be opened as a video: Invalid data"),
        (lambda p: text(p / "a.png"), r"a\.png: .*cannot"),
        (lambda p: write_sound(p / "a.mp4"), r"a\.mp4: holds no video"),
        (lambda p: "rtsp://127.0.0.1:9/x", r"rtsp://127\.0\.0\.1:9/x: cannot be opened: Connection refused"),
        *(
            (lambda p, suffix=suffix: half(write_clip(p / f"a.{suffix}", 100, fps=10, noise=True)), message)
            for suffix, message in {
                "mp4": r"a\.mp4: cut off: of 10\.0 seconds, only the first [45]\.\d",
                "mkv": r"a\.mkv: cut off: of 10\.0 seconds, only the first [45]\.\d",
                "flv": r"a\.flv: cut off: of 10\.\d seconds, only the first [45]\.\d",
                "avi": r"a\.avi: cut off: of \d+\.\d seconds, only the first [45]\.\d",
                "mov": r"a\.mov: cannot be opened as a video: Invalid data",
            }.items()
        ),
    ],
)
def test_invalid_inputs_are_refused_before_the_first_frame(
    tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        open_source(str(make(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_video_damaged_in_the_middle_gives_the_frames_before(tmp_path: Path) -> None:
    path = damaged(write_clip(tmp_path / "a.mp4", 20, noise=True))
    frames = []
    with pytest.raises(UserError, match=r"a\.mp4: cannot be decoded after frame \d+: Invalid data"):
        frames.extend(open_source(path))
    assert len(list(frames)) < 20


def test_frames_missing_in_a_damaged_file_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuvj420p"
        for picture in np.random.default_rng(0).integers(0, 256, (12, *SIZE, 3), np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    source = open_source(path)
    assert source.count == sum(1 for _ in source) == 12 and not caplog.text
    data = path.read_bytes()
    frame = [found.start() for found in re.finditer(b"00dc", data)][5]  # the name of a chunk that is a frame
    path.write_bytes(data[:frame] + bytes(100) + data[frame + 100 :])
    source = open_source(path)
    assert source.count == sum(1 for _ in source) == 11
    assert "damaged: of 12 frames, 11 are there" in caplog.text


def test_undecodable_frames_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_clip(tmp_path / "a.mp4", 20)
    assert len(list(read_video(path, Contents(20, Fraction(25), [])))) == 20 and not caplog.text
    assert len(list(read_video(path, Contents(23, Fraction(25), [])))) == 20  # as if packets had no frames
    assert "3 of 23 frames cannot be decoded, and are left out" in caplog.text


def test_a_damaged_video_does_not_deadlock_with_ffmpeg_logging(tmp_path: Path) -> None:
    path = damaged(write_clip(tmp_path / "a.mp4", 20, noise=True))
    code = "import av; av.logging.set_level(av.logging.ERROR)  # as torchvision does, in the versions that use it\n"
    code += f"from ausm_d2.video.inputs import open_source\nfor _ in open_source({str(path)!r}): pass"
    # In a process of its own, which can be ended.
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1 and "cannot be decoded after frame" in run.stderr


def test_an_unknown_codec_and_a_title_that_is_not_utf8(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "clip.mp4").read_bytes()
    unknown, title = tmp_path / "unknown.mp4", tmp_path / "title.mp4"
    unknown.write_bytes(data.replace(b"avc1", b"zzzz"))
    with pytest.raises(UserError, match=r"unknown\.mp4: a video whose codec is not known$"):
        open_source(unknown)
    assert b"VideoHandler" in data
    title.write_bytes(data.replace(b"VideoHandler", b"Vi\x98eoHandler"))
    assert len(list(open_source(title).frames)) == 6


def test_a_huge_frame_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ausm_d2.pictures.MAX_PIXELS", 3000)
        with pytest.raises(UserError, match=r"clip\.mp4: 70 x 50 pixels, expected"):
            open_source(path)
        picture = tmp_path / "a.png"
        cv2.imwrite(str(picture), np.zeros((60, 60, 3), np.uint8))
        with pytest.raises(UserError, match=r"a\.png: 60 x 60 pixels, expected"):
            open_source(picture)


def test_hdr_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ten bits are reduced to eight; the curve of PQ is left as it is."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"x265-params": "log-level=none:bframes=0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        stream.codec_context.color_trc = 16
        picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40000, np.uint16), format="rgb48le")
        picture = picture.reformat(format="yuv420p10le")
        picture.pts = 0  # without one, the encoder may leave packets without a time, which the file cannot hold
        container.mux([*stream.encode(picture), *stream.encode(None)])
    [frame] = open_source(path).frames
    assert np.abs(frame.image.astype(int) - 40000 / 257).max() <= 2
    assert "a.mkv: HDR (PQ): colours are read without tone mapping" in caplog.text
    caplog.clear()
    open_source(write_clip(tmp_path / "sdr.mp4"))
    assert not caplog.text


def test_pictures_of_several_series_in_a_folder_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "one", ["0.jpg", "1.jpg", "5.jpg"])
    open_source(tmp_path / "one")
    assert not caplog.text
    write_folder(tmp_path / "two", ["0.jpg", "0_mask.png", "1.jpg", "1_mask.png"])
    assert [frame.name for frame in open_source(tmp_path / "two").frames] == ["0", "0_mask", "1", "1_mask"]
    assert "two: frames of 2 series (such as '0' and '0_mask') are read as one video" in caplog.text
