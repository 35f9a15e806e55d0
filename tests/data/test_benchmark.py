# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse

from tools.benchmarks import data


def test_loader_benchmark_measures_every_step() -> None:
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    figures = data.run(parser.parse_args(["--clips", "1", "--frames", "2", "--short-side", "48"]))
    assert figures["decoding alone"]["times_decoding"] == 1.0
    for name in ("plain", "full", "without colour", "full, without masks"):
        assert figures[name]["frames_per_second"] > 0 and figures[name]["ms_per_frame"] > 0
