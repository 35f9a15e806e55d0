# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The long form is tests/faults/fuzz.py."""

from __future__ import annotations

import os

import pytest

from tests.faults.fuzz import KINDS, fuzz

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_files_that_were_damaged_are_read_or_refused(kind: str) -> None:
    tried, found = fuzz(kind, 40)
    assert tried == 40 and found == []
