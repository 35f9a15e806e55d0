# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The long form is tests/faults/long_stream.py."""

from __future__ import annotations

import pytest

from tests.faults.long_stream import run


@pytest.mark.parametrize("prompted", [False, True])
def test_a_still_scene_stays_as_it_is(prompted: bool) -> None:
    drift = run(130, prompted=prompted)
    # Two cells of stride 4 at the edge of the smallest object, of nine, may change (docs/reliability.md).
    assert drift.least_overlap > 0.7 and drift.most_score < 0.06, drift
