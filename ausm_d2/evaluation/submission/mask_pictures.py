# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Submissions of mask images: DAVIS, MOSE, YouTube-VOS and SA-V."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np
from tqdm import tqdm

from ausm_d2.data.video import VideoRecord
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.evaluation.submission.base import DataSet, Files, Format, Member
from ausm_d2.masks.png import decode_picture, encode_mask_png
from ausm_d2.masks.rle import decode


class MaskTree(Format):
    """Palette PNGs, ``<video>/<frame>.png``: DAVIS and MOSE; YouTube-VOS has a top folder."""

    def __init__(self, top: str = "") -> None:
        self.top = top

    def frames(self, record: VideoRecord) -> Sequence[int]:
        """The frames to submit: those that the data set lists, or all."""
        return record.extra.get("scored_frames", range(record.length))

    def expected(self, record: VideoRecord) -> Iterator[tuple[str, int, int | None]]:
        """(path in the submission, frame, object id or ``None`` for all objects) of every image of a video."""
        for frame in self.frames(record):
            yield f"{self.top}{record.name}/{record.frames.names[frame]}.png", frame, None

    def members(self, data: DataSet, results: ResultFolder) -> Iterator[Member]:
        for record in data.records:
            objects = results.read(record).objects or {}
            for name, frame, wanted in self.expected(record):
                id_map = np.zeros((record.height, record.width), np.int64)
                for object_id, masks in objects.items():
                    mask = masks[frame]
                    if mask is not None and wanted in (None, object_id):
                        id_map[decode(mask)] = object_id if wanted is None else 1
                yield name, [encode_mask_png(id_map)]

    def problems(self, data: DataSet, files: Files) -> Iterator[str]:
        present = set(files.names)
        unexpected = present.copy()
        tops: set[str] = set()
        missing = 0
        for record in tqdm(data.records, unit="video", disable=None):
            ids = np.array([0, *(record.prompt_frames or {})])
            for name, _, wanted in self.expected(record):
                unexpected.discard(name)
                tops.add(PurePosixPath(name).parts[0])
                if name not in present:
                    missing += 1
                    yield f"{name}: missing"
                    continue
                problem = _check_picture(files.read(name), record, ids if wanted is None else None)
                if problem:
                    yield f"{name}: {problem}"
        others = sorted({PurePosixPath(name).parts[0] for name in unexpected} - tops)
        if others and missing:
            yield f"at its root: {', '.join(others[:5])} found; expected {self.top or '<video>/'}..."
        yield from (f"{name}: unexpected file" for name in sorted(unexpected))


def _check_picture(content: bytes, record: VideoRecord, ids: np.ndarray | None) -> str | None:
    try:
        picture = decode_picture(io.BytesIO(content)).values
    except ValueError as error:
        return str(error)
    if picture.shape != (record.height, record.width):
        return f"{picture.shape[1]}x{picture.shape[0]} pixels, expected {record.width}x{record.height}"
    values = np.unique(picture)
    if ids is None:
        return (
            None
            if len(values[values != 0]) <= 1
            else f"values {values[:5].tolist()}, expected one object in black and white"
        )
    unknown = values[~np.isin(values, ids)]
    return f"value {unknown[0]} is no object of the video" if len(unknown) else None


class ObjectTree(MaskTree):
    """Binary PNGs, ``<video>/<object>/<frame>.png``; masks may overlap: SA-V."""

    def expected(self, record: VideoRecord) -> Iterator[tuple[str, int, int | None]]:
        for object_id, prompt in sorted((record.prompt_frames or {}).items()):
            for frame in record.labelled_frames:
                if frame >= prompt:
                    yield f"{record.name}/{object_id:03d}/{record.frames.names[frame]}.png", frame, object_id
