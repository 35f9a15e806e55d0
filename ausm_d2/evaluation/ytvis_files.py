# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Reads annotations and results in the YouTube-VIS format. Errors name file, entry and field.

Shape shorthand:
    T: frames of a video
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ausm_d2.errors import UserError
from ausm_d2.evaluation.tracks import Track, VideoId, mean_area
from ausm_d2.ids import as_id, find_id
from ausm_d2.masks.rle import Rle, measure, read_json_with_masks, to_rle

logger = logging.getLogger(__name__)


@dataclass
class Video:
    """The size of a video: frames in pixels, and number of frames."""

    height: int
    width: int
    length: int


@dataclass
class GroundTruth:
    """The annotations of a data set."""

    videos: dict[VideoId, Video]
    categories: dict[int, str]  # name by id
    tracks: list[Track] | None  # None: without public labels


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")  # float() also takes "1_0", "nan", " 1"


def _shorten(value: Any) -> str:
    return f"{value!r:.40}"


class _Reader:
    """Reads the fields of one entry of a list in a JSON file; its errors name file and entry."""

    def __init__(self, path: str | os.PathLike[str], entry: Any, where: str, texts: set[str]) -> None:
        """
        Args:
            texts: names of fields whose numbers are given as text; added to here.
        """
        self.texts = texts
        self.where = f"{path}: {where}"
        if not isinstance(entry, dict):
            raise UserError(f"{self.where}: expected an object with fields, found {type(entry).__name__}")
        self.entry = entry
        if "video_id" in entry:
            self.where += f" (video_id {_shorten(entry['video_id'])})"

    def error(self, text: str) -> UserError:
        return UserError(f"{self.where}: {text}")

    def field(self, name: str) -> Any:
        if name not in self.entry:
            raise self.error(f"field {name!r} is missing")
        return self.entry[name]

    def integer(self, name: str) -> int:
        value = self.number(name)
        if not value.is_integer():
            raise self.error(f"field {name!r} is {_shorten(self.entry[name])}, expected a whole number")
        return int(value)

    def number(self, name: str) -> float:
        value = self.field(name)
        number = self._finite(name, value)
        if number is None:
            raise self.error(f"field {name!r} is {_shorten(value)}, expected a finite number")
        return number

    def _finite(self, name: str, value: Any) -> float | None:
        """A finite number, also if it is written as text; None for anything else."""
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            self.texts.add(name)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            return None
        with contextlib.suppress(OverflowError):
            number = float(value)
            return number if math.isfinite(number) else None
        return None

    def key(self, name: str, known: dict) -> Any:
        """An id in the form that ``known`` has: number or text."""
        value = self.field(name)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self.error(f"field {name!r} is {_shorten(value)}, expected a number or text")
        found = find_id(value, known)
        return value if found is None else found

    def flag(self, name: str) -> bool:
        """0 or 1; a missing field is false."""
        value = self.entry.get(name)
        if isinstance(value, bool) or value is None:
            return bool(value)
        if self.number(name) not in (0, 1):
            raise self.error(f"field {name!r} is {_shorten(value)}, expected 0 or 1")
        return self.number(name) == 1

    def area(self) -> float | None:
        """Mean of the field ``areas``, pixels; ``None`` if it is missing."""
        areas = self.entry.get("areas")
        if areas is None:
            return None
        if isinstance(areas, list):
            numbers = [self._finite("areas", value) for value in areas if value is not None]
            if None not in numbers:
                return mean_area(numbers)
        raise self.error(f"field 'areas' is {areas!r:.99}, expected a list of numbers or null")

    def masks(self, video: Video) -> list[Rle | None]:
        """Field ``segmentations``, (T,); ``_tracks`` checks the run lengths."""
        segmentations = self.field("segmentations")
        if not isinstance(segmentations, list) or len(segmentations) != video.length:
            found = f"{len(segmentations)} entries" if isinstance(segmentations, list) else type(segmentations).__name__
            raise self.error(f"field 'segmentations' is {found}, expected one for each of {video.length} frames")
        masks: list[Rle | None] = []
        for frame, mask in enumerate(segmentations):
            try:
                masks.append(to_rle(mask, video.height, video.width))
            except ValueError as error:
                raise self.error(f"field 'segmentations'[{frame}]: {error}") from None
        return masks


def _tracks(readers: Sequence[_Reader], fields: Sequence[dict[str, Any]]) -> list[Track]:
    """Build tracks from their fields, checking and measuring all masks in one batch."""
    measures = measure([mask for track in fields for mask in track["masks"]])
    tracks, end = [], 0
    for reader, track in zip(readers, fields, strict=True):
        begin, end = end, end + len(track["masks"])
        of_track = measures.part(slice(begin, end))
        if of_track.broken.any():
            frame = int(of_track.broken.argmax())
            height, width = track["masks"][frame]["size"]
            raise reader.error(f"field 'segmentations'[{frame}]: counts do not describe {height}x{width} pixels")
        tracks.append(Track(**track, measures=of_track))
    return tracks


def _entries(path: str | os.PathLike[str], data: dict, name: str, texts: set[str]) -> list[_Reader]:
    value = data.get(name)
    if not isinstance(value, list):
        raise UserError(f"{path}: field {name!r} is {type(value).__name__}, expected a list")
    return [_Reader(path, entry, f"{name}[{index}]", texts) for index, entry in enumerate(value)]


def _say_texts(path: str | os.PathLike[str], texts: set[str]) -> None:
    if texts:
        fields = ", ".join(sorted(texts))
        logger.warning("%s: numbers given as text are read as numbers, in the fields %s", path, fields)


def read_truth(path: str | os.PathLike[str]) -> GroundTruth:
    """Read annotations. ``areas`` may be missing, ``annotations`` null (no public labels).

    Raises:
        UserError: file, entry and field that are not as expected.
    """
    data = read_json_with_masks(path)
    if not isinstance(data, dict):
        raise UserError(
            f"{path}: expected an object with videos, categories and annotations, found a {type(data).__name__}"
        )
    texts: set[str] = set()
    videos: dict[VideoId, Video] = {}
    for video in _entries(path, data, "videos", texts):
        if "length" not in video.entry and not isinstance(video.field("file_names"), list):
            raise video.error(f"field 'file_names' is {video.entry['file_names']!r}, expected a list")
        length = video.integer("length") if "length" in video.entry else len(video.entry["file_names"])
        video_id = as_id(video.field("id"))
        if video_id is None:
            raise video.error(f"field 'id' is {video.entry['id']!r}, expected a whole number or text")
        if find_id(video_id, videos) is not None:
            raise video.error(f"field 'id' is {video_id!r}, which another video has")
        height, width = video.integer("height"), video.integer("width")
        if min(height, width) < 1:
            raise video.error(f"height and width are {height} and {width}, expected pixels from 1 on")
        videos[video_id] = Video(height, width, length)
    categories: dict[int, str] = {}
    for category in _entries(path, data, "categories", texts):
        category_id = category.integer("id")
        if category_id in categories:
            raise category.error(f"field 'id' is {category_id}, which another category has")
        categories[category_id] = str(category.entry.get("name", category_id))
    if data.get("annotations") is None:
        _say_texts(path, texts)
        return GroundTruth(videos, categories, None)
    tracks = _read_annotations(path, data, videos, categories, texts)
    _say_texts(path, texts)
    return GroundTruth(videos, categories, tracks)


def _read_annotations(
    path: str | os.PathLike[str],
    data: dict[str, Any],
    videos: dict[VideoId, Video],
    categories: dict[int, str],
    texts: set[str],
) -> list[Track]:
    tracks: list[dict[str, Any]] = []
    readers: list[_Reader] = []
    unknown = 0
    ids: dict[int | str, _Reader] = {}
    for annotation in _entries(path, data, "annotations", texts):
        video_id, category_id = annotation.key("video_id", videos), annotation.key("category_id", categories)
        if video_id not in videos or category_id not in categories:
            unknown += 1
            continue
        annotation_id = annotation.entry.get("id")
        if isinstance(annotation_id, int | str) and ids.setdefault(annotation_id, annotation) is not annotation:
            raise annotation.error(f"field 'id' is {annotation_id!r}, which another annotation has")
        masks = annotation.masks(videos[video_id])
        tracks.append(
            {
                "video_id": video_id,
                "category_id": category_id,
                "masks": masks,
                "is_crowd": annotation.flag("iscrowd"),
                "area": annotation.area(),
            }
        )
        readers.append(annotation)
    if unknown:
        logger.warning("%s: left out %d annotations of videos or categories that it does not list", path, unknown)
    return _tracks(readers, tracks)


def read_results(path: str | os.PathLike[str], truth: GroundTruth) -> list[Track]:
    """Read results. Masks may be null or uncompressed; extra fields are allowed. Numbers may be text, with a warning.

    Raises:
        UserError: file, entry and field that are not as expected.
    """
    data = read_json_with_masks(path)
    if not isinstance(data, list):
        raise UserError(f"{path}: expected a list of tracks, found a {type(data).__name__}")
    tracks: list[dict[str, Any]] = []
    readers: list[_Reader] = []
    unknown: set[Any] = set()
    texts: set[str] = set()
    for index, entry in enumerate(data):
        result = _Reader(path, entry, f"entry {index}", texts)
        data[index] = None  # frees the entry, so that a large file is not in memory twice
        video_id, category_id = result.key("video_id", truth.videos), result.key("category_id", truth.categories)
        if video_id not in truth.videos:
            found = f"the ground truth has no video {_shorten(video_id)}"
            raise result.error(f"{found} (it has {len(truth.videos)} videos)")
        if category_id not in truth.categories:
            unknown.add(category_id)
            continue
        masks = result.masks(truth.videos[video_id])
        number = result.number("score")
        tracks.append({"video_id": video_id, "category_id": category_id, "masks": masks, "score": number})
        readers.append(result)
    _say_texts(path, texts)
    if unknown:
        logger.warning(
            "%s: left out tracks of categories that the ground truth does not list: %s", path, sorted(unknown, key=str)
        )
    without = truth.videos.keys() - {track["video_id"] for track in tracks}
    if without:
        found = f"{len(without)} of {len(truth.videos)} videos (such as {min(without, key=str)!r})"
        logger.warning("%s: no tracks in %s", path, found)
    return _tracks(readers, tracks)
