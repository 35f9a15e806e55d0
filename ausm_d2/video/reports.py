# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The outputs that are written at the end, from all frames done: JSON files and the timeline.

They are written piece by piece from the journal: at most the masks of one frame or one track are in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ausm_d2.io import atomic_write
from ausm_d2.video.outputs import write_picture
from ausm_d2.video.tracked import Journal, TrackedObject, VideoInfo
from ausm_d2.visualization import colour


class Run(NamedTuple):
    """The input of a report."""

    folder: Path
    info: VideoInfo
    journal: Journal
    complete: bool  # all frames of the video were processed
    key: str  # identifies video and settings


class _Frames(NamedTuple):
    names: list[str]
    files: list[str]
    times: list[float]


def _frames(journal: Journal) -> _Frames:
    found = _Frames([], [], [])
    for frame in journal.read():
        found.names.append(frame.name)
        found.files.append(frame.file)
        found.times.append(frame.time)
    return found


def _write_json(path: Path, pieces: Iterable[str]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(pieces)


def _listed(entries: Iterable[str]) -> Iterator[str]:
    """The elements of a JSON list, with separators."""
    for number, entry in enumerate(entries):
        yield f", {entry}" if number else entry


def write_tracks(run: Run) -> None:
    """``tracks.json``: every object with its frames, masks and scores."""
    frames = _frames(run.journal)
    video = {
        "name": run.info.name,
        "height": run.info.height,
        "width": run.info.width,
        "fps": float(run.info.fps),
        "frame_names": frames.names,
        "times": [round(time, 6) for time in frames.times],
    }
    head = {"version": 1, "complete": run.complete, "run": run.key, "video": video, "prompted": run.info.prompted}

    def tracks() -> Iterator[str]:
        for track_id, places in run.journal.tracks().items():
            found = list(run.journal.entries(places))
            last = found[-1][1]
            entry = {
                "id": track_id,
                "class": last.name,
                "score": last.score,
                "frames": [frame for frame, _ in found],
                "scores": [each.score for _, each in found],
                "segmentations": [each.mask for _, each in found],
            }
            yield json.dumps(entry)

    _write_json(run.folder / "tracks.json", [json.dumps(head)[:-1], ', "tracks": [', *_listed(tracks()), "]}"])


def _categories(info: VideoInfo) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in enumerate(info.classes, start=1)]


def write_ytvis(run: Run) -> None:
    """``ytvis.json``: the tracks as a YouTube-VIS data set of one video, with scores."""
    frames, info = _frames(run.journal), run.info
    length = len(frames.names)
    video = {"id": 1, "width": info.width, "height": info.height, "length": length, "file_names": frames.files}
    head = {"info": {"description": info.name}, "videos": [video], "categories": _categories(info)}

    def annotations() -> Iterator[str]:
        for track_id, places in run.journal.tracks().items():
            lists: dict[str, list[Any]] = {key: [None] * length for key in ("segmentations", "bboxes", "areas")}
            last: TrackedObject | None = None
            for frame, last in run.journal.entries(places):
                lists["segmentations"][frame] = last.mask
                lists["bboxes"][frame] = coco_mask.toBbox(last.mask).tolist()
                lists["areas"][frame] = int(coco_mask.area(last.mask))
            assert last is not None
            entry = {"id": track_id, "video_id": 1, "category_id": last.class_id + 1, "score": last.score}
            size = {"iscrowd": 0, "height": info.height, "width": info.width, "length": length}
            yield json.dumps({**entry, **size, **lists})

    pieces = [json.dumps(head)[:-1], ', "annotations": [', *_listed(annotations()), "]}"]
    _write_json(run.folder / "ytvis.json", pieces)


def write_coco(run: Run) -> None:
    """``coco.json``: every frame as an image of a COCO data set; ``track_id`` says which annotations are one object."""
    info = run.info

    def images() -> Iterator[str]:
        for frame in run.journal.read():
            image = {"id": frame.index + 1, "file_name": frame.file, "width": info.width, "height": info.height}
            yield json.dumps({**image, "frame_index": frame.index, "time": round(frame.time, 6)})

    def annotations() -> Iterator[str]:
        number = 0
        for frame in run.journal.read():
            for each in frame.objects:
                number += 1
                entry = {"id": number, "image_id": frame.index + 1, "category_id": each.class_id + 1, "iscrowd": 0}
                box, area = coco_mask.toBbox(each.mask).tolist(), int(coco_mask.area(each.mask))
                more = {"bbox": box, "area": area, "segmentation": each.mask, "score": each.score, "track_id": each.id}
                yield json.dumps({**entry, **more})

    def pieces() -> Iterator[str]:
        yield json.dumps({"info": {"description": info.name}, "categories": _categories(info)})[:-1]
        yield ', "images": ['
        yield from _listed(images())
        yield '], "annotations": ['
        yield from _listed(annotations())
        yield "]}"

    _write_json(run.folder / "coco.json", pieces())


_COLUMNS, _ROW, _LEFT, _BOTTOM = 1200, 22, 190, 34  # pixels of the timeline
_MOST_ROWS = 60


def write_timeline(run: Run) -> None:
    """``timeline.png``: a row for each object, coloured where it is visible, darker where its score is higher."""
    frames = _frames(run.journal)
    length = max(1, len(frames.times))
    columns = min(_COLUMNS, length)
    tracks = run.journal.tracks()
    longest = sorted(tracks, key=lambda track_id: -len(tracks[track_id]))[:_MOST_ROWS]
    shown = [track_id for track_id in tracks if track_id in set(longest)]
    sheet = np.full((_ROW * max(1, len(shown)) + _BOTTOM, _LEFT + _COLUMNS + 20, 3), 255, np.uint8)
    for row, track_id in enumerate(shown):
        sums, counts = np.zeros(columns), np.zeros(columns)
        name = ""
        for frame, each in run.journal.entries(tracks[track_id]):
            column = frame * columns // length
            sums[column] += each.score
            counts[column] += 1
            name = each.name
        confidence = sums / np.maximum(counts, 1)
        bar = 255 - (255 - np.array(colour(track_id))) * (0.25 + 0.75 * confidence[:, None]) * (counts > 0)[:, None]
        wide = cv2.resize(bar[None].astype(np.uint8), (_COLUMNS, _ROW - 6), interpolation=cv2.INTER_NEAREST)
        top = row * _ROW + 3
        sheet[top : top + _ROW - 6, _LEFT : _LEFT + _COLUMNS] = wide
        _text(sheet, f"{track_id} {name}"[:24], (6, top + 13))
    bottom = _ROW * max(1, len(shown))
    cv2.line(sheet, (_LEFT, bottom), (_LEFT + _COLUMNS, bottom), (160, 160, 160))
    for tick in range(5):
        frame = round(tick * (length - 1) / 4)
        time = frames.times[frame] if frames.times else 0.0
        _text(sheet, f"{time:.1f} s", (_LEFT + tick * (_COLUMNS - 40) // 4, bottom + 18))
    if len(tracks) > len(shown):
        _text(sheet, f"and {len(tracks) - len(shown)} shorter tracks", (6, bottom + 18))
    write_picture(run.folder / "timeline.png", sheet)


def _text(sheet: np.ndarray, text: str, corner: tuple[int, int]) -> None:
    cv2.putText(sheet, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)


REPORTS: dict[str, Callable[[Run], None]] = {
    "tracks": write_tracks,
    "ytvis": write_ytvis,
    "coco": write_coco,
    "timeline": write_timeline,
}
