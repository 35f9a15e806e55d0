# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Folders of images with masks (salient, camouflaged or cut-out objects), as one-frame videos.

``<masks>/<name>.png`` belongs to ``<images>/<name>.jpg``, pixel = object id; black and white masks hold one object.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from ausm_d2.data.catalog.base import IMAGE_TOPK, OBJECT_CLASSES, OBJECT_LABEL_SET, find_all, register
from ausm_d2.data.catalog.matching import picture_files
from ausm_d2.data.frames import ImageFiles
from ausm_d2.data.mask_sources import LabelPictures
from ausm_d2.data.problems import LeftOut, problem
from ausm_d2.data.video import DeferredRecord, VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.pictures import image_size


def register_masked_images(
    name: str, image_root: str, mask_root: str, label_set: str = OBJECT_LABEL_SET, exhaustive: bool = False
) -> None:
    """Register folders of images and masks of your own.

    Args:
        name: e.g. "salient_train".
        image_root, mask_root: absolute, or relative to the data root (DETECTRON2_DATASETS).
        label_set: has one class, of the same name, because masks carry no classes.
        exhaustive: every object is labelled. If not, unlabelled objects are not background, and clips are trained as
            prompted.
    """
    register(
        name,
        partial(find_all, name, {"image folder": [image_root], "mask folder": [mask_root]}),
        load_masked_images,
        classes=OBJECT_CLASSES if label_set == OBJECT_LABEL_SET else {1: label_set},
        evaluator_type="coco",
        task="image",
        label_set=label_set,
        exhaustive=exhaustive,
        topk=IMAGE_TOPK,
    )
    MetadataCatalog.get(name).set(unlisted=True)  # objects are known from the masks only


def load_masked_images(image_root: Path, mask_root: Path) -> list[VideoRecord]:
    """One-frame records of the images that have a mask of the same name; sizes are read on first use.

    Raises:
        UserError: if a mask has no image, or there are no masks.
    """
    left_out = LeftOut(str(image_root))
    images = _by_stem(picture_files(image_root))
    masks = _by_stem(picture_files(mask_root, (".png",)))
    if not masks:
        raise UserError(f"{mask_root}: no mask (.png) found")
    for stem, file in masks.items():
        if stem not in images:
            problem(f"{mask_root / file}: no image of this name in {image_root}")
    records: list[VideoRecord] = []
    for stem, file in images.items():
        if stem not in masks:
            left_out.unmatched("images without a mask")
            continue
        frames = ImageFiles(str(image_root), (file,))
        load = partial(_read_rest, frames, mask_root, masks[stem])
        records.append(DeferredRecord(load, video_id=stem, name=stem, frames=frames))
    left_out.warn()
    return records


def _by_stem(files: list[str] | None) -> dict[str, str]:
    return {os.path.splitext(file)[0]: file for file in files or ()}


def _read_rest(frames: ImageFiles, mask_root: Path, mask: str) -> dict[str, Any]:
    height, width = image_size(frames.path(0))
    return {"height": height, "width": width, "masks": LabelPictures(str(mask_root), (mask,), (height, width))}
