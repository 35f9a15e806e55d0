# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The plain PyTorch form of the two recurrent operations of Mamba: any device, any dtype, autograd's own gradients.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size; K: width of the convolution.

It is the meaning of the fused backends, and in float64 their oracle in the tests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class LoopBackend:
    def supports(self, x: Tensor) -> bool:
        """Everything."""
        return True

    def causal_conv(
        self, x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor | None, inplace: bool
    ) -> tuple[Tensor, Tensor]:
        """See :func:`ausm_d2.kernels.scan.causal_conv`."""
        frames, width = x.shape[1], weight.shape[1]
        before = x.new_zeros(len(x), x.shape[2], width) if initial is None else initial
        inputs = torch.cat([before.transpose(1, 2).to(x.dtype), x], dim=1)  # (N, K + T, E)
        # Frame t sees the inputs t + 1 .. t + K of the padded sequence, weight K - 1 being the present's.
        y = sum((inputs[:, k + 1 : k + 1 + frames] * weight[:, k].to(x.dtype) for k in range(width)), bias.to(x.dtype))
        last = inputs[:, frames:].transpose(1, 2)
        if inplace and initial is not None:
            last = initial.copy_(last)
        return F.silu(y), last

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
        """See :func:`ausm_d2.kernels.scan.selective_scan`."""
        compute = torch.promote_types(u.dtype, torch.float32)
        out_dtype = u.dtype
        u, delta, A, B, C = (tensor.to(compute) for tensor in (u, delta, A, B, C))
        if delta_bias is not None:
            delta = delta + delta_bias.to(compute)
        if delta_softplus:
            delta = F.softplus(delta)
        state = u.new_zeros(len(u), *A.shape) if initial_state is None else initial_state.to(compute)
        outputs = []
        for t in range(u.shape[1]):
            decay = torch.exp(delta[:, t, :, None] * A)
            state = decay * state + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
            outputs.append((state @ C[:, t, :, None]).squeeze(-1))
        y = torch.stack(outputs, dim=1)
        if D is not None:
            y = y + u * D.to(compute)
        if z is not None:
            y = y * F.silu(z.to(compute))
        if inplace and initial_state is not None:
            state = initial_state.copy_(state)
        return y.to(out_dtype), state
