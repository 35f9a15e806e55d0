# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""One labelled video: a folder of frames and a folder of masks, pixel = object id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog

from ausm_d2.data.catalog.base import OBJECT_LABEL_SET, register
from ausm_d2.data.catalog.vos import load_video
from ausm_d2.data.frames import ImageFiles
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.finetune.labels import Labels, Part, require_sound
from ausm_d2.masks.rle import Rle, to_rle

_CHECKED = "own_checked"


def read_video(frames: Path, masks: Path, *, names: Mapping[int, str] | None = None, held_out: float = 0.2) -> Labels:
    """Read and check a labelled video. The last labelled frames are held out, since neighbours are nearly equal.

    They are held out as images: a single track of a single object would be either right or wrong.

    Args:
        frames, masks: the folders; ``<frame>.jpg`` goes with ``<frame>.png``. Frames without a mask file carry no
            labels.
        names: class of each object, by its id in the masks; None: all are of one class, "object".
        held_out: share of the labelled frames that is held out.

    Raises:
        UserError: the video cannot be used. Of several problems each is logged as a warning.
    """
    for option, folder in (("--video", frames), ("--masks", masks)):
        if not folder.is_dir():
            hint = "; ffmpeg -i FILE -qscale:v 2 FOLDER/%05d.jpg makes one of a video" if folder.is_file() else ""
            raise UserError(f"{option}: '{folder}', expected a folder of pictures{hint}")
    _check(frames, masks)
    record = load_video(frames.resolve(), masks.resolve())
    objects = _read_objects(record)
    if not objects:
        raise UserError(f"{masks}: no mask holds an object (pixel = object id, 0 = background)")
    classes = _classes(masks, sorted(objects), names)
    labelled = record.labelled_frames
    spared = min(round(held_out * len(labelled)) or 1, len(labelled) - 2)
    notes = [] if spared > 0 else ["too few labelled frames to hold some out, so nothing is scored"]
    without = record.length - len(labelled)
    notes += [f"{without} frames without a mask file are left out"] if without else []
    split = len(labelled) - max(spared, 0)
    video = _Video(record, objects, classes)
    train = video.clip(labelled[:split])
    lost = [name for name, count in train.objects.items() if not count]
    if lost:
        raise UserError(
            f"{masks}: {', '.join(lost)}: in none of the first {split} of {len(labelled)} labelled frames, which are "
            "trained on; --held-out takes a smaller share"
        )
    held = video.images(labelled[split:]) if spared > 0 else None
    return Labels(list(dict.fromkeys(classes.values())), train, held, notes)


def _check(frames: Path, masks: Path) -> None:
    register(
        _CHECKED,
        lambda: [frames.resolve(), masks.resolve()],
        lambda *folders: [load_video(*folders)],
        classes={1: "object"},
        evaluator_type="vos",
        task="vos",
        label_set=OBJECT_LABEL_SET,
        exhaustive=False,
    )
    try:
        require_sound(_CHECKED, f"{frames}, {masks}")
    finally:
        DatasetCatalog.remove(_CHECKED)


def _read_objects(record: VideoRecord) -> dict[int, list[Rle | None]]:
    """Masks of all frames, by object."""
    assert record.masks is not None
    objects: dict[int, list[Rle | None]] = {}
    for frame in record.labelled_frames:
        for object_id, mask in record.masks.read(frame).items():
            of_object = objects.setdefault(object_id, [None] * record.length)
            of_object[frame] = to_rle(mask, record.height, record.width)
    return objects


def _classes(masks: Path, objects: Sequence[int], names: Mapping[int, str] | None) -> dict[int, str]:
    """Class of each object."""
    if not names:
        return dict.fromkeys(objects, "object")
    if set(names) != set(objects):
        raise UserError(f"--names: for the objects {sorted(names)}; {masks} holds {list(objects)}")
    return {each: names[each] for each in objects}


@dataclass
class _Video:
    """A labelled video: the masks, by frame, and the class of each object."""

    record: VideoRecord
    objects: Mapping[int, list[Rle | None]]
    classes: Mapping[int, str]

    def clip(self, frames: Sequence[int]) -> Part:
        """Some frames as a video in YouTube-VIS's form."""
        video = {"id": 1, **self._size(), "length": len(frames), "file_names": [self._file(each) for each in frames]}
        shown = [(each, [masks[frame] for frame in frames]) for each, masks in self.objects.items()]
        masks = [(each, {"video_id": 1, "segmentations": masks}) for each, masks in shown if any(masks)]
        return self._part("YTVIS_STYLE", "videos", [video], masks, frames)

    def images(self, frames: Sequence[int]) -> Part:
        """Some frames as images in COCO's form."""
        images = [{"id": frame, **self._size(), "file_name": self._file(frame)} for frame in frames]
        masks = [
            (each, {"image_id": frame, "segmentation": masks[frame]})
            for each, masks in self.objects.items()
            for frame in frames
            if masks[frame] is not None
        ]
        return self._part("COCO_STYLE", "images", images, masks, frames)

    def _part(
        self,
        style: str,
        kind: str,
        pictures: list[dict[str, Any]],
        masks: Sequence[tuple[int, dict[str, Any]]],
        frames: Sequence[int],
    ) -> Part:
        """``masks``: fields of an annotation, with the id of its object."""
        ids = {name: i for i, name in enumerate(dict.fromkeys(self.classes.values()), start=1)}
        counts = dict.fromkeys(ids, 0)
        annotations = []
        for number, (object_id, fields) in enumerate(masks, start=1):
            name = self.classes[object_id]
            counts[name] += 1
            annotations.append({"id": number, "category_id": ids[name], "iscrowd": 0, **fields})
        categories = [{"id": each, "name": name} for name, each in ids.items()]
        table = {kind: pictures, "categories": categories, "annotations": annotations}
        return Part(style, table, Path(self._files().root), len(frames), counts)

    def _files(self) -> ImageFiles:
        assert isinstance(self.record.frames, ImageFiles)
        return self.record.frames

    def _file(self, frame: int) -> str:
        return self._files().files[frame]

    def _size(self) -> dict[str, int]:
        return {"height": self.record.height, "width": self.record.width}
