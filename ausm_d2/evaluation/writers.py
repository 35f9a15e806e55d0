# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The command that writes and checks submissions.

``python -m ausm_d2.evaluation.writers check FILE --dataset NAME`` lists what a server would refuse, and
``... write RESULTS FILE --dataset NAME`` writes FILE from the results ``OUTPUT_DIR/inference/NAME/videos``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detectron2.data import MetadataCatalog

from ausm_d2.config import load_config
from ausm_d2.data.build import get_records
from ausm_d2.data.catalog import register_from_config
from ausm_d2.errors import cli
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.evaluation.submission.archive import FORMATS, check, write
from ausm_d2.evaluation.submission.base import DataSet

_SHOWN = 20  # problems printed; the others are counted


def main(arguments: Sequence[str] | None = None) -> int:
    """The commands of the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m ausm_d2.evaluation.writers", description="Submissions.")
    commands = parser.add_subparsers(dest="command", required=True)
    checks = commands.add_parser("check", help="say what a server would refuse in a submission")
    checks.add_argument("file", metavar="FILE", help="a zip, a folder or a JSON file")
    writes = commands.add_parser("write", help="make a submission of the results of an evaluation")
    writes.add_argument("results", metavar="RESULTS", help="OUTPUT_DIR/inference/NAME/videos")
    writes.add_argument("file", metavar="FILE", help="to be written: .zip, .json or a new folder")
    for command in (checks, writes):
        command.add_argument("--dataset", required=True, metavar="NAME", help="a registered data set")
        command.add_argument("--config-file", default="", help="for data sets of your own")
        command.add_argument("--format", choices=sorted(FORMATS), help="default: what the data set's server takes")
    options = parser.parse_args(arguments)
    if options.config_file:
        register_from_config(load_config(options.config_file))
    if options.command == "check":
        problems = check(options.file, options.dataset, options.format)
        print("\n".join(problems[:_SHOWN]) if problems else f"{options.file}: can be submitted for {options.dataset}")
        if len(problems) > _SHOWN:
            print(f"... and {len(problems) - _SHOWN} more")
        return 1 if problems else 0
    records = get_records(options.dataset)
    results = ResultFolder(options.results)
    results.require(records)
    form = FORMATS[options.format or MetadataCatalog.get(options.dataset).evaluator_type]
    write(options.file, form.members(DataSet.of(options.dataset, records), results))
    return 0


if __name__ == "__main__":
    cli(main)
