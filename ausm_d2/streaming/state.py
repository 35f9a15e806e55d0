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

from ausm_d2.modeling.ssm import SSMState

FREE = -1  # in StreamState.ids: the slot is not in use


@dataclass
class StreamState:
    """Memory of one stream. Tensors of the first group live with the model, the records of the slots on the CPU."""

    ssm: list[SSMState]  # Mamba caches by compressor layer, h * w sequences
    x_prev: Tensor  # (D, h, w): X_{t-1}; before the first frame anything (X_0 is no memory)
    masks: Tensor  # bool (N_id, H4, W4): M_{t-1}
    vectors: Tensor | None  # (N_id, D): what the objects looked like when last seen (MODEL.AUSM.PROPAGATE: vectors)

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
        if self.vectors is not None:
            self.vectors[slot] = 0
        self.ids[slot] = id_index
        self.track_ids[slot] = track_id
        self.prompted[slot] = prompted
        self.last_seen[slot] = self.frame_index
        self.class_sums[slot] = 0
        self.predicted[slot] = 0

    def to(self, device: torch.device | str) -> StreamState:
        """The same state with the model's part on ``device``; as with ``Tensor.to``, what need not move is shared."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["ssm"] = [SSMState(*(each.to(device) for each in state)) for state in self.ssm]
        for name in ("x_prev", "masks", "vectors"):
            values[name] = values[name].to(device) if values[name] is not None else None
        return StreamState(**values)

    def detach(self) -> StreamState:
        """The same state, cut off from the graph that made it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["ssm"] = [SSMState(*(each.detach() for each in state)) for state in self.ssm]
        values["x_prev"] = self.x_prev.detach()
        values["vectors"] = self.vectors.detach() if self.vectors is not None else None
        return StreamState(**values)

    def reset(self) -> None:
        """Forget everything but the Sampler's position, in place; the next frame is a first one."""
        for state in self.ssm:
            for each in state:
                each.zero_()
        self.ids.fill_(FREE)
        for each in (self.masks, self.prompted):
            each.zero_()
        if self.vectors is not None:
            self.vectors.zero_()
        self.frame_index, self.next_track_id, self.recycled, self.dropped = -1, 1, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, for ``torch.save``. The next frame overwrites some of them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["ssm"] = [tuple(state) for state in self.ssm]
        values["generator"] = self.generator.get_state()
        return values

    @classmethod
    def from_state_dict(cls, values: dict[str, Any]) -> StreamState:
        """The state that :meth:`state_dict` was taken of; the stream continues bit for bit.

        Raises:
            KeyError: if an entry is missing.
        """
        values = {f.name: values[f.name] for f in fields(cls)}
        values["ssm"] = [SSMState(*state) for state in values["ssm"]]
        generator = torch.Generator()
        generator.set_state(values["generator"])
        values["generator"] = generator
        return cls(**values)

    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [each for state in self.ssm for each in state]
        tensors += [value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)
