# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of the package mamba_ssm, where they can take our place.

Its scan works on (N, E, T), starts from the zero state and has no gradient through the last state; its single step is
in place. Everything else goes to our own kernels.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from ausm_d2.kernels.scan.triton import TritonBackend


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("selective_scan_cuda") is not None  # what `pip install mamba-ssm` builds on a GPU


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, last: Tensor) -> Tensor:
        return last.view_as(last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("mamba_ssm's kernels have no gradient through the last state: force another backend")


class MambaSsmBackend(TritonBackend):
    def supports(self, x: Tensor) -> bool:
        return x.device.type == "cuda" and _installed() and super().supports(x)

    def selective_scan(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        initial_state: Tensor | None,
        inplace: bool,
    ) -> tuple[Tensor, Tensor]:
        if initial_state is None:
            from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

            by_channel = (u.mT, delta.mT, A, B.mT, C.mT, D, None if z is None else z.mT, delta_bias, delta_softplus)
            y, last = selective_scan_fn(*by_channel, return_last_state=True)
            return y.mT, _NoGradient.apply(last)
        if inplace and u.shape[1] == 1 and not torch.is_grad_enabled():
            from mamba_ssm.ops.triton.selective_state_update import selective_state_update

            now = (u[:, 0], delta[:, 0], A, B[:, 0], C[:, 0], D, None if z is None else z[:, 0])
            y = selective_state_update(initial_state, *now, delta_bias, dt_softplus=delta_softplus)
            return y[:, None], initial_state
        return super().selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, inplace)
