# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The Mamba layer of the History Compressor: a selective state space model over time, independently at every
pixel.

Shape shorthand:
    BP: sequences, one for each of P pixels of each of B clips
    T: frames
    D: model width; E: inner width, ``expand * D``
    d_state, d_conv, dt_rank: as in mamba_ssm: state size, width of the convolution, rank of the step size

One call on a clip and one call per frame, passing the state on, compute the same function.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from ausm_d2.kernels.choice import KernelLayer
from ausm_d2.kernels.conv import causal_conv
from ausm_d2.kernels.linear import linear
from ausm_d2.kernels.scan import selective_scan


class SSMState(NamedTuple):
    """The recurrent state of a Mamba layer, laid out like mamba_ssm's inference cache."""

    conv: Tensor
    """(BP, E, d_conv): the last inputs of the convolution, latest last; in the dtype of the activations."""
    ssm: Tensor
    """(BP, E, d_state): the state of the recurrence, float32, or bfloat16 to save memory: the layer computes with a
    float32 copy of it."""


class Mamba(KernelLayer):
    """Mamba ("Mamba: Linear-Time Sequence Modeling with Selective State Spaces", Sec. 3.4), for many short sequences.

    Names, shapes and initial values of the parameters are those of ``mamba_ssm.Mamba``: its weights load unchanged.

    Args:
        d_model: D.
        d_state: state size.
        d_conv: width of the convolution.
        expand: E / D.
        dt_rank: rank of the step size; "auto": D / 16, rounded up.
        dt_min, dt_max: range of the initial step sizes, log-uniform.
        dt_init_floor: lower bound of the initial step sizes.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
    ) -> None:
        super().__init__()
        self.d_inner = expand * d_model
        self.d_state = d_state
        self.d_conv = d_conv
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).repeat(self.d_inner, 1).log())
        self.D = nn.Parameter(torch.ones(self.d_inner))

        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        log_dt = torch.rand(self.d_inner) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
        dt = log_dt.exp().clamp(min=dt_init_floor)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)  # last: the same seed gives mamba_ssm's values
        # mamba_ssm's flag for parameters without weight decay. The bias is the step size before softplus: decay would
        # pull it to softplus(0) = 0.69, seven times ``dt_max``.
        for parameter in (self.A_log, self.D, self.dt_proj.bias):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def init_state(
        self,
        n: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> SSMState:
        """The state before the first frame, zeros, for ``n`` sequences; ``dtype`` is that of the activations.
        ``state_dtype``: in which all of it is stored, instead of ``dtype`` and float32."""
        weight = self.in_proj.weight
        device = weight.device if device is None else device
        return SSMState(
            conv=torch.zeros(n, self.d_inner, self.d_conv, device=device, dtype=state_dtype or dtype or weight.dtype),
            ssm=torch.zeros(n, self.d_inner, self.d_state, device=device, dtype=state_dtype or torch.float32),
        )

    def forward(self, x: Tensor, state: SSMState | None = None, *, inplace: bool = False) -> tuple[Tensor, SSMState]:
        """Process the next T frames of every sequence. Differentiable through the state.

        Args:
            x: (BP, T, D).
            state: after the previous frame; None: start of the sequences, as :meth:`init_state`.
            inplace: overwrite ``state`` instead of returning a new one (without autograd only).

        Returns:
            (BP, T, D), and the state after the last frame.
        """
        u, z = linear(x, self.in_proj.weight, kernels=self.kernels).chunk(2, dim=-1)
        # Copies where the state is stored in another dtype.
        conv_state, ssm_state = (None, None) if state is None else (state.conv.to(u.dtype), state.ssm.float())
        weight, bias = self.conv1d.weight[:, 0], cast(Tensor, self.conv1d.bias)
        u, conv_state = causal_conv(u, weight, bias, conv_state, inplace=inplace, kernels=self.kernels)
        projected = linear(u, self.x_proj.weight, kernels=self.kernels)
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y, ssm_state = selective_scan(
            u,
            linear(dt, self.dt_proj.weight, kernels=self.kernels),
            -torch.exp(self.A_log.float()),
            B,
            C,
            self.D.float(),
            z,
            self.dt_proj.bias.float(),
            delta_softplus=True,
            initial_state=ssm_state,
            inplace=inplace,
            kernels=self.kernels,
        )
        after = SSMState(conv_state, ssm_state)
        if state is not None and inplace:
            after = SSMState(*(old if old is new else old.copy_(new) for old, new in zip(state, after, strict=True)))
        elif state is not None:
            after = SSMState(*(new.to(old.dtype) for old, new in zip(state, after, strict=True)))
        return linear(y, self.out_proj.weight, kernels=self.kernels), after

    def step(self, x: Tensor, state: SSMState, *, inplace: bool) -> tuple[Tensor, SSMState]:
        """:meth:`forward` for one frame: (BP, D) -> (BP, D) and the state after it."""
        y, state = self(x[:, None], state, inplace=inplace)
        return y[:, 0], state
