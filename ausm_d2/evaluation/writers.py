# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Submissions: from the model's outputs to the files that servers take, and a check of such files before they go out.

Two commands: ``python -m ausm_d2.evaluation.writers check FILE --dataset NAME`` says what a server would refuse, and
``... write RESULTS FILE --dataset NAME`` makes FILE of an evaluation's results, ``OUTPUT_DIR/inference/NAME/videos``.

Shape shorthand:
    H, W: frame size in pixels
    T: frames of a video
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import json
import logging
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from pycocotools import mask as coco_mask
from tqdm import tqdm

from ausm_d2.data.build import get_records
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError, cli
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.io import atomic_write
from ausm_d2.masks.png import decode_picture, encode_mask_png
from ausm_d2.masks.rle import Rle, decode, first_invalid, to_rle

logger = logging.getLogger(__name__)

# A file of a submission: its path inside, and its content in pieces.
Member = tuple[str, Iterable[bytes]]


@dataclass
class DataSet:
    """What a submission has to fit."""

    name: str
    records: Sequence[VideoRecord]
    category_ids: dict[int, int]  # the data set's own, by contiguous id

    @classmethod
    def of(cls, name: str, records: Sequence[VideoRecord]) -> DataSet:
        """From the metadata of a registered data set. Where it has no category ids of its own they count from 1."""
        metadata = MetadataCatalog.get(name)
        own = metadata.get("thing_dataset_id_to_contiguous_id")
        if own is None:
            return cls(name, records, {index: index + 1 for index in range(len(metadata.thing_classes))})
        return cls(name, records, {contiguous: category for category, contiguous in own.items()})


class Files:
    """The files of a submission, in a zip, in a folder, or one on its own."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.zip: zipfile.ZipFile | None = None
        if self.path.is_dir():
            self.names = sorted(file.relative_to(path).as_posix() for file in self.path.rglob("*") if file.is_file())
        elif not self.path.is_file():
            raise UserError(f"{path}: no such file or folder")
        elif zipfile.is_zipfile(path):
            self.zip = zipfile.ZipFile(path)
            self.names = sorted(entry.filename for entry in self.zip.infolist() if not entry.is_dir())
        else:
            self.names = [self.path.name]

    def read(self, name: str) -> bytes:
        """The contents of a file.

        Raises:
            UserError: the zip is damaged or asks for a password.
        """
        if self.zip is not None:
            try:
                return self.zip.read(name)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                raise UserError(f"{self.path}: {name} in it cannot be read: {error}") from None
        return (self.path / name if self.path.is_dir() else self.path).read_bytes()


class Format:
    """A form of submission."""

    def members(self, data: DataSet, results: ResultFolder) -> Iterator[Member]:
        """The files that the results make."""
        raise NotImplementedError

    def problems(self, data: DataSet, files: Files) -> Iterator[str]:
        """What a server would refuse, or score in a way that is not meant; one line each."""
        raise NotImplementedError


class JSONFormat(Format):
    """A list of results in one file, at the root of a zip."""

    def __init__(
        self, file_name: str, entries: Callable[..., Iterator[dict[str, Any]]], check: Callable[..., str | None]
    ) -> None:
        """
        Args:
            file_name: with ``*`` for any text of one's own.
            entries: gives the entries of one video.
            check: says what is wrong with an entry.
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
            yield from (f"{name}: a file too many" for name in files.names if name not in names)
        if len(names) != 1 or "/" in names[0]:
            yield f"expected one {self.file_name} at its root"
            return
        try:
            entries = json.loads(files.read(names[0]))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
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
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        return f"field 'score': {score!r} found, a finite number expected"
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


class MaskTree(Format):
    """Palette PNGs, ``<video>/<frame>.png``: DAVIS and MOSE; below a top folder for YouTube-VOS."""

    def __init__(self, top: str = "") -> None:
        self.top = top

    def frames(self, record: VideoRecord) -> Sequence[int]:
        """The frames that are asked for: those that the data set lists, or all."""
        return record.extra.get("scored_frames", range(record.length))

    def expected(self, record: VideoRecord) -> Iterator[tuple[str, int, int | None]]:
        """(path inside, frame, object or ``None`` for all) of every picture of a video."""
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
        yield from (f"{name}: a file too many" for name in sorted(unexpected))


def _check_picture(content: bytes, record: VideoRecord, ids: np.ndarray | None) -> str | None:
    try:
        picture = decode_picture(io.BytesIO(content))
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
    """A folder of PNGs for each object, ``<video>/<object>/<frame>.png``, which may overlap: SA-V."""

    def expected(self, record: VideoRecord) -> Iterator[tuple[str, int, int | None]]:
        for object_id, prompt in sorted((record.prompt_frames or {}).items()):
            for frame in range(prompt, record.length):
                if record.labelled is None or record.labelled[frame]:
                    yield f"{record.name}/{object_id:03d}/{record.frames.names[frame]}.png", frame, object_id


class MOTText(Format):
    """MOTChallenge: ``<video>.txt``, a line for each box: frame, id, left, top, width, height, score, -1, -1, -1."""

    def members(self, data: DataSet, results: ResultFolder) -> Iterator[Member]:
        for record in data.records:
            yield f"{record.name}.txt", self._lines(record, results)

    def _lines(self, record: VideoRecord, results: ResultFolder) -> Iterator[bytes]:
        output = results.read(record)
        tracks = [(track["track_id"], track["score"], track["segmentations"]) for track in output.best_classes()]
        tracks += [(object_id, 1.0, masks) for object_id, masks in (output.objects or {}).items()]
        # Frames, pixels and ids count from 1; a user's ids are kept where they do.
        first = min((track_id for track_id, _, _ in tracks), default=1)
        for frame in range(record.length):
            for track_id, score, masks in tracks:
                if masks[frame] is not None:
                    left, top, width, height = coco_mask.toBbox(masks[frame])
                    box = f"{left + 1:g},{top + 1:g},{width:g},{height:g}"
                    yield f"{frame + 1},{track_id + (first < 1)},{box},{score:.6g},-1,-1,-1\n".encode()

    def problems(self, data: DataSet, files: Files) -> Iterator[str]:
        expected = {f"{record.name}.txt": record for record in data.records}
        yield from (f"{name}: a file too many" for name in files.names if name not in expected)
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


FORMATS: dict[str, Format] = {  # the first five by metadata evaluator_type
    "ytvis": JSONFormat("results.json", _vis_entries, _check_vis_entry),
    "coco": JSONFormat("detections_*_results.json", _coco_entries, _check_coco_entry),
    "vos": MaskTree(),
    "ytvos": MaskTree("Annotations/"),
    "sav": ObjectTree(),
    "mot": MOTText(),
}


def write(path: str | os.PathLike[str], members: Iterable[Member]) -> None:
    """Write the files of a submission as a zip, a single ``.json`` or else a folder, which is complete or not there."""
    target = Path(path)
    if target.suffix == ".zip":
        with atomic_write(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                with archive.open(name, "w", force_zip64=True) as file:
                    file.writelines(content)
    elif target.suffix == ".json":
        with atomic_write(target) as temporary, temporary.open("wb") as file:
            for _, content in members:
                file.writelines(content)
    else:
        if target.exists():
            raise UserError(f"{target}: exists already; expected a new folder, or a file name ending in .zip or .json")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary_folder:
            folder = Path(temporary_folder, "complete")
            for name, content in members:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("wb") as file:
                    file.writelines(content)
            folder.replace(target)


def write_submission(
    dataset_name: str, records: Sequence[VideoRecord], results: ResultFolder, output_dir: str | os.PathLike[str]
) -> None:
    """Write ``output_dir/submission.zip`` for a data set whose labels are not public, and say what to do with it."""
    path = Path(output_dir, "submission.zip")
    metadata = MetadataCatalog.get(dataset_name)
    write(path, FORMATS[metadata.evaluator_type].members(DataSet.of(dataset_name, records), results))
    server = f"the evaluation server that {metadata.homepage} names" if metadata.get("homepage") else "its server"
    logger.info("%s has no public labels, so nothing is scored here. Submit %s to %s.", dataset_name, path, server)


def check(path: str | os.PathLike[str], dataset_name: str, form: str | None = None) -> list[str]:
    """What a server would refuse in a submission for a data set; nothing, if it is as it should be.

    Args:
        form: key of ``FORMATS``; by default the one that the data set's server takes.

    Raises:
        UserError: no such file, no such data set.
    """
    records = get_records(dataset_name)
    kind = form or MetadataCatalog.get(dataset_name).evaluator_type
    return list(FORMATS[kind].problems(DataSet.of(dataset_name, records), Files(path)))


_SHOWN = 20  # problems; the rest is counted


def main(arguments: Sequence[str] | None = None) -> int:
    """The commands of the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m ausm_d2.evaluation.writers", description="Submissions.")
    commands = parser.add_subparsers(dest="command", required=True)
    checks = commands.add_parser("check", help="say what a server would refuse in a submission")
    checks.add_argument("file", metavar="FILE", help="a zip, a folder or a JSON file")
    writes = commands.add_parser("write", help="make a submission of the results of an evaluation")
    writes.add_argument("results", metavar="RESULTS", help="OUTPUT_DIR/inference/NAME/videos")
    writes.add_argument("file", metavar="FILE", help="to be written: .zip, .json or a new folder")
    for command in (checks, writes):
        command.add_argument("--dataset", required=True, metavar="NAME", help="a registered data set")
        command.add_argument("--format", choices=sorted(FORMATS), help="default: what the data set's server takes")
    options = parser.parse_args(arguments)
    if options.command == "check":
        problems = check(options.file, options.dataset, options.format)
        print("\n".join(problems[:_SHOWN]) if problems else f"{options.file}: can be submitted for {options.dataset}")
        if len(problems) > _SHOWN:
            print(f"... and {len(problems) - _SHOWN} more")
        return 1 if problems else 0
    records = get_records(options.dataset)
    results = ResultFolder(options.results)
    results.require(records)
    form = FORMATS[options.format or MetadataCatalog.get(options.dataset).evaluator_type]
    write(options.file, form.members(DataSet.of(options.dataset, records), results))
    return 0


if __name__ == "__main__":
    cli(main)
