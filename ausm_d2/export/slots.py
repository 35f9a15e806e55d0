# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Assigns slots and ID vectors to objects, in NumPy: :mod:`ausm_d2.streaming.slots` for the driver of exported steps.

The Sampler draws the same ID vectors as PyTorch's for the same seed; a test compares both.

Shape shorthand:
    N_id: slots; Q: N_id + N_det
    K: classes
    R, S: masks
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ausm_d2.errors import UserError

FREE = -1  # in Slots.ids: the slot is not in use


@dataclass
class Slots:
    """The state of all slots."""

    ids: np.ndarray  # int64 (N_id): index of the slot's ID vector in the pool B, or FREE
    track_ids: np.ndarray  # int64 (N_id): undefined for free slots
    prompted: np.ndarray  # bool (N_id)
    last_seen: np.ndarray  # int64 (N_id): last frame with a non-empty mask
    class_sums: np.ndarray  # float64 (N_id, K)
    predicted: np.ndarray  # int64 (N_id): number of summed frames
    random: np.random.RandomState  # Mersenne Twister, seeded as PyTorch seeds it
    next_track_id: int = 1

    @classmethod
    def empty(cls, num_id: int, num_classes: int, seed: int) -> Slots:
        """``num_id`` free slots."""
        return cls(
            ids=np.full(num_id, FREE, np.int64),
            track_ids=np.zeros(num_id, np.int64),
            prompted=np.zeros(num_id, bool),
            last_seen=np.zeros(num_id, np.int64),
            class_sums=np.zeros((num_id, num_classes)),
            predicted=np.zeros(num_id, np.int64),
            random=np.random.RandomState(seed & 0xFFFFFFFF),
        )

    @property
    def in_use(self) -> np.ndarray:
        """bool (N_id): rows of A."""
        return self.ids != FREE

    def followed(self) -> list[int]:
        """Track ids of all tracked objects, in slot order."""
        return self.track_ids[self.in_use].tolist()

    def update(self, scores: np.ndarray, visible: np.ndarray, frame_index: int, rule: str) -> None:
        """Record the predictions of a frame for all slots: scores float64 (N_id, K), visible bool (N_id)."""
        self.last_seen[self.in_use & visible] = frame_index
        if rule == "max":
            self.class_sums = np.maximum(self.class_sums, scores)
            self.predicted[:] = 1
        elif rule == "visible":
            self.class_sums += scores * visible[:, None]
            self.predicted += visible
        else:
            self.class_sums += scores
            self.predicted += 1

    def reserve(self, object_ids: Iterable[int], frame_index: int) -> dict[int, int]:
        """Choose a slot for every prompted object: its own, a free one, or that of a detected track.

        Raises:
            UserError: if there are not enough slots.
        """
        object_ids = list(object_ids)
        at = {track_id: i for i, track_id in enumerate(self.track_ids.tolist()) if self.ids[i] != FREE}
        known = {each: at[each] for each in object_ids if each in at}
        taken = set(known.values())
        room = [*np.flatnonzero(~self.in_use), *self._hidden(frame_index), *self._in_sight(frame_index)]
        room = [int(slot) for slot in room if slot not in taken]
        wanted = [each for each in object_ids if each not in known]
        if len(wanted) > len(room):
            raise UserError(
                f"{len(wanted)} new objects do not fit: {len(room)} of {len(self.ids)} ID vectors are not held by "
                "prompted objects. VideoPredictor takes any number"
            )
        new = dict(zip(wanted, room, strict=False))
        return {each: known.get(each, new.get(each, FREE)) for each in object_ids}

    def give(self, reserved: Mapping[int, int], frame_index: int) -> None:
        """Prompted objects occupy the slots from :meth:`reserve`."""
        for object_id, slot in reserved.items():
            if self.ids[slot] != FREE and self.track_ids[slot] == object_id:
                self.prompted[slot] = True
                self.last_seen[slot] = frame_index
            else:
                self._occupy(slot, object_id, prompted=True, frame_index=frame_index)
            self.next_track_id = max(self.next_track_id, object_id + 1)

    def allocate(
        self, rows: Iterable[int], scores: np.ndarray, frame_index: int, reserved: Collection[int]
    ) -> dict[int, int]:
        """Detections (rows of Q, most confident first) become tracks, while there are slots: rows of Q by slot."""
        taken: dict[int, int] = {}
        for row in rows:
            room = [*np.flatnonzero(~self.in_use), *self._hidden(frame_index)]
            slot = next((int(each) for each in room if each not in reserved), None)
            if slot is None:
                break
            self._occupy(slot, self.next_track_id, prompted=False, frame_index=frame_index)
            self.next_track_id += 1
            self.class_sums[slot] = scores[row]
            self.predicted[slot] = 1
            taken[slot] = int(row)
        return taken

    def remove(self, track_id: int) -> int:
        """Stop tracking an object; returns its slot.

        Raises:
            UserError: if it is not tracked.
        """
        slots = np.flatnonzero(self.in_use & (self.track_ids == track_id))
        if not len(slots):
            raise UserError(f"object {track_id} is not followed; followed now: {sorted(self.followed())}")
        self._release(int(slots[0]))
        return int(slots[0])

    def _hidden(self, frame_index: int) -> list[int]:
        """Slots of hidden detected tracks, longest hidden first."""
        hidden = np.flatnonzero(self.in_use & ~self.prompted & (self.last_seen < frame_index))
        return sorted(hidden.tolist(), key=lambda slot: int(self.last_seen[slot]))

    def _in_sight(self, frame_index: int) -> list[int]:
        """Slots of detected tracks in sight, the least confident first."""
        seen = np.flatnonzero(self.in_use & ~self.prompted & (self.last_seen >= frame_index))
        mean = self.class_sums.sum(axis=1) / np.maximum(self.predicted, 1)
        return sorted(seen.tolist(), key=lambda slot: float(mean[slot]))

    def _occupy(self, slot: int, track_id: int, *, prompted: bool, frame_index: int) -> None:
        if self.ids[slot] != FREE:
            self._release(slot)
        self.ids[slot] = self._draw()
        self.track_ids[slot] = track_id
        self.prompted[slot] = prompted
        self.last_seen[slot] = frame_index
        self.class_sums[slot] = 0
        self.predicted[slot] = 0

    def _release(self, slot: int) -> None:
        self.ids[slot] = FREE
        self.prompted[slot] = False

    def _draw(self) -> int:
        """Sampler(B_t, 1): the first entry of ``torch.randperm``, a Fisher-Yates shuffle."""
        free = np.setdiff1d(np.arange(len(self.ids)), self.ids[self.in_use])
        for i in range(len(free) - 1):
            other = i + int(self.random._bit_generator.random_raw()) % (len(free) - i)
            free[i], free[other] = free[other], free[i]
        return int(free[0])


def mask_iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoU of bool (R, H, W) with bool (S, H, W): (R, S)."""
    a, b = (each.reshape(len(each), int(np.prod(each.shape[1:]))).astype(np.float32) for each in (one, other))
    both = a @ b.T
    return both / np.maximum(a.sum(axis=1)[:, None] + b.sum(axis=1) - both, 1)
