# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What readers and writers of videos refuse or report, besides what the tests of each reach."""

from __future__ import annotations

import socket
import struct
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from ausm_d2.errors import UserError
from ausm_d2.video import files, movie
from ausm_d2.video.container import Contents, examine
from ausm_d2.video.pictures import _page_times, _read_pages
from ausm_d2.video.results import ResultFolder, check_outputs
from ausm_d2.video.tracked import VideoInfo
from tests.video.clips import pictures, write_clip, write_sound


def test_a_cover_image_is_no_video(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.aac")
    cover = cv2.imencode(".jpg", pictures(1)[0])[1].tobytes()
    body = b"\0image/jpeg\0\x03\0" + cover  # of a frame APIC of ID3v2.3: front cover, no description
    tag = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes(len(tag) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\0\0" + size + tag + path.read_bytes())
    with pytest.raises(UserError, match=r"a\.aac: holds no video"):
        examine(path)


def test_a_file_of_an_index_without_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuvj420p"
        picture = np.zeros((16, 16, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"movi") + 4])
    with pytest.raises(UserError, match=r"a\.avi: a video of 0 frames"):
        examine(path)


def test_a_file_that_vanished_after_it_was_examined(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.mp4: cannot be decoded: No such file"):
        list(files.read_video(tmp_path / "a.mp4", Contents(2, Fraction(25), [])))


def test_frames_that_ffmpeg_marks_as_damaged_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def decode(*_: Any) -> Generator[Any, None, files._Decoded]:
        yield from ()
        return files._Decoded(5, 2)

    monkeypatch.setattr(files, "_decode", decode)
    path = write_clip(tmp_path / "a.mp4", 5)
    assert not list(files.read_video(path, Contents(5, Fraction(25), [])))
    assert f"{path}: 2 of 5 frames are damaged; their masks may be wrong" in caplog.text


def test_an_address_that_accepts_and_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4"
        with pytest.raises(UserError, match=r"a\.mp4: cannot be opened: no video came for 0\.2 seconds"):
            files.open_address(url)


def test_parts_of_two_encodings_are_not_joined(tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / f"{side}.mp4", 2, size=(side, side)) for side in (32, 64)]
    with pytest.raises(UserError, match=r"out\.mp4: the existing part was encoded by another version of the encoder"):
        movie._join(parts, tmp_path / "out.mp4", movie.H264, None)
    assert not (tmp_path / "out.mp4").exists()


def test_pages_of_a_picture_that_cannot_be_decoded(tmp_path: Path) -> None:
    pages = [Image.fromarray(image) for image in pictures(2)]
    path = tmp_path / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match=r"a\.tif: page 7 cannot be decoded: \S"):
        _page_times(path, [0, 7], None)
    with pytest.raises(UserError, match=r"a\.tif: page 7 cannot be decoded: \S"):
        list(_read_pages(path, [0, 7], [0, 1], 0))


def test_results_that_cannot_be_completed_are_told_and_the_others_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    folder = ResultFolder(tmp_path / "out")
    info = VideoInfo("a.mp4", 4, 4, Fraction(10), prompted=False, classes=["cat"])
    folder.begin(info, check_outputs(["masks", "tracks"]), key="k", settings={}, done=None)
    closed: list[bool] = []
    monkeypatch.setattr(folder._outputs[0], "close", full)
    monkeypatch.setattr(folder, "_publish", lambda: closed.append(True))
    with pytest.raises(OSError, match="No space left"):
        folder.finish(complete=True)
    assert closed and folder.scratch.is_dir()
