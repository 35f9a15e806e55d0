# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Small videos of every kind."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

SIZE = (50, 70)


def pictures(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Smooth noise, which survives a codec: uint8 (H, W, 3), BGR."""
    small = np.random.default_rng(0).integers(0, 256, (count, 8, 10, 3), np.uint8)
    return [cv2.resize(picture, size[::-1]) for picture in small]


def write_folder(folder: Path, names: Sequence[str], size: tuple[int, int] = SIZE) -> Path:
    folder.mkdir(parents=True)
    for name, picture in zip(names, pictures(len(names), size), strict=True):
        cv2.imwrite(str(folder / name), picture)
    return folder


def write_clip(
    path: Path,
    frames: int = 6,
    *,
    size: tuple[int, int] = SIZE,
    fps: int = 25,
    milliseconds: Sequence[int] | None = None,
    noise: bool = False,
    container_format: str | None = None,
) -> Path:
    """H.264 in the container that the suffix says, a key frame every ten.

    Args:
        milliseconds: at which each frame is shown; default: at an even rate.
        noise: incompressible pictures, so that a cut in the middle of the file is in the middle of the video.
    """
    images = pictures(frames, size)
    if noise:
        images = list(np.random.default_rng(0).integers(0, 256, (5, *size, 3), np.uint8)) * (frames // 5)
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options, format=container_format) as container:
        stream = container.add_stream("h264", rate=fps, options={"g": "10", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        if milliseconds:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            if milliseconds:
                frame.pts, frame.time_base = milliseconds[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, matrix: Sequence[int]) -> None:
    """Write (a, b, c, d) of a display matrix into an MP4 file."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value * 65536 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))


def half(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def damaged(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 8] = np.random.default_rng(0).bytes(len(data) // 8)
    path.write_bytes(bytes(data))
    return path


def write_sound(path: Path) -> Path:
    """A file with a sound and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
