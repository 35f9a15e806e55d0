# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The selective scan of Mamba, for many short sequences.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size.

Channels are the last dimension, as in the linear layers around the scan.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ausm_d2.kernels.choice import Operation
from ausm_d2.kernels.scan.call import ScanCall
from ausm_d2.kernels.scan.cpu import CpuScan
from ausm_d2.kernels.scan.mamba_ssm import MambaSsmScan
from ausm_d2.kernels.scan.reference import scan
from ausm_d2.kernels.scan.triton import TritonScan

SCAN: Operation[ScanCall] = Operation("selective scan", scan, [CpuScan(), MambaSsmScan(), TritonScan()])


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
    kernels: str = "auto",
) -> tuple[Tensor, Tensor]:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = (C_t . h_t + D u_t) silu(z_t).

    Args:
        u, delta, z: (N, T, E). ``z`` None: no gate.
        A: (E, S), negative.
        B, C: (N, T, S).
        D, delta_bias: (E,); None: no such term. The bias is added to ``delta`` before the softplus.
        delta_softplus: apply softplus to ``delta``.
        initial_state: (N, E, S); None: zeros.
        inplace: overwrite ``initial_state`` with the last state (without autograd only).
        kernels: one of ``choice.NAMES``.

    Returns:
        y (N, T, E) in the dtype of ``u``, and the state after the last frame, (N, E, S), float32 (float64 if ``u`` is).

    Raises:
        RuntimeError: if ``inplace`` is set while autograd records.
    """
    if inplace and torch.is_grad_enabled():
        raise RuntimeError("inplace=True needs torch.no_grad(): autograd needs the old state")
    call = ScanCall(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, inplace)
    y, last = SCAN(call, kernels)
    return y, last
