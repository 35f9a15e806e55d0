# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""``python -m ausm_d2.data.check NAME...``: statistics of a data set, and all its problems.

Reads every frame and every mask. The exit code is 1 if there is any problem. ``--preview DIR`` also writes contact
sheets of training clips, augmented as in training.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from ausm_d2.config import add_ausm_config, load_config, with_data_set
from ausm_d2.data.build import get_records, get_training_records
from ausm_d2.data.catalog import register_from_config
from ausm_d2.data.mapper import ClipMapper
from ausm_d2.data.mixture import MixtureSampler
from ausm_d2.data.problems import collect_problems, problem
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError, cli, counted
from ausm_d2.io import atomic_write
from ausm_d2.masks.rle import StoredMask, cut_out


@dataclass
class Findings:
    """Statistics and problems of some videos of a data set."""

    videos: int = 0
    frames: int = 0
    labelled: int = 0  # frames
    masks: int = 0
    instances: Counter[int] = field(default_factory=Counter)  # by class
    problems: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        self.videos += other.videos
        self.frames += other.frames
        self.labelled += other.labelled
        self.masks += other.masks
        self.instances.update(other.instances)
        self.problems += other.problems


def check_dataset(name: str, max_videos: int = 0, processes: int = 1) -> Findings:
    """Read a whole data set, or ``max_videos`` of it, spread evenly.

    Problems of entries that are not records come first, then those of each video, in order.
    """
    found = Findings()
    with collect_problems() as problems:
        try:
            records = get_records(name)
        except UserError as error:
            records = []
            problem(str(error))
    found.problems += problems
    if 0 < max_videos < len(records):
        records = [records[i] for i in np.linspace(0, len(records) - 1, max_videos).astype(int)]
    for of_one in tqdm(_in_processes(records, processes), total=len(records), desc=name, unit="video", disable=None):
        found.add(of_one)
    return found


def _in_processes(records: Sequence[VideoRecord], processes: int) -> Iterator[Findings]:
    if processes <= 1:
        yield from map(check_video, records)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(check_video, records, chunksize=4)


def check_video(record: VideoRecord) -> Findings:
    """Read every frame and mask of a video."""
    found = Findings(videos=1)
    with collect_problems() as problems:
        try:
            _check_video(record, found)
        except UserError as error:  # a problem of the whole video
            problem(str(error))
    found.problems = problems
    return found


def _check_video(record: VideoRecord, found: Findings) -> None:
    categories = {instance.instance_id: instance.category_id for instance in record.instances}
    seen: dict[int, int] = {}  # class by object
    if record.labelled is not None and len(record.labelled) != record.length:
        described = len(record.labelled)
        problem(f"video {record.name}: {described} frames are described, but the video has {record.length}")
    for index, name in enumerate(record.frames.names):
        found.frames += 1
        try:
            record.read_frame(index)
        except UserError as error:
            problem(str(error))
        if record.masks is None or not record.is_labelled(index):
            continue
        found.labelled += 1
        try:
            masks = record.masks.read(index)
        except UserError as error:
            problem(str(error))
            continue
        for instance_id, mask in masks.items():
            found.masks += 1
            seen[instance_id] = categories.get(instance_id, 0)
            wrong = _wrong_with(mask, (record.height, record.width))
            if wrong:
                problem(f"video {record.name}, frame {name}, instance {instance_id}: {wrong}")
    found.instances.update(seen.values())
    for object_id, index in (record.prompt_frames or {}).items():
        if record.masks is not None and object_id not in record.masks.read(index):
            problem(f"video {record.name}: object {object_id} has no mask in frame {index}, where it is given")


def _wrong_with(mask: StoredMask, size: tuple[int, int]) -> str:
    if isinstance(mask, list):
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in mask])
        # Some of COCO's polygons exceed the border by a pixel.
        outside = (points < -1).any() or (points > np.add(size[::-1], 1)).any()
        return f"polygon outside of the frame of {size[0]} x {size[1]} (height x width)" if outside else ""
    try:
        return "" if cut_out(mask, size)[0].size else "empty mask (an object that is not visible has none)"
    except UserError as error:
        return str(error)


def report(name: str, found: Findings) -> str:
    """The findings as text."""
    classes = MetadataCatalog.get(name).get("thing_classes", [])
    lines = [
        f"{name}: {found.videos} videos, {found.frames} frames ({found.labelled} with labels), "
        f"{found.instances.total()} instances, {found.masks} masks, {len(found.instances)} of {len(classes)} classes"
    ]
    lines += [f"  {classes[i]}: {count}" for i, count in found.instances.most_common()]
    lines += [f"problem: {text}" for text in found.problems]
    lines.append(f"{name}: {counted(len(found.problems), 'problem') if found.problems else 'no problems'}")
    return "\n".join(lines)


# Preview


def contact_sheet(cfg: CfgNode, name: str, num_clips: int = 6, seed: int = 0) -> np.ndarray:
    """Training clips of a data set with masks overlaid, one clip per row: uint8 (height, width, 3), RGB."""
    cfg = with_data_set(cfg, name)
    mapper, records = ClipMapper(cfg), get_training_records(cfg, name)
    rows = []
    for draw in MixtureSampler([len(records)], [1.0], seed):
        rng = np.random.default_rng(draw.seed)
        item = mapper(name, records[draw.record], rng, lambda rng: records[int(rng.integers(len(records)))])
        rows.append(_draw_clip(item["image"].numpy(), item["masks"].numpy()))
        if len(rows) == num_clips:
            break
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows])


def _draw_clip(image: np.ndarray, masks: np.ndarray, height: int = 180) -> np.ndarray:
    """Frames (T, 3, h, w) side by side, masks (N, T, h, w) coloured and outlined: (height, width, 3)."""
    frames = []
    for t, frame in enumerate(image.transpose(0, 2, 3, 1)):
        drawn = frame.copy()
        for i, mask in enumerate(masks[:, t]):
            hue = np.array([[[(i * 67) % 180, 200, 255]]], np.uint8)
            colour = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0]
            drawn[mask] = (drawn[mask] * 0.6 + colour * 0.4).astype(np.uint8)
            outline = mask & ~cv2.erode(mask.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
            drawn[outline] = colour
        width = max(1, round(frame.shape[1] * height / frame.shape[0]))
        drawn = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)
        frames.append(np.pad(drawn, ((0, 0), (0, 4), (0, 0))))
    return np.concatenate(frames, axis=1)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m ausm_d2.data.check") -> int:
    """The command, with its arguments; default: those of the process."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("names", nargs="+", metavar="NAME", help="registered data sets")
    parser.add_argument("--config-file", default="", help="for --preview and for data sets of your own")
    parser.add_argument("--preview", metavar="DIR", help="write DIR/NAME.png, training clips with their masks")
    parser.add_argument("--max-videos", type=int, default=0, help="read only so many, spread evenly; 0: all")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="of the config")
    args = parser.parse_args(arguments)
    if args.opts and not args.config_file:
        parser.error("--opts changes keys of --config-file, which is missing")
    if args.config_file:
        cfg = load_config(args.config_file, args.opts)
    else:
        cfg = get_cfg()
        add_ausm_config(cfg)
    register_from_config(cfg)
    problems = 0
    for name in args.names:
        found = check_dataset(name, args.max_videos, args.processes)
        print(report(name, found))
        problems += len(found.problems)
        if args.preview and found.videos:
            path = Path(args.preview) / f"{name}.png"
            with atomic_write(path) as temporary:
                cv2.imwrite(str(temporary), cv2.cvtColor(contact_sheet(cfg, name), cv2.COLOR_RGB2BGR))
            print(f"{name}: training clips in {path}")
    return 1 if problems else 0


if __name__ == "__main__":
    cli(main)
