# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Assigns slots and ID vectors to objects.

A stream has N_id slots, as many as the pool has ID vectors. Slot i is row i of A, of M and of every tensor below. An
object keeps its slot and its ID vector while it is tracked; users see its track id. All tensors are on the CPU, so that
reading them needs no device sync.

Shape shorthand:
    N_id: slots
    K: classes of the stream's label set
    N: leading slots that a step computes; Q: N + N_det, rows of the Pixel Decoder
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.modeling.id_pool import draw_free

logger = logging.getLogger(__name__)

FREE = -1  # in Slots.ids: the slot is not in use


@dataclass
class Slots:
    """The state of all slots. A method that raises has changed nothing."""

    ids: Tensor  # int64 (N_id): index of the slot's ID vector in the pool B, or FREE
    track_ids: Tensor  # int64 (N_id): undefined for free slots
    prompted: Tensor  # bool (N_id): given by the user
    due: Tensor  # int64 (N_id): frame from which the track is returned
    last_seen: Tensor  # int64 (N_id): last frame with a non-empty mask
    class_sums: Tensor  # float64 (N_id, K): class scores, summed over the frames of the track
    predicted: Tensor  # int64 (N_id): number of those frames, without the frame of the prompt
    generator: torch.Generator  # of the Sampler
    next_track_id: int = 1
    recycled: int = 0  # tracks that were evicted for a newer one
    dropped: int = 0  # detections that found no slot

    @classmethod
    def empty(cls, num_id: int, num_classes: int, *, seed: int) -> Slots:
        """``num_id`` free slots."""
        return cls(
            ids=torch.full((num_id,), FREE),
            track_ids=torch.zeros(num_id, dtype=torch.int64),
            prompted=torch.zeros(num_id, dtype=torch.bool),
            due=torch.zeros(num_id, dtype=torch.int64),
            last_seen=torch.zeros(num_id, dtype=torch.int64),
            class_sums=torch.zeros(num_id, num_classes, dtype=torch.float64),
            predicted=torch.zeros(num_id, dtype=torch.int64),
            generator=torch.Generator().manual_seed(seed),
        )

    @property
    def in_use(self) -> Tensor:
        """bool (N_id): rows of A."""
        return self.ids != FREE

    def followed(self) -> list[int]:
        """Track ids of all tracked objects, in slot order."""
        return self.track_ids[self.in_use].tolist()

    def slot_of(self, track_id: int) -> int:
        """
        Raises:
            UserError: if the object is not tracked.
        """
        slots = (self.in_use & (self.track_ids == track_id)).nonzero()[:, 0].tolist()
        if not slots:
            raise not_followed(track_id, self.followed())
        return slots[0]

    def room(self, object_ids: Iterable[int] = ()) -> int:
        """How many objects :meth:`reserve` has slots for, beside those of ``object_ids`` that are tracked."""
        held = self.prompted | torch.isin(self.track_ids, torch.tensor([*object_ids], dtype=torch.int64))
        return len(self.ids) - int((self.in_use & held).sum())

    def update(self, scores: Tensor, visible: Tensor, frame_index: int, *, rule: str = "mean") -> None:
        """Record the predictions of a frame for the first N slots.

        Args:
            scores: float64 (N, K) class scores.
            visible: bool (N).
            rule: TEST.AUSM.TRACK_SCORE.
        """
        count = len(visible)
        self.last_seen[:count][self.in_use[:count] & visible] = frame_index
        if rule == "max":
            self.class_sums[:count] = torch.maximum(self.class_sums[:count], scores)
            self.predicted.fill_(1)
        elif rule == "visible":
            self.class_sums[:count] += scores * visible[:, None]
            self.predicted[:count] += visible
        else:
            self.class_sums[:count] += scores
            self.predicted += 1

    def forget_scores(self) -> None:
        """Reset the scores of all tracks."""
        self.class_sums.zero_()
        self.predicted.zero_()

    def reserve(self, object_ids: Iterable[int], frame_index: int) -> dict[int, int]:
        """Find a slot for every prompted object. Changes nothing; :meth:`give` occupies the slots.

        A tracked object keeps its slot. A new one gets a free slot, else that of the longest-hidden unprompted track,
        else that of the least confident visible unprompted track.

        Args:
            object_ids: the user's ids.
            frame_index: of the latest frame.

        Returns:
            Slots by object id, in the order of ``object_ids``.

        Raises:
            UserError: if there are not enough slots.
        """
        object_ids = list(object_ids)
        known = {track_id: self.slot_of(track_id) for track_id in self.followed() if track_id in object_ids}
        taken = set(known.values())
        free = (~self.in_use).nonzero()[:, 0].tolist()
        room = free + [slot for slot in self._hidden(frame_index) + self._in_sight(frame_index) if slot not in taken]
        wanted = [object_id for object_id in object_ids if object_id not in known]
        if len(wanted) > len(room):
            raise UserError(
                f"{len(wanted)} new objects cannot be followed: {len(room)} of {len(self.ids)} ID vectors "
                "(MODEL.AUSM.NUM_ID) are not held by prompted objects"
            )
        new = dict(zip(wanted, room, strict=False))
        return {object_id: known.get(object_id, new.get(object_id, FREE)) for object_id in object_ids}

    def give(self, reserved: Mapping[int, int], frame_index: int) -> None:
        """Prompted objects occupy the slots from :meth:`reserve`. An object that is already tracked is corrected.

        Args:
            reserved: slots by object id.
            frame_index: of the prompt.
        """
        for object_id, slot in reserved.items():
            if self.in_use[slot] and self.track_ids[slot] == object_id:
                self.prompted[slot] = True  # a correction: the object keeps its slot and its ID vector
                self.last_seen[slot] = frame_index
            else:
                self._occupy(slot, track_id=object_id, prompted=True, frame_index=frame_index)
            self.next_track_id = max(self.next_track_id, object_id + 1)

    def allocate(
        self, rows: Iterable[int], scores: Tensor, *, frame_index: int, reserved: Collection[int] = ()
    ) -> dict[int, int]:
        """Detections become tracks: A' = Sampler(B_{t-1}, |D|). Detections without a slot are dropped and counted.

        Args:
            rows: rows of Q of the detections, most confident first.
            scores: float64 (Q, K) class scores.
            frame_index: of the detections.
            reserved: slots reserved for objects prompted at this frame.

        Returns:
            Rows of Q by slot.
        """
        taken: dict[int, int] = {}
        for row in rows:
            slot = self._available(frame_index, reserved)
            if slot is None:
                self._warn_once(frame_index)
                self.dropped += 1
                continue
            self._occupy(slot, track_id=self.next_track_id, prompted=False, frame_index=frame_index)
            self.next_track_id += 1
            self.class_sums[slot] = scores[row]
            self.predicted[slot] = 1
            taken[slot] = row
        return taken

    def remove(self, track_id: int) -> int:
        """Stop tracking an object and return its ID vector to the pool. Returns its slot.

        Raises:
            UserError: if the object is not tracked.
        """
        slot = self.slot_of(track_id)
        self._release(slot)
        return slot

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers by name. Tensors are not copied."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "generator": self.generator.get_state()}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Restore the values of :meth:`state_dict`.

        Raises:
            KeyError: if an entry is missing.
        """
        for f in fields(self):
            value = values[f.name]
            if f.name == "generator":
                self.generator.set_state(value)
            else:
                setattr(self, f.name, value.clone() if isinstance(value, Tensor) else value)

    def _hidden(self, frame_index: int) -> list[int]:
        """Slots of hidden unprompted tracks, longest hidden first (docs/deviations.md, 11)."""
        hidden = (self.in_use & ~self.prompted & (self.last_seen < frame_index)).nonzero()[:, 0].tolist()
        return sorted(hidden, key=lambda slot: int(self.last_seen[slot]))

    def _in_sight(self, frame_index: int) -> list[int]:
        """Slots of visible unprompted tracks, least confident first."""
        seen = (self.in_use & ~self.prompted & (self.last_seen >= frame_index)).nonzero()[:, 0].tolist()
        mean = self.class_sums.sum(dim=1) / self.predicted.clamp(min=1)
        return sorted(seen, key=lambda slot: float(mean[slot]))

    def _available(self, frame_index: int, reserved: Collection[int]) -> int | None:
        """A free slot, else that of the longest-hidden unprompted track, else None."""
        free = (~self.in_use).nonzero()[:, 0].tolist()
        return next((slot for slot in free + self._hidden(frame_index) if slot not in reserved), None)

    def _occupy(self, slot: int, *, track_id: int, prompted: bool, frame_index: int) -> None:
        """Assign a slot and a new ID vector to an object; evicts the track that has the slot."""
        if self.in_use[slot]:
            self._warn_once(frame_index)
            self._release(slot)
            self.recycled += 1
        self.ids[slot] = self._draw()
        self.track_ids[slot] = track_id
        self.prompted[slot] = prompted
        self.due[slot] = self.last_seen[slot] = frame_index
        self.class_sums[slot] = 0
        self.predicted[slot] = 0

    def _release(self, slot: int) -> None:
        self.ids[slot] = FREE
        self.prompted[slot] = False

    def _draw(self) -> int:
        """Sampler(B_t, 1): the index of a free ID vector."""
        taken = torch.zeros(len(self.ids), dtype=torch.bool)
        taken[self.ids[self.in_use]] = True
        return int(draw_free(taken, 1, generator=self.generator))

    def _warn_once(self, frame_index: int) -> None:
        if not self.recycled and not self.dropped:
            logger.warning(
                "frame %d: all %d ID vectors are in use; from here on the longest-unseen tracks are recycled",
                frame_index,
                len(self.ids),
            )


def not_followed(track_id: int, followed: Iterable[int]) -> UserError:
    """The error for an object that is not among those that are followed."""
    return UserError(f"object {track_id} is not followed; followed now: {sorted(followed)}")
