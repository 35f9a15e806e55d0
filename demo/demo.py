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
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from tqdm import tqdm

from ausm_d2.config import load_config
from ausm_d2.errors import UserError, cli
from ausm_d2.masks.png import MANY_IDS, VOID, edge_ids, read_labels, read_picture, write_mask_png
from ausm_d2.masks.rle import Rle, encode
from ausm_d2.stopping import StopRequest
from ausm_d2.streaming.predictor import FrameResult, VideoPredictor
from ausm_d2.video.ahead import ReadAhead
from ausm_d2.video.frame import Source
from ausm_d2.video.inputs import open_source
from ausm_d2.visualization import VideoWriter, draw_masks, readable_scale

_RESULTS = {"overlay.mp4", "overlay.png", "masks", "tracks.json"}


# What is given


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
            class_names: of the label set in use.
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
    first = next(iter(source), None)
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
    with results_folder(Path(args.output)) as folder, ExitStack() as stack:
        predictor = VideoPredictor(cfg)
        session = predictor.start(first.image, prompts)
        results = Results(folder, source, predictor.class_names(session.label_set), prompted=prompts is not None)
        results.write(first.name, first.image, session.result)
        rest = islice(source.frames, None if args.frames is None else args.frames - 1)
        stop = stack.enter_context(StopRequest())
        ahead = stack.enter_context(ReadAhead(rest, newest=source.live, stopped=stop))
        for name, frame, _ in tqdm(ahead, initial=1, total=total, unit="frame"):
            try:
                session.step(frame)
            except UserError as error:
                raise UserError(f"{args.input}: frame '{name}': {error}") from None
            results.write(name, frame, session.result)
        if stop() and not source.live:
            raise KeyboardInterrupt
        summary = results.close()
    return f"{summary}: see {args.output}"


def main() -> None:
    print(run(parse_args()))


if __name__ == "__main__":
    cli(main)
