# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Tensors between the CPU and the model's device; copies to and from CUDA are asynchronous."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on ``device``. From the CPU to CUDA it is an asynchronous copy from pinned memory, without a sync."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """An asynchronous copy of tensors to the CPU: the device can compute other things until :meth:`wait` is called."""

    def __init__(self, *tensors: Tensor) -> None:
        """
        Args:
            tensors: of one device.
        """
        # Other accelerators copy without waiting too, but have no event of CUDA's.
        self._tensors = [tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in tensors]
        self._arrived: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Tensor]:
        """The tensors, on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors
