# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Write a part of the embedded procedural data to disk, in the layout of YouTube-VIS or DAVIS.

    python datasets/prepare_synthvis.py --split val --videos 0:10 --layout davis --out datasets/synth_davis

ytvis: OUT/{train,valid}/JPEGImages/<video>/<frame>.png and OUT/{train,valid}.json (category ids from 1).
davis: OUT/JPEGImages/480p/<video>/<frame>.png, OUT/Annotations/480p/<video>/<frame>.png (palette, pixel = object
id) and OUT/ImageSets/2017/{train,val}.txt.
The list of videos (the JSON or text file) is written last: without it the copy is incomplete. PNG frames equal the
generated ones bit for bit; ``--jpeg`` writes smaller files, with loss.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from ausm_d2.data.synthvis import CLASSES, SPLITS, SynthVis
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError, cli
from ausm_d2.io import atomic_write
from ausm_d2.masks import rle

# DAVIS's colours of object ids 0 to 6; a video has at most 6 objects.
_PALETTE = (0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128, 128, 0, 128, 0, 128, 128)


def parse_range(text: str) -> range:
    """``"a:b"``: videos a to b - 1; ``"a"``: one video.

    Raises:
        UserError: if the text is invalid, or the range is empty.
    """
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if match:
        first = int(match[1])
        videos = range(first, int(match[2]) if match[2] else first + 1)
        if videos:
            return videos
    raise UserError(f"--videos: found {text!r}, expected FIRST:END with END > FIRST, or one number")


def write_frames(record: VideoRecord, folder: Path, suffix: str) -> list[str]:
    """Write every frame of ``record`` into ``folder``; returns the file names (T)."""
    files = [f"{name}{suffix}" for name in record.frames.names]
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == ".jpg" else []
    for frame, file in enumerate(files):
        with atomic_write(folder / file) as path:
            if not cv2.imwrite(str(path), cv2.cvtColor(record.frames[frame], cv2.COLOR_RGB2BGR), options):
                raise UserError(f"{folder / file}: the picture cannot be written")
    return files


def list_instances(record: VideoRecord, first_id: int) -> list[dict[str, Any]]:
    """YTVIS annotations of the visible instances, one entry per instance with one mask or null per frame."""
    frames = [masks_at(record, frame) for frame in range(record.length)]
    found: list[dict[str, Any]] = []
    for instance in record.instances:
        masks = [masks.get(instance.instance_id) for masks in frames]
        if all(mask is None for mask in masks):
            continue
        found.append(
            {
                "id": first_id + len(found),
                "video_id": record.video_id,
                "category_id": instance.category_id + 1,
                "iscrowd": 0,
                "width": record.width,
                "height": record.height,
                "length": record.length,
                "segmentations": [None if mask is None else rle.encode(mask) for mask in masks],
                "bboxes": [None if mask is None else [float(x) for x in cv2.boundingRect(mask)] for mask in masks],
                "areas": [None if mask is None else int(mask.sum()) for mask in masks],
            }
        )
    return found


def masks_at(record: VideoRecord, frame: int) -> dict[int, np.ndarray]:
    """Masks of one frame as uint8 (H, W) by instance id."""
    assert record.masks is not None
    return {i: np.asarray(mask, np.uint8) for i, mask in record.masks.read(frame).items()}


def write_ytvis(records: Sequence[VideoRecord], out: Path, split: str, suffix: str) -> Path:
    """Write the YTVIS layout; returns the path of the annotation file."""
    part = {"train": "train", "val": "valid"}[split]
    listing = new_listing(out / f"{part}.json")
    categories = [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)]
    data: dict[str, Any] = {"info": {"description": "synthvis"}, "categories": categories}
    data |= {"videos": [], "annotations": []}
    for record in tqdm(records, unit="video"):
        files = write_frames(record, out / part / "JPEGImages" / record.name, suffix)
        data["videos"].append(
            {
                "id": record.video_id,
                "width": record.width,
                "height": record.height,
                "length": record.length,
                "file_names": [f"{record.name}/{file}" for file in files],
            }
        )
        data["annotations"] += list_instances(record, len(data["annotations"]) + 1)
    with atomic_write(listing) as path:
        path.write_text(json.dumps(data))
    return listing


def write_davis(records: Sequence[VideoRecord], out: Path, split: str, suffix: str) -> Path:
    """Write the DAVIS layout; returns the path of the list of videos."""
    listing = new_listing(out / "ImageSets" / "2017" / f"{split}.txt")
    for record in tqdm(records, unit="video"):
        write_frames(record, out / "JPEGImages" / "480p" / record.name, suffix)
        for frame, name in enumerate(record.frames.names):
            ids = np.zeros((record.height, record.width), np.uint8)
            for instance_id, mask in masks_at(record, frame).items():
                ids[mask > 0] = instance_id
            picture = Image.fromarray(ids)
            picture.putpalette(_PALETTE)
            with atomic_write(out / "Annotations" / "480p" / record.name / f"{name}.png") as path:
                picture.save(path)
    with atomic_write(listing) as path:
        path.write_text("".join(f"{record.name}\n" for record in records))
    return listing


def new_listing(path: Path) -> Path:
    """Return ``path`` if it does not exist.

    Raises:
        UserError: if it exists.
    """
    if path.exists():
        raise UserError(f"{path}: exists already; remove it or choose another --out")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` as in ``sys.argv[1:]``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=sorted(SPLITS), default="val")
    parser.add_argument("--seed", type=int, help="videos of another seed than the split's own")
    parser.add_argument("--videos", metavar="FIRST:END", help="only these, counted from 0 (default: the whole split)")
    parser.add_argument("--layout", choices=("ytvis", "davis"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--jpeg", action="store_true", help="frames as JPEG (quality 95) instead of PNG")
    args = parser.parse_args(arguments)

    seed, count = SPLITS[args.split]
    videos = parse_range(args.videos) if args.videos else range(count)
    source = SynthVis(seed if args.seed is None else args.seed, videos.stop)
    records = [source[index] for index in videos]
    write = {"ytvis": write_ytvis, "davis": write_davis}[args.layout]
    try:
        listing = write(records, args.out, args.split, ".jpg" if args.jpeg else ".png")
    except OSError as error:
        raise UserError(f"{error.filename or args.out}: cannot be written: {error.strerror}") from None
    print(f"{len(records)} videos: {listing}")


if __name__ == "__main__":
    cli(main)
