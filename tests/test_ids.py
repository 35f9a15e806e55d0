# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from ausm_d2.ids import as_id, find_id


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, 7), (7.0, 7), ("7", "7"), ("a", "a"), (7.5, None), (True, None), (None, None), ([7], None),
     (float("nan"), None), (float("inf"), None), (1e300, int(1e300))],
)  # fmt: skip
def test_ids_are_integers_or_text(value: Any, expected: Any) -> None:
    assert as_id(value) == expected and type(as_id(value)) is type(expected)


@pytest.mark.parametrize(
    ("value", "known", "expected"),
    [(7.0, {7}, 7), ("7", {7}, 7), ("7.0", {7}, 7), (7, {"7"}, "7"), ("7", {"7", 7}, "7"), (8, {7}, None),
     ("nan", {7}, None), ("x", {7}, None), (True, {1}, None)],
)  # fmt: skip
def test_ids_are_found_in_the_form_they_are_known_in(value: Any, known: set, expected: Any) -> None:
    assert find_id(value, known) == expected and type(find_id(value, known)) is type(expected)
