# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Benchmarks of speed and memory: ``python -m tools.benchmark SUBJECT [--json OUT.json] [--plot OUT.png]``.

Each compares this project with a reference in one run. Results: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from ausm_d2.errors import UserError, cli
from ausm_d2.io import atomic_write
from tools.benchmarks import app, attention, data, eval, masks, measure, peers, quality, ssm, stream, train

SUBJECTS = {
    "ssm": ssm,
    "attention": attention,
    "train": train,
    "stream": stream,
    "peers": peers,
    "quality": quality,
    "masks": masks,
    "data": data,
    "eval": eval,
    "app": app,
}


def machine() -> dict[str, object]:
    """The machine that figures are measured on."""
    processor = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, module in SUBJECTS.items():
        about = (module.__doc__ or "").splitlines()[0]
        subject = subjects.add_parser(name, help=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        subject.add_argument("--json", type=Path, help="also write the figures to this file")
        if hasattr(module, "plot"):
            subject.add_argument("--plot", type=Path, help="also draw them, as a PNG")
        module.add_arguments(subject)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    plotting = getattr(args, "plot", None)
    # Fail before the measurement, not after it.
    if plotting:
        measure.matplotlib_figure()
        if plotting == args.json:
            raise UserError(f"--json and --plot: both are {plotting}")
    if hasattr(args, "device"):
        measure.device_of(args)
    # The JSON file is complete even if plotting fails.
    with _written(plotting) as plot_path:
        with _written(args.json) as json_path:
            host = machine()
            print(", ".join(f"{key}: {value}" for key, value in host.items()))
            try:
                figures = SUBJECTS[args.subject].run(args)
            except torch.OutOfMemoryError as error:
                raise UserError(f"the GPU's memory is too small: {str(error).splitlines()[0]}") from error
            if json_path:
                report = {"machine": host, "arguments": vars(args), args.subject: figures}
                json_path.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
        if plot_path:
            SUBJECTS[args.subject].plot(figures, plot_path)


def _written(path: Path | None) -> AbstractContextManager[Path | None]:
    return atomic_write(path) if path else nullcontext()


if __name__ == "__main__":
    cli(main)
