# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""``MODEL.AUSM.LABEL_SETS``: a classifier per label set, with the number of its classes or with their names."""

from __future__ import annotations

from detectron2.config import CfgNode

from ausm_d2.errors import UserError


def label_sets(cfg: CfgNode) -> dict[str, int]:
    """Number of classes by label set.

    Raises:
        UserError: an entry that is none.
    """
    return {name: classes if isinstance(classes, int) else len(classes) for name, classes in _entries(cfg).items()}


def class_names(cfg: CfgNode) -> dict[str, list[str]]:
    """Names of the classes, of the label sets whose entry has them.

    Raises:
        UserError: an entry that is none.
    """
    return {name: list(classes) for name, classes in _entries(cfg).items() if not isinstance(classes, int)}


def _entries(cfg: CfgNode) -> dict[str, int | list[str]]:
    given = cfg.MODEL.AUSM.LABEL_SETS
    entries = [entry for entry in given if _is_label_set(entry)]
    if not entries or len(entries) != len(given) or len(dict(entries)) != len(entries):
        raise UserError(
            f"MODEL.AUSM.LABEL_SETS: {given}, expected [[name, number of classes or list of their names], ...], each "
            "name once"
        )
    return dict(entries)


def _is_label_set(entry: object) -> bool:
    if not isinstance(entry, list | tuple) or len(entry) != 2:
        return False
    name, classes = entry
    if isinstance(classes, list | tuple):
        named = all(isinstance(each, str) and each for each in classes)
        return isinstance(name, str) and named and 0 < len(set(classes)) == len(classes)
    return isinstance(name, str) and isinstance(classes, int) and not isinstance(classes, bool) and classes > 0
