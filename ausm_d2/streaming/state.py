# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The state of a stream between two frames. Its size is independent of the number of frames and objects, and a step
overwrites its tensors in place.

Shape shorthand:
    H, W: frame size in pixels; H_in, W_in: the network's input size, before padding
    N_id: slots, as many as the pool has ID vectors (slots.py)
    D: channels
    h, w: feature size at stride 8 of the padded input; H4, W4: mask size at stride 4
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ausm_d2.modeling.network import AUSMNetwork, Memory
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.slots import Slots


@dataclass
class StreamState:
    """State of one stream. Memory, X_{t-1} and M_{t-1} are on the model's device, the slots on the CPU."""

    size: tuple[int, int]  # (H, W)
    input_size: tuple[int, int]  # (H_in, W_in)
    memory: Memory  # of the network: the Mamba states
    x_prev: Tensor  # (D, h, w): X_{t-1}; before the first frame X_0
    masks: Tensor  # bool (N_id, H4, W4): M_{t-1}; empty for free slots
    appearance: Tensor  # float32 (N_id, D): of found tracks, summed over frames with decay (gates.py); else undefined
    slots: Slots
    frame_index: int = -1  # of the latest frame; -1: before the first

    @classmethod
    def initial(
        cls,
        network: AUSMNetwork,
        size: tuple[int, int],
        input_size: tuple[int, int],
        *,
        num_classes: int,
        settings: VideoSettings,
    ) -> StreamState:
        """The state before the first frame.

        Args:
            size: (H, W).
            input_size: (H_in, W_in).
            num_classes: K.
            settings: the Sampler's seed, and the dtype of memory and X_{t-1}.
        """
        height, width = network.padded_size(*input_size)
        num_id, device, start = network.id_pool.num_id, network.device, network.x_start
        half = torch.bfloat16 if settings.state_dtype == torch.bfloat16 else None
        # Channels last, as the network reads it.
        x_prev = torch.zeros(height // 8, width // 8, len(start), dtype=half or start.dtype, device=device)
        return cls(
            size=size,
            input_size=input_size,
            memory=network.initial_memory((height, width), state_dtype=half),
            x_prev=x_prev.permute(2, 0, 1),
            masks=torch.zeros(num_id, height // 4, width // 4, dtype=torch.bool, device=device),
            appearance=torch.zeros(num_id, len(start), device=device),
            slots=Slots.empty(num_id, num_classes, seed=settings.seed),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        slots = {f"slots.{name}": each for name, each in vars(self.slots).items() if isinstance(each, Tensor)}
        own = {name: getattr(self, name) for name in ("x_prev", "masks", "appearance")}
        return {**self.memory.tensors(), **own, **slots}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for ``torch.save``. Tensors are not copied: the next step overwrites some of them."""
        return {
            "size": self.size,
            "input_size": self.input_size,
            "memory": self.memory.tensors(),
            "x_prev": self.x_prev,
            "masks": self.masks,
            "appearance": self.appearance,
            "slots": self.slots.state_dict(),
            "frame_index": self.frame_index,
        }

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Restore the values of :meth:`state_dict` in place; the stream then continues bit for bit.

        Raises:
            KeyError: if an entry is missing.
            ValueError: if a tensor has another shape or dtype.
        """
        pairs = {name: (getattr(self, name), values[name]) for name in ("x_prev", "masks", "appearance")}
        pairs |= {name: (own, values["memory"][name]) for name, own in self.memory.tensors().items()}
        for name, (own, new) in pairs.items():
            if own.shape != new.shape or own.dtype != new.dtype:
                raise ValueError(f"{name}: {new.dtype} {tuple(new.shape)}, expected {own.dtype} {tuple(own.shape)}")
        self.slots.load_state_dict(values["slots"])
        for own, new in pairs.values():
            own.copy_(new)
        self.frame_index = values["frame_index"]

    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(each.numel() * each.element_size() for each in self.tensors().values())
