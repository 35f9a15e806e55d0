# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Types of arguments that several commands have."""

from __future__ import annotations

import argparse


def given_path(text: str) -> str:
    """A path, which may not be empty: an unset variable of the shell would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("empty, expected a path")
    return text
