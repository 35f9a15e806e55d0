# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Asynchronous copies between the CPU and the model's device."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to ``device``. From the CPU to CUDA: asynchronously, from pinned memory, without a device sync."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """An asynchronous copy of tensors to the CPU. More work can be queued on the device before :meth:`wait`."""

    def __init__(self, *tensors: Tensor) -> None:
        """
        Args:
            tensors: all on one device.
        """
        # Non-blocking on CUDA only: elsewhere there is no event to wait for.
        self._tensors = [tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in tensors]
        self._arrived: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Tensor]:
        """Wait for the copy and return the tensors on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors
