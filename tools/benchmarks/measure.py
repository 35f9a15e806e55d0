# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Shared by the benchmarks of models and kernels: timing, memory, models from configs, plots."""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    add_clock_argument(parser)


def add_clock_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="seconds of the processor instead of the clock's, for a machine that others use (with OMP_NUM_THREADS=1)",
    )


def positive(text: str) -> int:
    """An argparse type: an integer, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}, expected 1 or more")
    return number


def not_negative(text: str) -> int:
    """An argparse type: an integer, 0 or more."""
    return 0 if int(text) == 0 else positive(text)


def by_name(config_files: list[str]) -> dict[str, str]:
    """Config files by the names shown in tables and plots.

    Raises:
        UserError: if two have the same name.
    """
    names = {Path(config).stem: config for config in config_files}
    if len(names) < len(config_files):
        raise UserError(f"--config-file {' '.join(config_files)}: two of them have the same file name")
    return names


def device_of(args: argparse.Namespace) -> torch.device:
    """
    Raises:
        UserError: if the device is neither cpu nor cuda, or CUDA is not available.
    """
    if args.device.split(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--device {args.device}: expected cpu or cuda")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU was found")
    return torch.device(args.device)


def interleaved(
    functions: dict[str, Callable[[], Any]],
    repeats: int,
    device: torch.device,
    *,
    cpu_time: bool = False,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of every call, interleaved, so that background load affects all of them equally."""
    clock = time.process_time if cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(-1 if warm_up else 0, repeats):
        for name, function in functions.items():
            synchronize(device)
            start = clock()
            function()
            synchronize(device)
            if repeat >= 0:
                times[name].append(clock() - start)
    return times


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, median, high = statistics.quantiles(seconds * (1 + (len(seconds) == 1)), n=4, method="inclusive")
    return {"ms": median * 1e3, "ms_q1": low * 1e3, "ms_q3": high * 1e3}


def in_new_process(function: Callable[..., int], *args: Any) -> int:
    """Call a function in a new process: in this one, memory freed by an earlier measurement would be reused.

    Raises:
        UserError: if the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool:
            raise UserError(
                "the process that measures memory was ended: by the system, for want of memory, or by a crash"
            ) from None


def peak_memory(function: Callable[[], Any], device: torch.device) -> int:
    """Peak memory of a call in bytes, beyond the memory in use before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # glibc: return freed memory, whose reuse would not be counted
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the high-water mark
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


def resident(field: str = "VmRSS") -> int:
    """Resident memory of this process in bytes (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows with the same keys as an aligned table."""
    texts = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    table = [list(rows[0]), *texts]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)), flush=True)


def matplotlib_figure() -> Any:
    """The matplotlib class for plots.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install -e '.[demo]'") from None
    return Figure


@contextmanager
def picture(path: Path, xlabel: str, ylabel: str) -> Iterator[Any]:
    """A context with axes to draw on; writes the PNG at its end."""
    figure = matplotlib_figure()(figsize=(7.5, 3.4), dpi=130, layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    yield axes
    if axes.get_xscale() == "linear":
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(y=0.1)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def draw(axes: Any, label: str, x: list[int], rows: list[dict[str, float]], **style: Any) -> None:
    """Plot a line of medians (s) with the interquartile range."""
    axes.plot(x, [row["ms"] / 1e3 for row in rows], marker="o", markersize=4, label=label, **style)
    axes.fill_between(x, [row["ms_q1"] / 1e3 for row in rows], [row["ms_q3"] / 1e3 for row in rows], alpha=0.15)
