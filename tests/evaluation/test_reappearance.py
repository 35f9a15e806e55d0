# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from ausm_d2.evaluation.reappearance import Reappearances, count_reappearances
from ausm_d2.masks.rle import Rle, encode


def track(text: str) -> list[Rle | None]:
    """A mask for each letter: A has 10 pixels, 1 to 9 that number of A's pixels, B other pixels; a dot is no mask."""
    masks: list[Rle | None] = []
    for letter in text:
        mask = np.zeros((20, 20), bool)
        if letter == "A":
            mask[:10, 0] = True
        elif letter == "B":
            mask[:10, 5] = True
        elif letter.isdigit():
            mask[: int(letter), 0] = True
        masks.append(encode(mask) if letter != "." else None)
    return masks


@pytest.mark.parametrize(
    ("truth", "tracks", "expected"),
    [
        ("AAA...AAA", ["AAA...AAA"], (1, 1, 1)),
        ("AAA..AAA", ["AAA..AAA"], (0, 0, 0)),  # hidden for two frames only
        ("...AAA...", ["...AAA..."], (0, 0, 0)),  # never hidden between visible frames
        ("AAA...AAA", ["AAA......", "......AAA"], (1, 1, 0)),  # back, but on a new track
        ("AAA...AAA", ["AAA...BBB", "BBB...AAA"], (1, 1, 0)),  # two tracks change places
        ("AAA...AAA", ["BBB...AAA"], (1, 0, 0)),  # nothing was on it before
        ("AAA...AAA", [], (1, 0, 0)),
        ("AAA...AAAA", ["AAA.....A."], (1, 1, 1)),  # in the third frame after
        ("AAA...AAAA", ["AAA......A"], (1, 1, 0)),  # too late
        ("AAA...AAA", ["555...555"], (1, 1, 1)),  # IoU 0.5
        ("AAA...AAA", ["444...AAA"], (1, 0, 0)),  # IoU 0.4
        ("AAA...AAA", ["AA5....4.", "6A6...AAA"], (1, 1, 0)),  # 25 of 30 against 22 of 30 before: the first is on it
        ("A...A...A", ["A...A...A"], (2, 2, 2)),  # each time counts
        ("AAA...AAA", ["AAAAAAAAA"], (1, 1, 1)),
    ],
)
def test_reappearances_of_worked_examples(truth: str, tracks: list[str], expected: tuple[int, int, int]) -> None:
    assert count_reappearances(track(truth), [track(text) for text in tracks]) == Reappearances(*expected)


def test_results_add_up() -> None:
    assert (Reappearances(2, 1, 1) + Reappearances(2, 2, 2)).results() == {
        "hidden": 4,
        "followed": 3,
        "back": 3,
        "back%": 75,
    }
    assert Reappearances().results() == {"hidden": 0, "followed": 0, "back": 0}
