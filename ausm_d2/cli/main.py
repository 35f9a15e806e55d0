# PYTHON_ARGCOMPLETE_OK
# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""``ausm COMMAND ...``.

A command is a module of this package with ``HELP`` (one line) and ``run``, which returns the exit code. ``run`` gets
parsed options if the module has ``add_arguments(parser)``; otherwise it gets the raw arguments and parses them itself.
Slow imports are inside ``run``, so that ``ausm --help`` and shell completion are fast.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from contextlib import suppress

from ausm_d2.errors import cli

COMMANDS = ("track", "app", "train", "evaluate", "check", "export")  # modules of this package
"""The commands, in the order of the help."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="ausm",
        description="Find, follow and segment objects in videos with AUSM.",
        epilog="ausm COMMAND --help explains a command, with examples. Exit codes: 0 done, 1 an error (one line on "
        "standard error), 2 a mistake in the command line, 130 interrupted.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"ausm_d2.cli.{name}")
        parses = hasattr(module, "add_arguments")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=parses,
        )
        if parses:
            module.add_arguments(command)
        command.set_defaults(run=module.run, parses=parses)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = build_parser()
    with suppress(ImportError):  # extra [completion]
        import argcomplete

        argcomplete.autocomplete(parser)
    options, others = parser.parse_known_args(arguments)
    if options.parses and others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    code: int = options.run(options if options.parses else others)
    return code


def console() -> None:
    """The console script."""
    cli(main)


if __name__ == "__main__":
    console()
