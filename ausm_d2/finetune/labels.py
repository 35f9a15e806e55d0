# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A user's labels for ``ausm train``: checked, reduced to the classes to learn, split into two parts."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ausm_d2.data.check import check_dataset
from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write

logger = logging.getLogger(__name__)

LABEL_SET = "own"  # of the user's classes
TRAIN, CLIPS, HELD = "own_train", "own_clips", "own_val"  # data sets: single frames, the same as clips, to score on
_SHOWN = 10  # problems that are listed


@dataclass(frozen=True)
class Part:
    """Labels to train on, or labels held out."""

    style: str  # key of DATASETS that reads them: "COCO_STYLE" or "YTVIS_STYLE"
    table: dict[str, Any]  # in COCO's form or that of YouTube-VIS
    root: Path  # folder of its pictures
    pictures: int
    objects: dict[str, int]  # by class; in YouTube-VIS's form, tracks

    def __str__(self) -> str:
        return f"{self.pictures} pictures ({', '.join(f'{name} {count}' for name, count in self.objects.items())})"


@dataclass(frozen=True)
class Labels:
    """The labels of both parts."""

    classes: list[str]  # in the order of their ids
    train: Part
    held: Part | None  # None: there is nothing to score on
    notes: list[str] = field(default_factory=list)  # what was left out, for the user

    def write(self, folder: Path) -> None:
        """Write ``train.json`` and ``val.json``."""
        for name, part in (("train", self.train), ("val", self.held)):
            if part is not None:
                with atomic_write(folder / f"{name}.json") as path:
                    path.write_text(json.dumps(part.table), encoding="utf-8")


def require_sound(
    data_set: str, where: str, further: Collection[str] = (), written_as: tuple[str, str] = ("", "")
) -> None:
    """Read every picture and mask of a registered data set; of several problems each is logged as a warning.

    Args:
        where: the user's input, for the message.
        further: problems found earlier.
        written_as: a temporary path that was read, and the user's path that replaces it in messages.

    Raises:
        UserError: there are problems.
    """
    found = [*further, *check_dataset(data_set).problems]
    problems = list(dict.fromkeys(text.replace(*written_as) if written_as[0] else text for text in found))
    if not problems:
        return
    if len(problems) == 1:
        named = any(path in problems[0] for path in where.split(", "))
        raise UserError(problems[0] if named else f"{where}: {problems[0]}")
    for text in problems[:_SHOWN]:
        logger.warning("%s", text)
    shown = "above" if len(problems) <= _SHOWN else f"the first {_SHOWN} of them above"
    raise UserError(f"{where}: {len(problems)} problems in the labels ({shown})")


def split(classes: Sequence[Collection[int]], share: float, seed: int) -> list[int]:
    """Choose the items to hold out, so that no class loses its last item for training.

    Args:
        classes: of each item.
        share: of the items to hold out, above 0 and below 1; at least one item, if one can be spared.

    Returns:
        Their indices, ascending.
    """
    order = list(range(len(classes)))
    random.Random(seed).shuffle(order)
    left = {each: sum(each in of_one for of_one in classes) for of_one in classes for each in of_one}
    held: list[int] = []
    wanted = max(1, round(share * len(classes)))
    # First one item of each class that can spare one, so that as many classes as possible are scored.
    seen: set[int] = set()
    for only_new in (True, False):
        for place in order:
            of_one = set(classes[place])
            if len(held) >= wanted or place in held or (only_new and of_one <= seen):
                continue
            if all(left[each] > 1 for each in of_one):
                held.append(place)
                seen |= of_one
                for each in of_one:
                    left[each] -= 1
    return sorted(held)
