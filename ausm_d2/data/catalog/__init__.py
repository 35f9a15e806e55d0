# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The registered data sets, one module per benchmark family. Importing registers names and reads no file."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode

from ausm_d2.data.catalog import synthvis as synthvis
from ausm_d2.data.catalog.coco import register_coco, register_coco_style
from ausm_d2.data.catalog.images import register_masked_images
from ausm_d2.data.catalog.sav import register_sav
from ausm_d2.data.catalog.vos import register_davis_style, register_vos
from ausm_d2.data.catalog.ytvis import register_ytvis, register_ytvis_style
from ausm_d2.errors import UserError

__all__ = [
    "register_coco_style",
    "register_davis_style",
    "register_from_config",
    "register_masked_images",
    "register_ytvis_style",
]

_own: dict[str, tuple[str | bool, ...]] = {}  # data sets registered from configs, by name

# By key of DATASETS: the function that registers an entry, and the fields of an entry.
_STYLES: dict[str, tuple[Callable[..., None], str]] = {
    "YTVIS_STYLE": (register_ytvis_style, "name, annotation file, image folder [, label set]"),
    "DAVIS_STYLE": (register_davis_style, "name, image folder, mask folder [, video list]"),
    "COCO_STYLE": (register_coco_style, "name, annotation file, image folder [, label set [, exhaustive]]"),
    "MASKED_IMAGES": (register_masked_images, "name, image folder, mask folder [, label set [, exhaustive]]"),
}


def register_from_config(cfg: CfgNode) -> None:
    """Register the user's own data sets: all entries of the ``DATASETS`` keys above.

    Calling it again with the same entries does nothing.

    Raises:
        UserError: if an entry is malformed, or two entries have the same name.
    """
    seen: dict[str, tuple[object, ...]] = {}
    for key, (register, fields) in _STYLES.items():
        most = fields.count(",") + 1
        for entry in cfg.DATASETS[key]:
            if not _is_entry(entry, most):
                raise UserError(f"DATASETS.{key}: {entry!r} found; a list of {fields} expected")
            if seen.setdefault(entry[0], (key, *entry)) != (key, *entry):
                raise UserError(f"DATASETS.{key}: {entry[0]!r} is the name of another entry too ({seen[entry[0]]})")
            if _own.get(entry[0]) != (key, *entry):
                register(*entry)
                _own[entry[0]] = (key, *entry)


def _is_entry(entry: object, most: int) -> bool:
    """Whether an entry has three to ``most`` fields: strings, and as the fifth a boolean (labels are exhaustive)."""
    if not isinstance(entry, list | tuple) or not 3 <= len(entry) <= most:
        return False
    return all(isinstance(text, str) for text in entry[:4]) and all(isinstance(flag, bool) for flag in entry[4:])


register_ytvis()
register_vos()
register_sav()
register_coco()
