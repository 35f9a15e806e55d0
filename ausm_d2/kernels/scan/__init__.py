# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The two recurrent operations of Mamba over many short sequences, each behind one function that picks a backend.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size; K: width of the convolution.

Channels are the last dimension throughout, which is what the linear layers around these operations give and take:
nothing is transposed to (N, E, T).

Backends: ``cpu`` (C++, compiled on first use), ``triton`` (CUDA; not with AUSM_TRITON=0), ``mamba_ssm`` (CUDA, that
package's kernels where it is installed) and ``loop`` (plain PyTorch, always there). The first that can is taken; the
environment variable AUSM_SSM_BACKEND or :func:`use_backend` forces one.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.kernels.cpp import CompileError
from ausm_d2.kernels.scan.autograd import FusedBackend
from ausm_d2.kernels.scan.cpu import CpuBackend
from ausm_d2.kernels.scan.mamba_ssm import MambaSsmBackend
from ausm_d2.kernels.scan.reference import LoopBackend
from ausm_d2.kernels.scan.triton import TritonBackend

BACKENDS: dict[str, FusedBackend | LoopBackend] = {
    "cpu": CpuBackend(),
    "triton": TritonBackend(),
    "mamba_ssm": MambaSsmBackend(),
    "loop": LoopBackend(),
}
"""In the order of preference."""

_forced: str | None = os.environ.get("AUSM_SSM_BACKEND") or None


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force a backend by its name while the context lasts; None lets the best present one be chosen."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(f"the fused kernels of Mamba are not used, a slow loop is: {reason}", stacklevel=4)


def _backend(x: Tensor) -> FusedBackend | LoopBackend:
    if _forced is not None:
        if _forced not in BACKENDS:
            raise UserError(f"AUSM_SSM_BACKEND: found {_forced!r}, expected one of {', '.join(BACKENDS)}")
        if not BACKENDS[_forced].supports(x):
            raise UserError(f"AUSM_SSM_BACKEND: {_forced} has no kernel for {x.dtype} on {x.device.type}")
        return BACKENDS[_forced]
    for backend in BACKENDS.values():
        try:
            if backend.supports(x):
                return backend
        except CompileError as error:
            _warn(str(error))
    raise AssertionError("the loop supports everything")


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor | None = None, *, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution over time, then SiLU.

    Args:
        x: (N, T, E).
        weight: (E, K); its last column weighs the present frame.
        bias: (E,).
        initial: (N, E, K), the last K inputs before the first frame, the latest last; None means zeros.
        inplace: overwrite ``initial`` with the inputs of the last frames (outside autograd only).

    Returns:
        (N, T, E) in the dtype of ``x``, and (N, E, K), the last K inputs.
    """
    if inplace and torch.is_grad_enabled():
        raise RuntimeError("a state is overwritten outside autograd only: use torch.no_grad()")
    return _backend(x).causal_conv(x, weight, bias, initial, inplace)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    *,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = (C_t . h_t + D u_t) silu(z_t).

    Args:
        u, delta, z: (N, T, E). Without ``z`` there is no gate.
        A: (E, S), negative.
        B, C: (N, T, S).
        D, delta_bias: (E,); left out where None. The bias is added to ``delta``, before the softplus, if any.
        initial_state: (N, E, S); None means zeros.
        inplace: overwrite ``initial_state`` with the last state (outside autograd only).

    Returns:
        y (N, T, E) in the dtype of ``u``, and the state after the last frame, (N, E, S), float32 (float64 if ``u`` is).
    """
    if inplace and torch.is_grad_enabled():
        raise RuntimeError("a state is overwritten outside autograd only: use torch.no_grad()")
    return _backend(u).selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, inplace)
