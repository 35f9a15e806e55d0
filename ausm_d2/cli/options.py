# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Options shared by several commands. No slow imports."""

from __future__ import annotations

import argparse


def add_model_arguments(parser: argparse.ArgumentParser, *, device: bool = True) -> None:
    """``--config``, ``--weights``, ``--opts`` and, if ``device``, ``--device``."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--config",
        default="ausm_edge",
        metavar="NAME",
        help="ausm_edge, ausm_nano, a packaged config or a file (default: %(default)s)",
    )
    model.add_argument("--weights", metavar="FILE", help="instead of those that the config names")
    if device:
        model.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    model.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys to change")
