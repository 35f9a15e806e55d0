# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What our own scan kernels (C++, Triton) share.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ausm_d2.kernels.fused import FusedKernel
from ausm_d2.kernels.layout import plain, rows
from ausm_d2.kernels.scan.call import ScanCall


class FusedScan(FusedKernel[ScanCall]):
    """Prepared calls have activations in one dtype with stride 1 over channels, everything else float32 and
    contiguous. The output is (N, T, E), the last state (N, E, S)."""

    tensors = 9

    def prepared(self, call: ScanCall, dtype: torch.dtype) -> ScanCall:
        activations = {name: rows(getattr(call, name), dtype) for name in ("u", "delta", "B", "C", "z")}
        others = {name: plain(getattr(call, name), torch.float32) for name in ("A", "D", "delta_bias", "initial")}
        return call._replace(**activations, **others)

    def new_state(self, call: ScanCall) -> Tensor:
        return call.A.new_empty(len(call.u), *call.A.shape)
