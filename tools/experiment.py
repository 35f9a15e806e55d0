# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The paper's experiments, and some it argues without: ``python -m tools.experiment {repeat,clip-length,...}``.

Each writes ``table.md``, ``table.json`` and ``plot.png`` to ``--output``. (Table 2 is tools.sweep_threshold.)
Measured beside the paper's numbers: docs/experiments.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ausm_d2.errors import cli
from tools.experiments import repeat, rules, variants
from tools.experiments.setup import add_common_arguments, settings_of

EXPERIMENTS = {
    "repeat": (repeat.run, repeat.add_arguments),
    "clip-length": (variants.clip_length, variants.add_clip_length_arguments),
    "marker": (variants.marker, variants.add_arguments),
    "noise": (variants.noise, variants.add_arguments),
    "start": (variants.start, variants.add_start_arguments),
    "rules": (rules.run, rules.add_arguments),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    experiments = parser.add_subparsers(dest="experiment", required=True)
    for name, (run, add_arguments) in EXPERIMENTS.items():
        experiment = experiments.add_parser(name, help=(run.__doc__ or "").splitlines()[0].replace("%", "%%"))
        add_common_arguments(experiment)
        add_arguments(experiment)
    args = parser.parse_args()
    report = EXPERIMENTS[args.experiment][0](args)
    report.write(Path(args.output), settings_of(args))
    print(report.markdown())


if __name__ == "__main__":
    cli(main)
