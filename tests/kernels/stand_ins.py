# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""In place of mamba_ssm 2.3 and causal_conv1d 1.7: their functions by what their documentation says of them, in their
layouts, which ask for what their CUDA kernels ask for. Frames are the last dimension.

Shape shorthand: N: sequences; T: frames; E: channels; S: states; K: width of the convolution.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.conv.mamba_ssm import MambaSsmConv
from ausm_d2.kernels.scan.mamba_ssm import MambaSsmScan


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> tuple[Tensor, Tensor] | Tensor:
    """u, delta, z (N, E, T); A (E, S); B, C (N, S, T). The last state has no gradient."""
    assert {each.dtype for each in (u, delta, B, C, z) if each is not None} == {u.dtype}
    assert {each.dtype for each in (A, D, delta_bias) if each is not None} == {torch.float32}
    assert u.shape == delta.shape and B.shape == C.shape == (len(u), A.shape[1], u.shape[2]) and len(A) == u.shape[1]
    dt = delta.float() if delta_bias is None else delta.float() + delta_bias[:, None]
    dt = F.softplus(dt) if delta_softplus else dt
    state, outputs = A.new_zeros(len(u), *A.shape), []
    for t in range(u.shape[2]):
        drive = (dt[:, :, t] * u[:, :, t].float())[:, :, None] * B[:, None, :, t].float()
        state = torch.exp(dt[:, :, t, None] * A) * state + drive
        outputs.append((state * C[:, None, :, t].float()).sum(-1))
    y = torch.stack(outputs, dim=2)
    y = y if D is None else y + u.float() * D[:, None]
    y = y if z is None else y * F.silu(z.float())
    return (y.to(u.dtype), state.detach()) if return_last_state else y.to(u.dtype)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """state (N, E, S), overwritten; x, dt, z (N, E); B, C (N, S). No gradients; D and dt_bias cannot be left out."""
    assert not torch.is_grad_enabled() and D is not None and dt_bias is not None
    step = dt.float() + dt_bias
    step = F.softplus(step) if dt_softplus else step
    drive = (step * x.float())[:, :, None] * B[:, None].float()
    state.copy_(state * torch.exp(step[:, :, None] * A) + drive)
    y = (state.float() * C[:, None].float()).sum(-1) + x.float() * D
    return (y if z is None else y * F.silu(z.float())).to(x.dtype)


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: None = None,
    activation: str | None = None,
) -> Tensor:
    """x (N, E, T), channels last in memory; weight (E, K), K from 2 to 4; initial_states (N, E, K - 1)."""
    channels, width = weight.shape
    assert 2 <= width <= 4 and channels % 8 == 0 and bias is not None and bias.dtype == weight.dtype
    assert x.stride(1) == 1 and x.stride(2) > 1 and not x.stride(0) % 8 and not x.stride(2) % 8
    inputs = F.pad(x, (width - 1, 0))
    if initial_states is not None:
        assert initial_states.shape == (len(x), channels, width - 1)
        assert initial_states.dtype == x.dtype and initial_states.stride(1) == 1
        inputs = torch.cat([initial_states, x], dim=2)
    y = F.conv1d(inputs.to(weight.dtype), weight[:, None], bias, groups=channels)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """x (N, E); conv_state (N, E, K or K - 1), overwritten. No gradients."""
    assert not torch.is_grad_enabled() and conv_state.dtype == x.dtype and 2 <= weight.shape[1] <= 4
    assert bias is not None and bias.dtype == weight.dtype
    inputs = torch.cat([conv_state, x[:, :, None]], dim=2)
    conv_state.copy_(inputs[:, :, 1:])
    y = (inputs[:, :, -weight.shape[1] :].to(weight.dtype) * weight).sum(-1) + bias
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages are there for this test, with kernels for the CPU."""
    functions = {
        "mamba_ssm.ops.selective_scan_interface": [selective_scan_fn],
        "mamba_ssm.ops.triton.selective_state_update": [selective_state_update],
        "causal_conv1d": [causal_conv1d_fn, causal_conv1d_update],
    }
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", *functions):
        module = ModuleType(name)
        module.__path__ = []
        for function in functions.get(name, ()):
            setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, name, module)
    for kernel in (MambaSsmScan, MambaSsmConv):
        monkeypatch.setattr(kernel, "devices", ("cpu",))
        monkeypatch.setattr(kernel, "unavailable", lambda self: None)
