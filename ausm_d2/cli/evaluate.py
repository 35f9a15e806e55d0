# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Score a model on the data sets of its config: ``train_net.py --eval-only``."""

from __future__ import annotations

from collections.abc import Sequence

HELP = "score a model on data sets: ausm evaluate --config-file FILE [KEY VALUE ...]"


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    from ausm_d2.launch import main

    main(["--eval-only", *arguments], prog="ausm evaluate")
    return 0
