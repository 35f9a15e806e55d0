# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The registered data sets, one module per benchmark family. Importing registers names and reads no file."""

from __future__ import annotations

from detectron2.config import CfgNode

from ausm_d2.data.catalog import synthvis as synthvis
from ausm_d2.data.catalog.coco import register_coco
from ausm_d2.data.catalog.sav import register_sav
from ausm_d2.data.catalog.vos import register_davis_style, register_vos
from ausm_d2.data.catalog.ytvis import register_ytvis, register_ytvis_style
from ausm_d2.errors import UserError

__all__ = ["register_davis_style", "register_from_config", "register_ytvis_style"]

_own: dict[str, tuple[str, ...]] = {}  # data sets registered from configs, by name


def register_from_config(cfg: CfgNode) -> None:
    """Register the user's own data sets: every entry of ``DATASETS.YTVIS_STYLE`` and ``DATASETS.DAVIS_STYLE``.

    Calling it again with the same entries does nothing.

    Raises:
        UserError: an entry that is not a list of texts of the right length.
    """
    for key, register, names in (
        ("YTVIS_STYLE", register_ytvis_style, "name, annotation file, image folder and (if you like) label set"),
        ("DAVIS_STYLE", register_davis_style, "name, image folder, mask folder and (if you like) video list"),
    ):
        for entry in cfg.DATASETS[key]:
            good = isinstance(entry, (list, tuple)) and len(entry) in (3, 4) and all(isinstance(x, str) for x in entry)
            if not good:
                raise UserError(f"DATASETS.{key}: {entry!r} found; a list of {names} expected")
            if _own.get(entry[0]) != (key, *entry):
                register(*entry)
                _own[entry[0]] = (key, *entry)


register_ytvis()
register_vos()
register_sav()
register_coco()
