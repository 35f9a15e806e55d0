# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The selective scan in plain PyTorch: any device, any dtype, gradients by autograd. The oracle in tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.autocast import outside_autocast
from ausm_d2.kernels.scan.call import ScanCall


def scan(call: ScanCall) -> tuple[Tensor, Tensor]:
    """See :func:`ausm_d2.kernels.scan.selective_scan`."""
    compute = torch.promote_types(call.u.dtype, torch.float32)
    u, delta, A, B, C = (tensor.to(compute) for tensor in call[:5])
    if call.delta_bias is not None:
        delta = delta + call.delta_bias.to(compute)
    if call.delta_softplus:
        delta = F.softplus(delta)
    state = u.new_zeros(len(u), *A.shape) if call.initial is None else call.initial.to(compute)
    outputs = []
    with outside_autocast(u):  # autocast would multiply in half precision
        for t in range(u.shape[1]):
            decay = torch.exp(delta[:, t, :, None] * A)
            state = decay * state + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
            outputs.append((state @ C[:, t, :, None]).squeeze(-1))
    y = torch.stack(outputs, dim=1)
    if call.D is not None:
        y = y + u * call.D.to(compute)
    if call.z is not None:
        y = y * F.silu(call.z.to(compute))
    if call.inplace and call.initial is not None:
        state = call.initial.copy_(state)
    return y.to(call.u.dtype), state
