# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
import wave
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from ausm_d2.data.frames import ImageFiles, VideoFile
from ausm_d2.errors import UserError
from tests.video.clips import turn


def picture(size: tuple[int, int] = (40, 60)) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def test_image_files_names_and_pickle(tmp_path: Path) -> None:
    for t in range(3):
        cv2.imwrite(str(tmp_path / f"{t}.png"), picture() // (t + 1))
    frames = ImageFiles(str(tmp_path), ("0.png", "1.png", "2.png"))
    assert frames.names == ["0", "1", "2"] and len(frames) == 3
    assert np.array_equal(pickle.loads(pickle.dumps(frames))[2], frames[2])


# Video files


def write_video(path: Path, frames: int = 50, gop: int = 12, b_frames: int = 2, fps: int = 24) -> None:
    """Frame t shows t in binary, as six black or white bars."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.time_base = Fraction(1, fps)
        for t in range(frames):
            bars = np.repeat([255 * (t >> bit & 1) for bit in range(6)], 8).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.tile(bars[:, None], (32, 1, 3)), format="rgb24")
            frame.pts = t
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def which(frame: np.ndarray) -> int:
    return sum(int(frame[:, 8 * bit + 2 : 8 * bit + 6].mean() > 127) << bit for bit in range(6))


@pytest.mark.parametrize("b_frames", [0, 2])
def test_every_index_gives_its_frame_in_any_order(tmp_path: Path, b_frames: int) -> None:
    write_video(tmp_path / "a.mp4", b_frames=b_frames)
    video = VideoFile(str(tmp_path / "a.mp4"))
    assert len(video) == 50 and video.names[:2] == ["00000", "00001"]
    order = [0, 1, 2, 30, 31, 45, 3, 49, 49, 0, 12, 11, 13, 24, 23]
    assert [which(video[t]) for t in order] == order
    assert [which(video[t]) for t in range(50)] == list(range(50))
    copy = pickle.loads(pickle.dumps(video))
    assert which(copy[17]) == 17 and copy[17].shape == (32, 48, 3)


def test_an_unreadable_video_is_an_error(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"a\.mp4: frame 50 requested, the video has 50"):
        VideoFile(str(tmp_path / "a.mp4"))[50]
    with pytest.raises(UserError, match=r"b\.mp4: the video cannot be opened"):
        len(VideoFile(str(tmp_path / "b.mp4")))
    (tmp_path / "c.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:500])
    with pytest.raises(UserError, match=r"c\.mp4: the video cannot be opened"):
        len(VideoFile(str(tmp_path / "c.mp4")))
    (tmp_path / "d.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"d\.mp4"):
        len(VideoFile(str(tmp_path / "d.mp4")))


def test_files_without_any_frame(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 100, "NONE", ""))
        sound.writeframes(bytes(200))
    with pytest.raises(UserError, match=r"sound\.wav: holds no video"):
        len(VideoFile(str(tmp_path / "sound.wav")))
    write_video(tmp_path / "whole.avi", frames=1)
    content = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "empty.avi").write_bytes(content[: content.index(b"movi") + 4])
    with pytest.raises(UserError, match=r"empty\.avi: a video of 0 frames"):
        len(VideoFile(str(tmp_path / "empty.avi")))


def test_a_turned_video_is_read_as_players_show_it(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=2)
    stored = VideoFile(str(tmp_path / "a.mp4"))[1]
    turn(tmp_path / "a.mp4", (0, 1, -1, 0))
    assert np.array_equal(VideoFile(str(tmp_path / "a.mp4"))[1], np.rot90(stored, -1))


def test_real_clip_agrees_with_decoding_from_the_start(shared_data: Path) -> None:
    path = str(shared_data / "clips" / "car-detection.mp4")
    video = VideoFile(path)
    assert len(video) == 377
    wanted = [0, 40, 41, 120, 7]
    with av.open(path) as container:
        decoded = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(121), strict=False)
        ]
    for t in wanted:
        assert np.array_equal(video[t], decoded[t])
