# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Average precision of tracks, equal to the official YouTube-VIS evaluator; also OVIS's.

Also a command that needs only two files: ``python -m ausm_d2.evaluation.ytvis GT.json RESULTS.json --json OUT.json``.

Shape shorthand:
    T: frames of a video
    D, G: predicted and ground-truth tracks of one category in one video
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval
from pycocotools.cocoeval import Params as COCOParams

from ausm_d2.errors import UserError, cli
from ausm_d2.io import atomic_write, read_json
from ausm_d2.masks.rle import Rle, areas, intersections, measure, to_rle

if TYPE_CHECKING:
    from ausm_d2.data.video import VideoRecord

logger = logging.getLogger(__name__)

VideoId = int | str

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10")  # the first eight of COCOeval.stats


@dataclass
class Video:
    """What scoring needs to know of a video: masks are (height, width) pixels, tracks have ``length`` frames."""

    height: int
    width: int
    length: int


@dataclass
class Track:
    """One object through one video, annotated or predicted."""

    video_id: VideoId
    category_id: int
    masks: Sequence[Rle | None]  # (T,)
    score: float = 1.0
    is_crowd: bool = False
    # Pixels: the mean over the frames in which it has any, by which it counts as small, medium or large. ``None``: that
    # of the masks.
    area: float | None = None
    frame_areas: np.ndarray = None  # type: ignore[assignment]  # (T,), pixels; where they are known already

    def __post_init__(self) -> None:
        if self.frame_areas is None:
            self.frame_areas = areas(self.masks)
        if self.area is None:
            self.area = mean_area(self.frame_areas.tolist())


@dataclass
class GroundTruth:
    """The annotations of a data set."""

    videos: dict[VideoId, Video]
    categories: dict[int, str]  # name by id
    tracks: list[Track] | None  # None: without public labels


def mean_area(frame_areas: Iterable[float | None]) -> float:
    """Mean over the frames that have any area, as the official evaluator takes it; 0 where there is none."""
    visible = [area for area in frame_areas if area]
    return float(np.mean(visible)) if visible else 0.0


class TrackEval(COCOeval):
    """COCOeval, whose matching, accumulation and summary these are, on tracks in place of masks.

    As in the official evaluator the overlap of two tracks is the sum over frames of their intersection by the sum of
    their union, for crowds too, and areas are means over frames, small below 128^2 and large above 256^2 pixels.
    Videos are added one by one; their masks are not kept.
    """

    def __init__(self, category_ids: Iterable[int]) -> None:
        super().__init__(iouType="segm")
        self.params.catIds = sorted(category_ids)
        self.params.areaRng = [[0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10]]
        self._overlaps: dict[tuple[VideoId, int], np.ndarray] = {}
        self._truth: dict[tuple[VideoId, int], list[dict[str, Any]]] = {}
        self._results: dict[tuple[VideoId, int], list[dict[str, Any]]] = {}
        self._video_ids: list[VideoId] = []

    def add(self, video_id: VideoId, truth: Sequence[Track], results: Sequence[Track]) -> None:
        """Add a video, once. Tracks of categories that the ground truth does not list count for nothing."""
        self._video_ids.append(video_id)
        groups: dict[int, tuple[list[Track], list[Track]]] = {}
        for category in {track.category_id for track in (*truth, *results)}:
            # By falling score, and no more than are counted: the order in which COCOeval takes them.
            predicted = sorted((track for track in results if track.category_id == category), key=lambda t: -t.score)
            predicted = predicted[: self.params.maxDets[-1]]
            annotated = [track for track in truth if track.category_id == category]
            groups[category] = predicted, annotated
            self._results[video_id, category] = [_entry(track, place) for place, track in enumerate(predicted)]
            self._truth[video_id, category] = [_entry(track, place) for place, track in enumerate(annotated)]
            self._overlaps[video_id, category] = np.zeros((len(predicted), len(annotated)))
        both = [category for category, (predicted, annotated) in groups.items() if predicted and annotated]
        rows, columns = ([track for category in both for track in groups[category][side]] for side in (0, 1))
        wanted = sum(len(predicted) * len(annotated) for predicted, annotated in groups.values())
        # Overlaps between categories are not wanted, but a few are computed faster than the others asked for alone.
        if len(rows) * len(columns) - wanted > 10 * (len(both) - 1):
            for category in both:
                self._overlaps[video_id, category] = self.overlaps(*groups[category])
        elif both:
            overlaps, row, column = self.overlaps(rows, columns), 0, 0
            for category in both:
                below, right = row + len(groups[category][0]), column + len(groups[category][1])
                self._overlaps[video_id, category] = overlaps[row:below, column:right]
                row, column = below, right

    def overlaps(self, predicted: Sequence[Track], annotated: Sequence[Track]) -> np.ndarray:
        """How much tracks overlap: (D, G), 0 to 1. Below 0.5, where no threshold is, it may be too large."""
        return _overlaps(
            [track.masks for track in predicted],
            [track.frame_areas for track in predicted],
            [track.masks for track in annotated],
            [track.frame_areas for track in annotated],
            least=0.5,
        )

    def scores(self, class_names: Sequence[str]) -> dict[str, Any]:
        """AP, AP50, AP75, APs, APm, APl, AR1, AR10 and ``per_category`` (AP by name), in percent.

        ``None`` where there is no ground truth: no objects of that size or category.

        Args:
            class_names: in the order of the category ids.
        """
        # Equal scores of two videos are counted in the order of the videos' ids.
        self._video_ids.sort(key=lambda video_id: (isinstance(video_id, str), video_id))
        self.params.imgIds = list(range(len(self._video_ids)))
        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluate()
            self.accumulate()
            self.summarize()
        return summary_in_percent(self, class_names)

    def _prepare(self) -> None:
        place = {video_id: index for index, video_id in enumerate(self._video_ids)}
        self._gts = defaultdict(
            list, {(place[video_id], category): v for (video_id, category), v in self._truth.items()}
        )
        self._dts = defaultdict(
            list, {(place[video_id], category): v for (video_id, category), v in self._results.items()}
        )
        self.evalImgs: list[dict[str, Any] | None] = []
        self.eval: dict[str, Any] = {}

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray | list:
        """Overlaps (D, G), detections by falling score."""
        return self._overlaps.get((self._video_ids[imgId], catId), [])


class ImageEval(TrackEval):
    """COCO's own measure, of images as videos of one frame.

    As COCO has it, sizes are split at 32^2 and 96^2 pixels, of a mask that lies in a crowd all of it overlaps, and
    there are no results without a mask.
    """

    def __init__(self, category_ids: Iterable[int]) -> None:
        super().__init__(category_ids)
        self.params.areaRng = COCOParams().areaRng

    def add(self, video_id: VideoId, truth: Sequence[Track], results: Sequence[Track]) -> None:
        super().add(video_id, truth, [track for track in results if track.masks[0] is not None])

    def overlaps(self, predicted: Sequence[Track], annotated: Sequence[Track]) -> np.ndarray:
        if not predicted or not annotated:
            return np.zeros((len(predicted), len(annotated)))
        crowds = [int(track.is_crowd) for track in annotated]
        return coco_mask.iou([track.masks[0] for track in predicted], [track.masks[0] for track in annotated], crowds)


def _entry(track: Track, place: int) -> dict[str, Any]:
    """What COCOeval wants to know of a track. To it, id 0 means "not matched"."""
    crowd = int(track.is_crowd)
    return {"id": place + 1, "area": track.area, "score": track.score, "iscrowd": crowd, "ignore": crowd}


def track_overlaps(rows: Sequence[Sequence[Rle | None]], columns: Sequence[Sequence[Rle | None]]) -> np.ndarray:
    """Intersection over union of tracks, summed over frames: float64 (D, G) for D and G tracks of T frames.

    0 where both are empty throughout. The counts are whole numbers, so the result is exact but for one division.
    """
    return _overlaps(rows, [areas(masks) for masks in rows], columns, [areas(masks) for masks in columns])


def _overlaps(
    rows: Sequence[Sequence[Rle | None]],
    row_areas: Sequence[np.ndarray],
    columns: Sequence[Sequence[Rle | None]],
    column_areas: Sequence[np.ndarray],
    least: float = 0.0,
) -> np.ndarray:
    """``track_overlaps``, areas given. What is below ``least`` is known no further than that."""
    if not rows or not columns:
        return np.zeros((len(rows), len(columns)))
    of_rows, of_columns = np.stack(row_areas), np.stack(column_areas)  # (D, T), (G, T)
    smaller = np.minimum(of_rows[:, None], of_columns)  # (D, G, T)
    # Had the smaller mask lain within the larger in every frame: the most that a pair can reach. Frame by frame these
    # become what it does reach.
    shared = smaller.sum(axis=2)
    union = np.maximum(of_rows[:, None], of_columns).sum(axis=2)
    for frame in np.flatnonzero(smaller.any(axis=(0, 1))).tolist():
        undecided = (shared >= least * union) & (smaller[:, :, frame] > 0)
        here, there = np.flatnonzero(undecided.any(axis=1)), np.flatnonzero(undecided.any(axis=0))
        if here.size:
            pairs = np.ix_(here, there)
            found = intersections(
                [rows[row][frame] for row in here.tolist()],  # type: ignore[misc]  # (those with pixels are no None)
                of_rows[here, frame],
                [columns[column][frame] for column in there.tolist()],  # type: ignore[misc]
            )
            apart = smaller[:, :, frame][pairs] - found
            shared[pairs] -= apart
            union[pairs] += apart
    return shared / np.maximum(union, 1)


def score(truth: GroundTruth, results: Sequence[Track]) -> dict[str, Any]:
    """What ``TrackEval.scores`` returns, for all videos of the ground truth; all ``None`` where there are no labels."""
    if not truth.tracks:
        return {**dict.fromkeys(METRICS), "per_category": dict.fromkeys(truth.categories.values())}
    annotated, predicted = _by_video(truth.tracks), _by_video(results)
    evaluation = TrackEval(truth.categories)
    for video_id in truth.videos:
        evaluation.add(video_id, annotated[video_id], predicted[video_id])
    return evaluation.scores([truth.categories[category] for category in evaluation.params.catIds])


def _by_video(tracks: Iterable[Track]) -> dict[VideoId, list[Track]]:
    grouped: dict[VideoId, list[Track]] = defaultdict(list)
    for track in tracks:
        grouped[track.video_id].append(track)
    return grouped


def summary_in_percent(evaluation: COCOeval, class_names: Sequence[str]) -> dict[str, Any]:
    """What ``TrackEval.scores`` returns, of any COCOeval that has summarised."""
    percent = [None if value < 0 else 100 * float(value) for value in evaluation.stats]
    per_category: dict[str, float | None] = {}
    for index, name in enumerate(class_names):
        precision = evaluation.eval["precision"][:, :, index, 0, -1]  # all areas, most detections
        precision = precision[precision > -1]
        per_category[name] = 100 * float(precision.mean()) if precision.size else None
    return {**dict(zip(METRICS, percent, strict=False)), "per_category": per_category}


def true_tracks(record: VideoRecord) -> list[Track]:
    """The annotated tracks of a record, categories contiguous.

    A data set's own areas per frame are taken from ``record.extra["areas"]`` (by instance id) where it has them: the
    official evaluator sorts objects into sizes by those of the file, not by its masks.
    """
    masks = true_masks(record)
    own_areas = record.extra.get("areas", {})
    tracks = []
    for instance in record.instances:
        own = own_areas.get(instance.instance_id)
        tracks.append(
            Track(
                record.video_id,
                instance.category_id,
                masks[instance.instance_id],
                is_crowd=instance.is_crowd,
                area=None if own is None else mean_area(own),
            )
        )
    return tracks


def true_masks(record: VideoRecord) -> dict[int, list[Rle | None]]:
    """The annotated masks of a record, T for each instance id, ``None`` where it is not visible."""
    assert record.masks is not None
    masks: dict[int, list[Rle | None]] = {instance.instance_id: [None] * record.length for instance in record.instances}
    for frame in range(record.length):
        for instance_id, mask in record.masks.read(frame).items():
            frames = masks.setdefault(instance_id, [None] * record.length)
            frames[frame] = to_rle(mask, record.height, record.width)
    return masks


class _Reader:
    """Reads the fields of one entry of a list in a JSON file; its errors name file and entry."""

    def __init__(self, path: str | os.PathLike[str], entry: Any, where: str) -> None:
        self.where = f"{path}: {where}"
        if not isinstance(entry, dict):
            raise UserError(f"{self.where}: expected an object with fields, found {type(entry).__name__}")
        self.entry = entry
        if "video_id" in entry:
            self.where += f" (video_id {entry['video_id']!r})"

    def error(self, text: str) -> UserError:
        return UserError(f"{self.where}: {text}")

    def field(self, name: str) -> Any:
        if name not in self.entry:
            raise self.error(f"field {name!r} is missing")
        return self.entry[name]

    def integer(self, name: str) -> int:
        value = self.number(name)
        if not value.is_integer():
            raise self.error(f"field {name!r} is {self.entry[name]!r}, expected a whole number")
        return int(value)

    def number(self, name: str) -> float:
        value = self.field(name)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self.error(f"field {name!r} is {value!r}, expected a finite number")
        return number

    def key(self, name: str, known: dict) -> Any:
        """An id as ``known`` has it: numbers may have been written as text."""
        value = self.field(name)
        if not isinstance(value, (str, int, float)):
            raise self.error(f"field {name!r} is {value!r}, expected a number or text")
        if value not in known:
            with contextlib.suppress(ValueError, OverflowError):
                return int(float(value))
        return value

    def area(self) -> float | None:
        """Mean of the field ``areas``, pixels; ``None`` where there is none."""
        areas = self.entry.get("areas")
        if areas is None:
            return None
        with contextlib.suppress(TypeError, ValueError):
            area = mean_area(None if value is None else float(value) for value in areas)
            if math.isfinite(area):
                return area
        raise self.error(f"field 'areas' is {areas!r:.99}, expected a list of numbers or null")

    def masks(self, video: Video) -> list[Rle | None]:
        """Field ``segmentations``, (T,); ``_tracks`` is still to check them."""
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
    """The tracks that were read, their masks checked and measured all at once."""
    places = [
        (place, frame)
        for place, track in enumerate(fields)
        for frame, mask in enumerate(track["masks"])
        if mask is not None
    ]
    pixels, broken = measure([fields[place]["masks"][frame] for place, frame in places])
    if broken.any():
        place, frame = places[int(broken.argmax())]
        height, width = fields[place]["masks"][frame]["size"]
        raise readers[place].error(f"field 'segmentations'[{frame}]: counts do not describe {height}x{width} pixels")
    by_track = [np.zeros(len(track["masks"]), np.int64) for track in fields]
    for (place, frame), area in zip(places, pixels.tolist(), strict=True):
        by_track[place][frame] = area
    return [Track(**track, frame_areas=of_one) for track, of_one in zip(fields, by_track, strict=True)]


def _entries(path: str | os.PathLike[str], data: dict, name: str) -> list[_Reader]:
    value = data.get(name)
    if not isinstance(value, list):
        raise UserError(f"{path}: field {name!r} is {type(value).__name__}, expected a list")
    return [_Reader(path, entry, f"{name}[{index}]") for index, entry in enumerate(value)]


def read_truth(path: str | os.PathLike[str]) -> GroundTruth:
    """Read annotations in the YouTube-VIS form. ``areas`` may be missing, ``annotations`` null (no public labels).

    Raises:
        UserError: file, entry and field that are not as expected.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(
            f"{path}: expected an object with videos, categories and annotations, found a {type(data).__name__}"
        )
    videos: dict[VideoId, Video] = {}
    for video in _entries(path, data, "videos"):
        if "length" not in video.entry and not isinstance(video.field("file_names"), list):
            raise video.error(f"field 'file_names' is {video.entry['file_names']!r}, expected a list")
        length = video.integer("length") if "length" in video.entry else len(video.entry["file_names"])
        video_id = video.field("id")
        if not isinstance(video_id, (int, str)):
            raise video.error(f"field 'id' is {video_id!r}, expected a number or text")
        height, width = video.integer("height"), video.integer("width")
        if min(height, width) < 1:
            raise video.error(f"height and width are {height} and {width}, expected pixels from 1 on")
        videos[video_id] = Video(height, width, length)
    categories = {
        category.integer("id"): str(category.entry.get("name", category.entry["id"]))
        for category in _entries(path, data, "categories")
    }
    if data.get("annotations") is None:
        return GroundTruth(videos, categories, None)
    tracks: list[dict[str, Any]] = []
    readers: list[_Reader] = []
    unknown = 0
    for annotation in _entries(path, data, "annotations"):
        video_id, category_id = annotation.key("video_id", videos), annotation.key("category_id", categories)
        if video_id not in videos or category_id not in categories:
            unknown += 1
            continue
        masks = annotation.masks(videos[video_id])
        tracks.append(
            {
                "video_id": video_id,
                "category_id": category_id,
                "masks": masks,
                "is_crowd": bool(annotation.entry.get("iscrowd", 0)),
                "area": annotation.area(),
            }
        )
        readers.append(annotation)
    if unknown:
        logger.warning("%s: left out %d annotations of videos or categories that it does not list", path, unknown)
    return GroundTruth(videos, categories, _tracks(readers, tracks))


def read_results(path: str | os.PathLike[str], truth: GroundTruth) -> list[Track]:
    """Read tracks in the YouTube-VIS result form, whoever wrote them: numbers may be text, masks null or uncompressed,
    fields more than needed.

    Raises:
        UserError: file, entry and field that are not as expected.
    """
    data = read_json(path)
    if not isinstance(data, list):
        raise UserError(f"{path}: expected a list of tracks, found a {type(data).__name__}")
    tracks: list[dict[str, Any]] = []
    readers: list[_Reader] = []
    unknown: set[Any] = set()
    for index, entry in enumerate(data):
        result = _Reader(path, entry, f"entry {index}")
        data[index] = None  # a large file need not stay in memory twice
        video_id, category_id = result.key("video_id", truth.videos), result.key("category_id", truth.categories)
        if video_id not in truth.videos:
            raise result.error(f"the ground truth has no video {video_id!r} (it has {len(truth.videos)} videos)")
        if category_id not in truth.categories:
            unknown.add(category_id)
            continue
        masks = result.masks(truth.videos[video_id])
        number = result.number("score")
        tracks.append({"video_id": video_id, "category_id": category_id, "masks": masks, "score": number})
        readers.append(result)
    if unknown:
        logger.warning(
            "%s: left out tracks of categories that the ground truth does not list: %s", path, sorted(unknown, key=str)
        )
    return _tracks(readers, tracks)


def score_files(truth_path: str | os.PathLike[str], results_path: str | os.PathLike[str]) -> dict[str, Any]:
    """``score`` of two files.

    Raises:
        UserError: file, entry and field that are not as expected.
    """
    collecting = gc.isenabled()
    gc.disable()  # it would walk over millions of numbers again and again, none of them garbage
    try:
        truth = read_truth(truth_path)
        if truth.tracks is None:
            logger.warning("%s has no annotations, so there is nothing to score", truth_path)
        return score(truth, read_results(results_path, truth))
    finally:
        if collecting:
            gc.enable()


def table(scores: dict[str, Any]) -> str:
    """The scores as two lines of text, '-' where there is no ground truth."""
    cells = ["-" if scores[name] is None else f"{scores[name]:.2f}" for name in METRICS]
    width = max(map(len, (*METRICS, *cells)))
    return "\n".join("  ".join(text.rjust(width) for text in row) for row in (METRICS, cells))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command of the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m ausm_d2.evaluation.ytvis", description="AP of a YouTube-VIS or OVIS result file, in percent."
    )
    parser.add_argument("truth", metavar="GT.json", help="annotations in the YouTube-VIS form")
    parser.add_argument("results", metavar="RESULTS.json", help="a list of video_id, category_id, score, segmentations")
    parser.add_argument("--json", metavar="OUT.json", help="write the scores, AP per category too, to this file")
    options = parser.parse_args(arguments)
    scores = score_files(options.truth, options.results)
    if options.json:
        with atomic_write(options.json) as path:
            path.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    print(table(scores))


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    cli(main)
