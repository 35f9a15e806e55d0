# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Submissions in one JSON file: YouTube-VIS and OVIS, COCO."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ausm_d2.data.video import VideoRecord
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.evaluation.submission.base import DataSet, Files, Format, Member
from ausm_d2.masks.rle import Rle, first_invalid, to_rle


class JSONFormat(Format):
    """A list of results in one file, at the root of a zip."""

    def __init__(
        self, file_name: str, entries: Callable[..., Iterator[dict[str, Any]]], check: Callable[..., str | None]
    ) -> None:
        """
        Args:
            file_name: may contain ``*``, which matches any text.
            entries: yields the entries of one video.
            check: returns what is wrong with an entry, or None.
        """
        self.file_name = file_name
        self._entries = entries
        self._check = check

    def members(self, data: DataSet, results: ResultFolder) -> Iterator[Member]:
        yield self.file_name.replace("*", f"{data.name}_ausm"), self._content(data, results)

    def _content(self, data: DataSet, results: ResultFolder) -> Iterator[bytes]:
        separator = b"["
        for record in data.records:
            for entry in self._entries(data, record, results):
                yield separator + json.dumps(entry).encode()
                separator = b",\n"
        yield b"]\n" if separator != b"[" else b"[]\n"

    def problems(self, data: DataSet, files: Files) -> Iterator[str]:
        if files.zip is None:
            yield f"not a zip: servers take a zip with {self.file_name} at its root"
            names = files.names
        else:
            names = fnmatch.filter(files.names, self.file_name)
            yield from (f"{name}: unexpected file" for name in files.names if name not in names)
        if len(names) != 1 or "/" in names[0]:
            yield f"expected one {self.file_name} at its root"
            return
        content = files.read(names[0])
        try:
            entries = json.loads(content)
        except RecursionError:
            yield f"{names[0]}: nested too deeply"
            return
        except ValueError as error:  # not text, not JSON, or a number of thousands of digits
            yield f"{names[0]}: not a JSON file: {error}"
            return
        if not isinstance(entries, list) or not entries:
            yield f"{names[0]}: expected a list of results that is not empty"
            return
        by_id = {record.video_id: record for record in data.records}
        for index, entry in enumerate(entries):
            problem = self._check(data, by_id, entry)
            if problem:
                yield f"{names[0]}: entry {index}: {problem}"


def _vis_entries(data: DataSet, record: VideoRecord, results: ResultFolder) -> Iterator[dict[str, Any]]:
    for track in results.read(record).tracks:
        yield {
            "video_id": record.video_id,
            "category_id": data.category_ids[track["category_id"]],
            "score": track["score"],
            "segmentations": track["segmentations"],
        }


def _coco_entries(data: DataSet, record: VideoRecord, results: ResultFolder) -> Iterator[dict[str, Any]]:
    for entry in _vis_entries(data, record, results):
        mask = entry.pop("segmentations")[0]
        if mask is not None:
            yield {"image_id": entry.pop("video_id"), **entry, "segmentation": mask}


def _check_vis_entry(data: DataSet, records: dict[Any, VideoRecord], entry: Any) -> str | None:
    masks = entry.get("segmentations") if isinstance(entry, dict) else None
    problem = _check_entry(data, records, entry, "video_id")
    if problem:
        return problem
    record = records[entry["video_id"]]
    if not isinstance(masks, list) or len(masks) != record.length:
        found = len(masks) if isinstance(masks, list) else type(masks).__name__
        return f"field 'segmentations': {found} found, a list of {record.length} expected, one for each frame"
    return _check_masks(record, masks)


def _check_coco_entry(data: DataSet, records: dict[Any, VideoRecord], entry: Any) -> str | None:
    problem = _check_entry(data, records, entry, "image_id")
    if problem:
        return problem
    if not entry.get("segmentation"):
        return f"field 'segmentation': {entry.get('segmentation')!r} found, a mask expected"
    return _check_masks(records[entry["image_id"]], [entry["segmentation"]])


def _check_entry(data: DataSet, records: dict[Any, VideoRecord], entry: Any, id_field: str) -> str | None:
    if not isinstance(entry, dict):
        return f"{type(entry).__name__} found, an object with fields expected"
    video_id, category_id, score = (entry.get(name) for name in (id_field, "category_id", "score"))
    if not isinstance(video_id, (int, str)) or video_id not in records:
        return f"field {id_field!r}: {video_id!r} is not in {data.name}"
    if category_id not in data.category_ids.values():
        return f"field 'category_id': {category_id!r} is no category of {data.name}"
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not abs(score) <= sys.float_info.max:
        return f"field 'score': {score!r:.40} found, a finite number expected"
    return None


def _check_masks(record: VideoRecord, masks: Sequence[Any]) -> str | None:
    """Servers read compressed run lengths only."""
    rles: dict[int, Rle] = {}
    for frame, mask in enumerate(masks):
        if mask is None:
            continue
        if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
            return f"mask of frame {frame}: expected null or compressed run lengths (size, counts as text)"
        try:
            rle = to_rle(mask, record.height, record.width)
        except ValueError as error:
            return f"mask of frame {frame}: {error}"
        if rle is None:
            return f"mask of frame {frame}: counts are empty"
        rles[frame] = rle
    invalid = first_invalid(list(rles.values()))
    if invalid is None:
        return None
    return f"mask of frame {list(rles)[invalid]}: counts do not describe {record.height}x{record.width} pixels"


YTVIS = JSONFormat("results.json", _vis_entries, _check_vis_entry)
COCO = JSONFormat("detections_*_results.json", _coco_entries, _check_coco_entry)
