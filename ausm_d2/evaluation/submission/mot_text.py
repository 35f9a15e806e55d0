# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Bounding boxes of the masks, in MOTChallenge's text format."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pycocotools import mask as coco_mask

from ausm_d2.data.video import VideoRecord
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.evaluation.submission.base import DataSet, Files, Format, Member


class MOTText(Format):
    """MOTChallenge: ``<video>.txt``, one line per box: frame, id, left, top, width, height, score, -1, -1, -1."""

    def members(self, data: DataSet, results: ResultFolder) -> Iterator[Member]:
        for record in data.records:
            yield f"{record.name}.txt", self._lines(record, results)

    def _lines(self, record: VideoRecord, results: ResultFolder) -> Iterator[bytes]:
        output = results.read(record)
        tracks = [(track["track_id"], track["score"], track["segmentations"]) for track in output.best_classes()]
        tracks += [(object_id, 1.0, masks) for object_id, masks in (output.objects or {}).items()]
        # Frames, pixels and ids start at 1; ids are shifted by 1 only if one of them is 0.
        first = min((track_id for track_id, _, _ in tracks), default=1)
        for frame in range(record.length):
            for track_id, score, masks in tracks:
                if masks[frame] is not None:
                    left, top, width, height = coco_mask.toBbox(masks[frame])
                    box = f"{left + 1:g},{top + 1:g},{width:g},{height:g}"
                    yield f"{frame + 1},{track_id + (first < 1)},{box},{score:.6g},-1,-1,-1\n".encode()

    def problems(self, data: DataSet, files: Files) -> Iterator[str]:
        expected = {f"{record.name}.txt": record for record in data.records}
        yield from (f"{name}: unexpected file" for name in files.names if name not in expected)
        for name, record in expected.items():
            if name not in files.names:
                yield f"{name}: missing"
                continue
            seen: dict[tuple[float, float], int] = {}
            for number, line in enumerate(files.read(name).decode(errors="replace").splitlines(), start=1):
                problem = _check_mot_line(line, record, seen, number)
                if problem:
                    yield f"{name}, line {number}: {problem}"


def _check_mot_line(line: str, record: VideoRecord, seen: dict[tuple[float, float], int], number: int) -> str | None:
    try:
        values = [float(text) for text in line.split(",")]
    except ValueError:
        values = []
    if len(values) != 10 or not all(map(math.isfinite, values)):
        return f"{line[:40]!r} found, ten numbers with commas expected"
    frame, track_id = values[:2]
    if not frame.is_integer() or not 1 <= frame <= record.length:
        return f"frame {values[0]:g}, expected 1 to {record.length}"
    if not track_id.is_integer() or track_id < 1:
        return f"id {track_id:g}, expected a whole number from 1"
    first = seen.setdefault((frame, track_id), number)
    if first != number:
        return f"id {track_id:g} is in frame {frame:g} already (line {first})"
    return None
