# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A user's labels: pictures of 24 x 36 pixels with squares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.disk import SIZE, square, write_labels

CATEGORIES = [{"id": 12, "name": "spoon", "supercategory": "kitchen"}, {"id": 7, "name": "cup"}]


def box(x: int, y: int, side: int = 8) -> list[list[float]]:
    """A square as a polygon."""
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(number: int, image: int, category: int, x: int = 4, **changes: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0, "bbox": [x, 5, 8, 8]}
    return {**entry, "segmentation": box(x, 5), "area": 64, **changes}


def write_picture(path: Path, value: int, mode: str = "RGB") -> None:
    """A picture of its own for each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (*SIZE, 3), np.uint8)
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(path)
    else:
        Image.fromarray(pixels).convert(mode).save(path)


def coco(count: int = 5) -> dict[str, Any]:
    """A cup in every image, a spoon in every other one."""
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(count)]
    cups = [annotation(10 + i, i, 7) for i in range(count)]
    spoons = [annotation(50 + i, i, 12, x=20) for i in range(0, count, 2)]
    return {"images": images, "categories": [dict(each) for each in CATEGORIES], "annotations": cups + spoons}


def write_coco(folder: Path, table: dict[str, Any], pictures: bool = True) -> tuple[Path, Path]:
    """``labels.json`` and ``images``; returns both paths."""
    for image in table["images"] if pictures else ():
        write_picture(folder / "images" / image["file_name"], image["id"])
    (folder / "images").mkdir(exist_ok=True, parents=True)
    (folder / "labels.json").write_text(json.dumps(table))
    return folder / "labels.json", folder / "images"


def write_video(folder: Path, count: int = 6) -> tuple[Path, Path]:
    """``frames`` and ``masks`` of one video: object 1 in every frame, object 2 from the second on."""
    for t in range(count):
        write_picture(folder / "frames" / f"{t:05d}.jpg", t)
        labels = np.where(square(t), 1, 0)
        labels[square(t, offset=10)] = 2 if t else 0
        write_labels(folder / "masks" / f"{t:05d}.png", labels)
    return folder / "frames", folder / "masks"
