# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Small data sets on disk, in the layouts of the benchmarks. The tests break copies of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ausm_d2.masks.rle import encode

SIZE = (24, 36)  # height, width of every frame


def square(index: int, offset: int = 0) -> np.ndarray:
    """The mask of an object in frame ``index``: 6 x 6 pixels that go right by two pixels a frame."""
    mask = np.zeros(SIZE, bool)
    mask[4 + offset : 10 + offset, 2 + 2 * index : 8 + 2 * index] = True
    return mask


def write_frame(path: Path, value: int = 90, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


def write_labels(path: Path, labels: np.ndarray, mode: str = "P") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels.astype(np.uint8))
    if mode == "P":
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [9] * 759)
    picture.save(path)


def write_json(path: Path, data: Any, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding=encoding)
    return path


def ytvis_data(frames: int = 3, categories: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Two videos; the first has two objects, of which the second is not visible in frame 1."""
    first = [encode(square(t)) for t in range(frames)]
    second = [None if t == 1 else encode(square(t, offset=10)) for t in range(frames)]
    return {
        "categories": [{"id": i, "name": name} for i, name in (categories or {1: "cat", 2: "dog"}).items()],
        "videos": [
            {
                "id": 10 + v,
                "height": SIZE[0],
                "width": SIZE[1],
                "length": frames,
                "file_names": [f"clip{v}/{t:05d}.jpg" for t in range(frames)],
            }
            for v in range(2)
        ],
        "annotations": [
            {"id": 1, "video_id": 10, "category_id": 2, "iscrowd": 0, "segmentations": first,
             "bboxes": [[2, 4, 6, 6]] * frames, "areas": [36] * frames},
            {"id": 2, "video_id": 10, "category_id": 1, "iscrowd": 0, "segmentations": second},
            {"id": 3, "video_id": 11, "category_id": 1, "iscrowd": 0, "segmentations": list(first)},
        ],
    }  # fmt: skip


def write_ytvis(folder: Path, data: dict[str, Any]) -> tuple[str, str]:
    """``labels.json`` and ``images``; returns both paths."""
    for video in data["videos"]:
        for name in video["file_names"] or []:
            write_frame(folder / "images" / name)
    return str(write_json(folder / "labels.json", data)), str(folder / "images")


def write_tree(images: Path, masks: Path, video: str = "clip", frames: int = 3) -> None:
    """A video with object 1 from frame 0 on and object 2 from frame 1 on."""
    for t in range(frames):
        write_frame(images / video / f"{t:05d}.jpg")
        labels = square(t) * 1 + (square(t, offset=10) * 2 if t > 0 else 0)
        write_labels(masks / video / f"{t:05d}.png", labels)


def write_davis(root: Path) -> None:
    """``DAVIS`` with one video in each list."""
    for split in ("train", "val"):
        write_tree(root / "DAVIS/JPEGImages/480p", root / "DAVIS/Annotations/480p", f"{split}_clip")
        path = root / f"DAVIS/ImageSets/2017/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{split}_clip\n")
