# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""All that a stream remembers from one frame to the next. Its size depends on neither the frames nor the objects seen,
and a step overwrites its tensors where they lie.

Shape shorthand:
    N_id: slots, as many as there are ID vectors; row i of A, of M and of every record below is slot i
    D: channels
    h, w: feature size at stride 8
    H4, W4: mask size at stride 4
    K: classes of the stream's label set
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ausm_d2.modeling.network import Memory

FREE = -1  # in StreamState.ids: the slot is not in use


@dataclass
class StreamState:
    """Memory of one stream. Tensors of the first group live with the model, the records of the slots on the CPU."""

    memory: Memory  # of the network: the Mamba caches
    x_prev: Tensor  # (D, h, w): X_{t-1}; before the first frame anything (X_0 is no memory)
    masks: Tensor  # bool (N_id, H4, W4): M_{t-1}

    ids: Tensor  # int64 (N_id): index into B of the vector a slot wears, or FREE
    track_ids: Tensor  # int64 (N_id): the id the user sees; meaningless for free slots
    prompted: Tensor  # bool (N_id): given by the user
    last_seen: Tensor  # int64 (N_id): last frame with a mask that is not empty
    class_sums: Tensor  # float64 (N_id, K): class probabilities, summed over the frames since the slot was taken
    predicted: Tensor  # int64 (N_id): how many frames that are; the one an object was given in is not one of them

    generator: torch.Generator  # of the Sampler
    frame_index: int = -1  # of the latest frame; -1 before the first one
    next_track_id: int = 1
    recycled: int = 0  # tracks that lost their slot to a newer one
    dropped: int = 0  # detections that found no slot

    @property
    def in_use(self) -> Tensor:
        """bool (N_id): rows of A."""
        return self.ids != FREE

    def release(self, slot: int) -> None:
        """Give the slot's ID vector back to the pool; its mask leaves the history."""
        self.ids[slot] = FREE
        self.masks[slot] = False
        self.prompted[slot] = False

    def occupy(self, slot: int, *, id_index: int, track_id: int, prompted: bool) -> None:
        """Take a free slot for an object that enters at the latest frame. Its mask is the caller's to write."""
        self.ids[slot] = id_index
        self.track_ids[slot] = track_id
        self.prompted[slot] = prompted
        self.last_seen[slot] = self.frame_index
        self.class_sums[slot] = 0
        self.predicted[slot] = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, for ``torch.save``. The next frame overwrites some of them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["memory"] = self.memory.tensors()
        values["generator"] = self.generator.get_state()
        return values

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Continue, bit for bit, where :meth:`state_dict` was taken; overwrites this state in place.

        Raises:
            KeyError: if an entry is missing.
        """
        memory = self.memory.tensors()
        for name, tensor in memory.items():
            tensor.copy_(values["memory"][name])
        for f in fields(self):
            if f.name == "generator":
                self.generator.set_state(values["generator"])
            elif f.name != "memory":
                own, new = getattr(self, f.name), values[f.name]
                if isinstance(own, Tensor):
                    own.copy_(new)
                else:
                    setattr(self, f.name, new)

    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = list(self.memory.tensors().values())
        tensors += [value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)
