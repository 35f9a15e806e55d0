#!/usr/bin/env python
# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Segment an image, a folder of frames, a video file or a camera's pictures, with or without prompts.

    python demo/demo.py --config-file configs/synth/ausm_nano.yaml --input video.mp4 --output results
    python demo/demo.py --config-file ... --input frames/ --prompt-masks first.png --output results

demo/README.md says what the results are. Frames are read and segmented one by one.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from tqdm import tqdm

from ausm_d2.config import load_config
from ausm_d2.data.frames import open_video, read_image
from ausm_d2.errors import UserError, cli
from ausm_d2.masks.png import MANY_IDS, VOID, edge_ids, read_labels, read_picture, write_mask_png
from ausm_d2.masks.rle import Rle, encode
from ausm_d2.names import sorted_files
from ausm_d2.streaming.predictor import FrameResult, VideoPredictor
from ausm_d2.visualization import VideoWriter, draw_masks, readable_scale

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_RESULTS = {"overlay.mp4", "overlay.png", "masks", "tracks.json"}
_FOLDER_FPS = Fraction(24)  # of frames that come without a time


# What is segmented


@dataclass
class Source:
    """Frames and what is known of them."""

    name: str
    frames: Iterator[tuple[str, np.ndarray]]  # name and uint8 (H, W, 3), BGR, of each frame
    count: int | None  # of frames; None: nobody knows
    fps: Fraction
    is_image: bool = False


def open_source(text: str) -> Source:
    """What ``--input`` means: the number of a camera, a folder, a picture or else a video.

    Raises:
        UserError: it is not there, cannot be read, or has no frames.
    """
    path = Path(text)
    if not path.exists():
        if text.isdecimal():
            return _open_camera(int(text))
        raise UserError(f"--input: '{text}' does not exist")
    if path.is_dir():
        return _open_folder(path)
    if path.suffix.lower() in _PICTURES:
        return Source(path.name, iter([(path.stem, _read_picture(path))]), 1, _FOLDER_FPS, is_image=True)
    return _open_video(path)


def _open_folder(path: Path) -> Source:
    files = sorted_files(path, _PICTURES)
    if not files:
        raise UserError(f"--input: the folder '{path}' holds no pictures ({' '.join(_PICTURES)})")
    names = [os.path.splitext(file)[0] for file in files]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"--input: '{path}' holds two pictures of the name '{twice}'; a frame has one")
    frames = ((name, _read_picture(path / file)) for name, file in zip(names, files, strict=True))
    return Source(path.resolve().name, frames, len(files), _FOLDER_FPS)


def _read_picture(path: Path) -> np.ndarray:
    return cv2.cvtColor(read_image(str(path)), cv2.COLOR_RGB2BGR)


def _open_video(path: Path) -> Source:
    try:
        with open_video(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: holds no video")
            rate = container.streams.video[0].average_rate
            count = _count_frames(path, container)
    except av.FFmpegError as error:
        raise UserError(f"{path}: cannot be opened as a video: {error.strerror}") from None
    return Source(path.name, _read_video(path, count), count, rate or _FOLDER_FPS)


def _count_frames(path: Path, container: av.container.InputContainer) -> int:
    """The frames that a file holds, from a look at all its packets; nothing is decoded.

    Raises:
        UserError: there is none, or the file ends before it should: better now than after an hour of work.
    """
    video = container.streams.video[0]
    count, skipped, end, whole = 0, 0, 0.0, True
    for packet in container.demux():
        if packet.size:
            whole = not packet.is_corrupt
            if packet.stream.index == video.index:
                count += not packet.is_discard
                skipped += packet.is_discard  # on purpose: the file says that playing starts later
            if packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    if not count:
        raise UserError(f"{path}: a video of 0 frames")
    start = (container.start_time or 0) / av.time_base
    length = (container.duration or 0) / av.time_base
    if not whole or end - start < length - max(1.0, 0.02 * length):
        raise UserError(f"{path}: cut off: of {length:.1f} seconds, only the first {end - start:.1f} are there")
    if video.frames > count + skipped:
        found = count + skipped
        tqdm.write(f"{path}: damaged: of {video.frames} frames, {found} are there; later ones move up", file=sys.stderr)
    return count


def _read_video(path: Path, count: int) -> Iterator[tuple[str, np.ndarray]]:
    index = damaged = 0
    try:
        with open_video(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for index, frame in enumerate(container.decode(video=0)):
                damaged += frame.is_corrupt
                picture = frame.to_ndarray(format="bgr24")
                # Of a phone that was held upright, the file says by how much to turn the picture.
                yield f"{index:05d}", np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))
    except av.FFmpegError as error:
        raise UserError(f"{path}: cannot be decoded after frame {index}: {error.strerror}") from None
    if damaged:
        tqdm.write(f"{path}: {damaged} of {index + 1} frames are damaged; their masks may be wrong", file=sys.stderr)
    if index + 1 < count:
        missing = count - index - 1
        tqdm.write(f"{path}: {missing} of {count} frames cannot be decoded, and are left out", file=sys.stderr)


def _open_camera(number: int) -> Source:
    camera = cv2.VideoCapture(number)
    if not camera.isOpened():
        raise UserError(f"--input: camera {number} cannot be opened, and there is no file or folder '{number}'")
    fps = Fraction(camera.get(cv2.CAP_PROP_FPS) or _FOLDER_FPS).limit_denominator(1000)
    return Source(f"camera {number}", _read_camera(camera), None, fps)


def _read_camera(camera: cv2.VideoCapture) -> Iterator[tuple[str, np.ndarray]]:
    """Frames until the camera has no more or Ctrl-C, which ends the video rather than the program."""
    stop = threading.Event()
    handler = signal.signal(signal.SIGINT, lambda *_: stop.set())
    index = 0
    try:
        while not stop.is_set():
            there, picture = camera.read()
            if not there:
                return
            yield f"{index:05d}", picture
            index += 1
    finally:
        signal.signal(signal.SIGINT, handler)
        camera.release()


def read_prompts(path: str) -> dict[int, np.ndarray]:
    """The objects of a label picture (pixel = object id; 0 and 255 alone: one object, id 1): bool (H, W) by id.

    Raises:
        UserError: no picture of that kind, one without objects, or one whose edges were smoothed.
    """
    labels = read_labels(path)
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    if not len(ids):
        raise UserError(f"{path}: the prompt is empty: every pixel is background")
    # Smoothed edges are lines of in-between values, which no object is made of.
    thin = len(edge_ids(labels))
    if 2 * thin > len(ids) and (len(ids) > MANY_IDS or (read_picture(path).values == VOID).sum() > counts.sum()):
        raise UserError(
            f"{path}: {len(ids)} object ids, {thin} of them on hardly any pixels: this looks like a mask with "
            "smoothed (antialiased) edges; every pixel must be 0 or the id of an object"
        )
    return {int(i): labels == i for i in ids}


# What comes out


class Results:
    """Writes what is found, frame by frame, into a folder."""

    def __init__(self, folder: Path, source: Source, class_names: list[str], *, prompted: bool) -> None:
        """
        Args:
            folder: exists.
            source: what is segmented.
            class_names: of the head in use.
            prompted: whether the objects were given.
        """
        self._folder = folder
        self._source = source
        self._class_names = class_names
        self._prompted = prompted
        self._video = None if source.is_image else VideoWriter(folder / "overlay.mp4", source.fps)
        self._tracks: dict[int, dict[str, Any]] = {}
        self._names: list[str] = []
        self._size = (0, 0)

    def write(self, name: str, frame: np.ndarray, result: FrameResult) -> None:
        """One frame, uint8 (H, W, 3) BGR, and what is in it."""
        found = result.instances.to("cpu")
        masks: np.ndarray = found.pred_masks.numpy()
        labels = []
        for mask, track_id, class_id, score in zip(
            masks, found.track_ids.tolist(), found.pred_classes.tolist(), found.scores.tolist(), strict=True
        ):
            class_name = self._class_names[class_id]
            labels.append(f"{track_id} {score:.2f}" if self._prompted else f"{track_id} {class_name} {score:.2f}")
            new: dict[str, Any] = {"id": track_id, "class": "", "score": 0.0, "frames": [], "segmentations": []}
            track = self._tracks.setdefault(track_id, new)
            track["class"], track["score"] = class_name, round(score, 4)
            if mask.any():
                rle: Rle = encode(mask)
                track["frames"].append(result.frame_index)
                track["segmentations"].append(rle)
        write_mask_png(self._folder / "masks" / f"{name}.png", result.id_map.cpu().numpy())
        overlay = draw_masks(frame, masks, found.track_ids.tolist(), labels, scale=readable_scale(*masks.shape[1:]))
        if self._video is None:
            cv2.imwrite(str(self._folder / "overlay.png"), overlay)
        else:
            self._video.write(overlay)
        self._names.append(name)
        self._size = frame.shape[:2]

    def close(self) -> str:
        """Complete the files; returns a sentence about what they hold."""
        if self._video is not None:
            self._video.close()
        height, width = self._size
        video = {
            "name": self._source.name,
            "height": height,
            "width": width,
            "fps": float(self._source.fps),
            "frame_names": self._names,
        }
        tracks = sorted(self._tracks.values(), key=lambda track: track["id"])
        data = {"version": 1, "video": video, "prompted": self._prompted, "tracks": tracks}
        (self._folder / "tracks.json").write_text(json.dumps(data), encoding="utf-8")
        return f"{len(self._names)} frames, {len(tracks)} objects"


@contextmanager
def results_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, ``<name>.incomplete-<letters>``, which takes its place at the end.

    If anything goes wrong it is removed. Earlier results at ``path`` are replaced.

    Raises:
        UserError: ``path`` holds something else, or nothing can be written there.
    """
    path = Path(os.path.abspath(path))
    try:
        for each in (path, path.parent):
            if each.is_file():
                raise UserError(f"--output: '{each}' is a file; a folder expected")
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in _RESULTS) if path.exists() else []
        if foreign:
            raise UserError(f"--output: '{path}' holds other things than earlier results ('{foreign[0]}'), not touched")
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{path.name}.incomplete-", dir=path.parent))
    except OSError as error:
        raise UserError(f"--output: '{path}' cannot be written: {error.strerror}") from None
    try:
        yield folder
        umask = os.umask(0)
        os.umask(umask)
        folder.chmod(0o777 & ~umask)
        if path.exists():
            shutil.rmtree(path)
        folder.rename(path)
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"--output: '{path}' cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# The command


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the model; names its weights")
    parser.add_argument(
        "--input", required=True, metavar="PATH", help="video, folder of frames, image or camera number"
    )
    parser.add_argument("--prompt-masks", metavar="PNG", help="objects in the first frame, pixel = object id")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to change"
    )
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> str:
    """Do what the command line says; returns a sentence about it.

    Raises:
        UserError: any mistake in what was given.
    """
    # What is cheap to check comes before what takes time.
    cfg = load_config(args.config_file, args.opts)
    if not cfg.MODEL.WEIGHTS:
        raise UserError(f"MODEL.WEIGHTS: empty in '{args.config_file}'; add --opts MODEL.WEIGHTS FILE")
    if args.frames is not None and args.frames < 1:
        raise UserError(f"--frames: {args.frames}, expected 1 or more")
    source = open_source(args.input)
    first = next(source.frames, None)
    if first is None:
        raise UserError(f"{args.input}: no frame can be decoded")
    height, width = first[1].shape[:2]
    prompts = None if args.prompt_masks is None else read_prompts(args.prompt_masks)
    for mask in (prompts or {}).values():
        if mask.shape != (height, width):
            raise UserError(
                f"{args.prompt_masks}: {mask.shape[1]}x{mask.shape[0]} pixels, the first frame of the input is "
                f"{width}x{height}"
            )
    total = min((number for number in (source.count, args.frames) if number is not None), default=None)
    with results_folder(Path(args.output)) as folder:
        predictor = VideoPredictor(cfg)
        session = predictor.start(first[1], prompts)
        results = Results(folder, source, predictor.class_names(session.head), prompted=prompts is not None)
        results.write(*first, session.result)
        rest = islice(source.frames, None if args.frames is None else args.frames - 1)
        for name, frame in tqdm(rest, initial=1, total=total, unit="frame"):
            try:
                session.step(frame)
            except UserError as error:
                raise UserError(f"{args.input}: frame '{name}': {error}") from None
            results.write(name, frame, session.result)
        summary = results.close()
    return f"{summary}: see {args.output}"


def main() -> None:
    print(run(parse_args()))


if __name__ == "__main__":
    cli(main)
