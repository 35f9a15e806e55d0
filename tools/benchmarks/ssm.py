# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Selective scan: time and memory of every kernel against the reference (a loop over frames), and time of a single step
against its memory traffic.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ausm_d2.kernels.choice import use_kernels
from ausm_d2.kernels.scan import SCAN, selective_scan
from tools.benchmarks import measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of activations")
    parser.add_argument("--sequences", type=measure.positive, nargs="+", default=[960, 4096], help="pixels")
    parser.add_argument("--frames", type=measure.positive, nargs="+", default=[4, 16], help="frames of a clip")
    parser.add_argument("--channels", type=measure.positive, default=512, help="inner channels")
    parser.add_argument("--state", type=measure.positive, default=16, help="state size")
    parser.add_argument("--repeats", type=measure.positive, default=5, help="measurements of each, alternating")
    measure.add_clock_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Two tables.

    scan: forward and backward from the zero state: median and quartiles of the time (ms), peak memory beyond the inputs
    (MB, in a new process), and the ratio of the reference's time and memory to them. step: one frame in place, for the
    largest N, and the ratio of its time to that of reading and writing the state once.
    """
    dtype, device = getattr(torch, args.dtype), measure.device_of(args)
    backends = _present(device, dtype)
    scan = []
    for n in args.sequences:
        for t in args.frames:
            size = (n, t, args.channels, args.state)
            # Measure memory before timing, which allocates memory in this process only.
            memory = {
                name: measure.in_new_process(_peak_memory, name, size, args.device, args.dtype) for name in backends
            }
            scans = {name: _scan(name, size, device, dtype) for name in backends}
            times = measure.interleaved(scans, args.repeats, device, cpu_time=args.cpu_time)
            for name in backends:
                median = statistics.median(times[name])
                scan.append(
                    {
                        "N": n,
                        "T": t,
                        "E": args.channels,
                        "S": args.state,
                        "backend": name,
                        **measure.spread(times[name]),
                        "speed_over_reference": statistics.median(times["reference"]) / median,
                        "peak_mb": memory[name] / 1e6,
                        "reference_memory_over_it": memory["reference"] / max(memory[name], 1),
                    }
                )
    size = (max(args.sequences), 1, args.channels, args.state)
    steps: dict[str, Callable[[], Any]] = {name: _step(name, size, device, dtype) for name in backends}
    state = torch.zeros(size[0], size[2], size[3], device=device)
    steps["state read and written"] = lambda: state.mul_(0.5)
    times = measure.interleaved(steps, 5 * args.repeats, device, cpu_time=args.cpu_time)
    floor = statistics.median(times["state read and written"])
    step = [
        {"N": size[0], "E": size[2], "S": size[3], "what": name, **measure.spread(values)}
        | {
            "over_floor": statistics.median(values) / floor,
            "gb_per_s": 2 * state.nbytes / statistics.median(values) / 1e9,
        }
        for name, values in times.items()
    ]
    measure.print_table(scan)
    measure.print_table(step)
    return {"scan": scan, "step": step}


def plot(figures: dict[str, Any], path: Path) -> None:
    """Plot time of the scan over number of frames, for the largest N."""
    most = max(row["N"] for row in figures["scan"])
    with measure.picture(path, "frames", f"seconds (N = {most})") as axes:
        for name in dict.fromkeys(row["backend"] for row in figures["scan"]):
            rows = [row for row in figures["scan"] if (row["backend"], row["N"]) == (name, most)]
            measure.draw(axes, name, [row["T"] for row in rows], rows)
        axes.set_yscale("log")


def _present(device: torch.device, dtype: torch.dtype) -> list[str]:
    names = []
    for kernel in SCAN.kernels:
        if device.type in kernel.devices and dtype != torch.float64:
            reason = kernel.unavailable()
            if reason is None:
                names.append(kernel.name)
            else:
                print(f"{kernel.name}: not measured, {reason}")
    return [*names, "reference"]


def _inputs(size: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    n, t, e, s = size

    def activation(channels: int) -> Tensor:
        return torch.randn(n, t, channels, device=device).to(dtype)

    return {
        "u": activation(e),
        "delta": activation(e) - 3,
        "A": -torch.arange(1.0, s + 1, device=device).repeat(e, 1),
        "B": activation(s),
        "C": activation(s),
        "D": torch.ones(e, device=device),
        "z": activation(e),
        "delta_bias": torch.zeros(e, device=device),
    }


def _scan(name: str, size: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    inputs = {key: value.requires_grad_() for key, value in _inputs(size, device, dtype).items()}
    gradient = torch.ones_like(inputs["u"])

    def forward_and_backward() -> None:
        with use_kernels(name):
            y = selective_scan(**inputs, delta_softplus=True)[0]
            torch.autograd.grad(y, list(inputs.values()), gradient)

    return forward_and_backward


def _step(name: str, size: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    inputs = _inputs(size, device, dtype)
    state = torch.zeros(size[0], size[2], size[3], device=device)

    @torch.no_grad()
    def step() -> None:
        with use_kernels(name):
            selective_scan(**inputs, delta_softplus=True, initial_state=state, inplace=True)

    return step


def _peak_memory(name: str, size: tuple[int, int, int, int], device_name: str, dtype_name: str) -> int:
    """Peak memory of one forward and backward pass in bytes, beyond its inputs."""
    device, dtype = torch.device(device_name), getattr(torch, dtype_name)
    _scan(name, (2, 2, 16, 4), device, dtype)()
    return measure.peak_memory(_scan(name, size, device, dtype), device)
