# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ausm_d2.errors import UserError
from ausm_d2.video.movie import VP8_ALPHA, MovieWriter
from tools.benchmarks.measure import resident


def grey(value: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def shown(path: Path) -> tuple[list[float], list[int]]:
    """Times and grey values of the pictures of a video."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [round(frame.time or 0.0, 3) for frame in frames], [
            round(float(frame.to_ndarray(format="bgr24").mean()) / 10) * 10 for frame in frames
        ]


@pytest.mark.parametrize("size", [(48, 64), (45, 67)])
def test_a_video_plays_everywhere(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "video.mp4"
    with MovieWriter(path, Fraction(30000, 1001)) as video:
        for i in range(7):
            video.write(grey(30 * i, size))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.frames) == ("h264", "yuv420p", 7)
        assert float(stream.average_rate or 0) == pytest.approx(30000 / 1001, rel=1e-3)
        assert (stream.height, stream.width) == tuple(side + side % 2 for side in size)
        for i, frame in enumerate(container.decode(video=0)):
            assert np.abs(frame.to_ndarray(format="bgr24").astype(int) - 30 * i).mean() < 4
    head = path.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # a browser can start before it has all
    assert [each.name for each in tmp_path.iterdir()] == ["video.mp4"]


def test_pictures_keep_their_times(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.08, 5.0, 9.0, 9.0]
    with MovieWriter(tmp_path / "a.mp4", 25) as video:
        for time in times:
            video.write(grey(100), time)
    assert shown(tmp_path / "a.mp4")[0] == [0.0, 0.04, 0.08, 5.0, 9.0, 9.0]  # the last one a tick later


def test_the_file_of_a_killed_program_can_be_played(tmp_path: Path) -> None:
    video = MovieWriter(tmp_path / "a.mp4", 10)
    for i in range(10):
        video.write(grey(20 * i), i / 10)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "left.mp4")
    assert shown(tmp_path / "left.mp4")[1][:9] == [20 * i for i in range(9)]
    video.close()


@pytest.mark.parametrize("killed", [False, True])
def test_a_video_is_continued_from_a_given_time(tmp_path: Path, killed: bool) -> None:
    path = tmp_path / "a.mp4"
    video = MovieWriter(path, 10)
    for i in range(8):
        video.write(grey(20 * i), i / 10)
    if killed:
        del video
    else:
        video.close()
    second = MovieWriter(path, 10, until=0.5)
    for i in range(5, 10):
        second.write(grey(20 * i), i / 10)
    second.close()
    assert shown(path) == ([i / 10 for i in range(10)], [20 * i for i in range(10)])
    third = MovieWriter(path, 10, until=0.9)  # nothing more comes
    third.close()
    assert shown(path)[1] == [20 * i for i in range(9)]
    assert [each.name for each in tmp_path.iterdir()] == ["a.mp4"]


def test_a_closed_writer_continues_where_it_stopped(tmp_path: Path) -> None:
    video = MovieWriter(tmp_path / "a.mp4", 10)
    for i in range(6):
        video.write(grey(20 * i), i / 10)
        if i % 2:
            video.close()
    video.close()
    assert shown(tmp_path / "a.mp4") == ([i / 10 for i in range(6)], [20 * i for i in range(6)])


def test_alpha_survives_being_written_in_parts(tmp_path: Path) -> None:
    video = MovieWriter(tmp_path / "a.webm", 10, form=VP8_ALPHA)
    for i in range(4):
        picture = np.full((48, 64, 4), 200, np.uint8)
        picture[..., 3] = 0
        picture[:, : 16 * i, 3] = 255
        video.write(picture, i / 10)
        if i == 1:
            video.close()
    video.close()
    with av.open(str(tmp_path / "a.webm")) as container:
        decoder = av.CodecContext.create("libvpx", "r")
        opaque = []
        for packet in container.demux(video=0):
            for frame in decoder.decode(packet):
                assert frame.format.name == "yuva420p"
                opaque.append(round((frame.to_ndarray(format="bgra")[..., 3] > 128).mean() * 4))
    assert opaque == [0, 1, 2, 3]


def test_a_video_of_another_codec_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    with MovieWriter(path, 10, form=replace(VP8_ALPHA, codec="libvpx-vp9")) as video:
        video.write(np.zeros((48, 64, 4), np.uint8), 0.0)
    video = MovieWriter(path, 10, form=VP8_ALPHA, until=1.0)
    video.write(np.zeros((48, 64, 4), np.uint8), 1.0)
    with pytest.raises(UserError, match=r"a\.webm: .* start again without --resume"):
        video.close()


def test_without_frames_there_is_no_file(tmp_path: Path) -> None:
    with MovieWriter(tmp_path / "empty.mp4", 25):
        pass
    assert not list(tmp_path.iterdir())


def test_closed_writers_hold_no_encoders(tmp_path: Path) -> None:
    """An encoder takes 33 MB; a track that was out of sight for long keeps its writer, but not the encoder."""
    writers = [MovieWriter(tmp_path / f"{i}.webm", 10, form=VP8_ALPHA) for i in range(9)]
    taken = []
    for writer in writers:
        writer.write(np.zeros((480, 854, 4), np.uint8), 0.0)
        writer.close()
        taken.append(resident())
    assert taken[-1] - taken[1] < 50e6
