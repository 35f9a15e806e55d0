# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Attention for inference on the CPU: this project's kernel against PyTorch's fused one."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.kernels.attention import ATTENTION, attend
from ausm_d2.kernels.attention.call import AttentionCall
from tools.benchmarks import measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokens", type=measure.positive, nargs="+", default=[256, 1024, 3600], help="queries, and keys"
    )
    parser.add_argument("--heads", type=measure.positive, default=4, help="of each token")
    parser.add_argument("--head-dim", type=measure.positive, default=64, help="width of a head")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=measure.positive, default=11, help="measurements of each, alternating")
    measure.add_clock_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Median and quartiles (ms) of one attention without a mask, and the ratio of PyTorch's time to it.

    Raises:
        UserError: if this machine has no kernel for such heads.
    """
    rows = []
    for name in args.dtype:
        for tokens in args.tokens:
            torch.manual_seed(0)
            shape = (1, tokens, args.heads, args.head_dim)
            q, k, v = (torch.randn(shape).to(getattr(torch, name)).transpose(1, 2) for _ in range(3))
            if not has_kernel(q, k, v):
                raise UserError(
                    f"--tokens {tokens} --head-dim {args.head_dim} --dtype {name}: here PyTorch's own is used; "
                    "expected 128 tokens or more (bfloat16: 64), a head of a multiple of the processor's vectors "
                    "(16 floats with AVX-512), and a C++ compiler"
                )
            kernels = {
                "attention.cpp": lambda q=q, k=k, v=v: attend(q, k, v),
                "PyTorch": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v),
            }
            with torch.no_grad():
                times = measure.interleaved(kernels, args.repeats, torch.device("cpu"), cpu_time=args.cpu_time)
            of_pytorch = statistics.median(times["PyTorch"])
            for kernel, seconds in times.items():
                row = {"dtype": name, "tokens": tokens, "kernel": kernel, **measure.spread(seconds)}
                rows.append({**row, "pytorch_over_it": of_pytorch / statistics.median(seconds)})
    measure.print_table(rows)
    return {"rows": rows}


@torch.no_grad()
def has_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether inference uses this project's kernel for these inputs."""
    call = AttentionCall(q, k, v, None)
    usable = [kernel for kernel in ATTENTION.kernels if kernel.automatic and call.device.type in kernel.devices]
    return any(kernel.unavailable() is None and kernel.fits(call) for kernel in usable)


def plot(figures: dict[str, Any], path: Path) -> None:
    """Plot time over number of tokens."""
    with measure.picture(path, "tokens", "seconds") as axes:
        for dtype, kernel in dict.fromkeys((row["dtype"], row["kernel"]) for row in figures["rows"]):
            rows = [row for row in figures["rows"] if (row["dtype"], row["kernel"]) == (dtype, kernel)]
            measure.draw(axes, f"{kernel}, {dtype}", [row["tokens"] for row in rows], rows)
        axes.set_ylim(bottom=0)
