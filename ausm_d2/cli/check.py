# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Check data sets by reading them as training and evaluation do: ``python -m ausm_d2.data.check``."""

from __future__ import annotations

from collections.abc import Sequence

HELP = "check data sets: ausm check NAME... [--config-file FILE] [--preview DIR]"


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code: 1 if a data set has problems."""
    from ausm_d2.data.check import main

    return main(arguments, prog="ausm check")
