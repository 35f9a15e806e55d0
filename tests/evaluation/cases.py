# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Random tracks in the YouTube-VIS form: duplicates, missing frames, empty masks, crowds, equal scores."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from ausm_d2.masks.rle import encode


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths as a list, as in the ground truth of YouTube-VIS."""
    flat = mask.astype(np.int8).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


def rectangle(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """bool (height, width), one rectangle in it."""
    mask = np.zeros((height, width), bool)
    y, x = rng.integers(0, height), rng.integers(0, width)
    mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = True
    return mask


def random_case(
    rng: np.random.Generator, *, videos: int = 5, categories: int = 3, size: int = 40, crowds: bool = True
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(annotations, results) in the YouTube-VIS form; the last category has no ground truth."""
    truth: dict[str, Any] = {"videos": [], "annotations": []}
    truth["categories"] = [{"id": 3 * c + 2, "name": f"class{c}"} for c in range(categories + 1)]
    results: list[dict[str, Any]] = []
    for video_id in range(1, videos + 1):
        height, width, length = *(int(side) for side in rng.integers(size // 4, size, 2)), int(rng.integers(1, 6))
        names = [f"video{video_id}/{t:05d}.jpg" for t in range(length)]
        video = {"id": video_id, "height": height, "width": width, "length": length, "file_names": names}
        truth["videos"].append(video)
        tracks = []
        for _ in range(rng.integers(0, 5)):
            masks = [rectangle(rng, height, width) if rng.random() < 0.8 else None for _ in range(length)]
            category = 3 * int(rng.integers(0, categories)) + 2
            tracks.append((category, masks))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "video_id": video_id,
                    "category_id": category,
                    "iscrowd": int(crowds and rng.random() < 0.25),
                    "height": height,
                    "width": width,
                    "segmentations": [None if mask is None else uncompressed(mask) for mask in masks],
                    "areas": [None if mask is None else int(mask.sum()) for mask in masks],
                    "bboxes": [None] * length,
                }
            )
        for _ in range(rng.integers(0, 12)):
            category = 3 * int(rng.integers(0, categories)) + 2
            masks = [rectangle(rng, height, width) if rng.random() < 0.7 else None for _ in range(length)]
            if tracks and rng.random() < 0.8:
                category, masks = copy.deepcopy(tracks[rng.integers(len(tracks))])
                for mask in masks:
                    if mask is not None and rng.random() < 0.7:
                        mask[: rng.integers(0, height) // 3] = False
                if rng.random() < 0.3:
                    masks[rng.integers(length)] = None
                if rng.random() < 0.1:
                    masks[rng.integers(length)] = np.zeros((height, width), bool)
            entry = {
                "video_id": video_id,
                "category_id": category,
                "score": float(np.round(rng.random(), 1)),
                "segmentations": [None if mask is None else encode(mask) for mask in masks],
            }
            results += [entry] if rng.random() < 0.9 else [entry, copy.deepcopy(entry)]
    return truth, results
