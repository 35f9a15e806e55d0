# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The recurrence (paper, Sec. 4, Alg. 1): one frame in, the masks of that frame out, memory of constant size.

Shape shorthand:
    N_id: slots (rows of A)
    V: detection queries
    N: the first slots, all that were in use before the frame among them
    Q: N + V
    K: classes of the stream's label set
    H, W: size of the frame in pixels, padded to multiples of 32
    H4, W4: size of its masks, stride 4
    R: rows of a result
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.modeling.masks import masks_at_stride4
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.streaming.state import FREE, StreamState
from ausm_d2.streaming.step import FrameStep, upload

logger = logging.getLogger(__name__)

_GIVEN_LOGIT = 20.0  # of a mask that was given: as sure as float16 can tell


@dataclass
class FrameOutput:
    """The rows of A_t at the model's own resolution, in the order of their slots."""

    frame_index: int
    track_ids: list[int]  # R
    probabilities: Tensor  # float64 (R, K), CPU: class probabilities in this frame; their sum is 1 - p(background)
    mean_probabilities: Tensor  # float64 (R, K), CPU: over all frames since the row was allocated
    mask_logits: Tensor  # (R, H4, W4), on the model's device
    visible: Tensor  # bool (R), CPU: some logit is above 0
    prompted: Tensor  # bool (R), CPU: objects that were given at this or an earlier frame
    given: set[int]  # track ids whose masks were given at this frame; their logits only echo them

    def select(self, rows: list[int]) -> FrameOutput:
        """The same frame with only these rows."""
        return FrameOutput(
            frame_index=self.frame_index,
            track_ids=[self.track_ids[row] for row in rows],
            probabilities=self.probabilities[rows],
            mean_probabilities=self.mean_probabilities[rows],
            mask_logits=self.mask_logits[upload(torch.tensor(rows, dtype=torch.int64), self.mask_logits.device)],
            visible=self.visible[rows],
            prompted=self.prompted[rows],
            given=self.given,
        )


class Stream:
    """One video, frame by frame."""

    def __init__(
        self,
        model: AUSMNetwork,
        *,
        label_set: str,
        detect: bool,
        fg_threshold: float,
        seed: int = 0,
        cuda_graph: bool = False,
    ) -> None:
        """
        Args:
            model: the weights and the function.
            label_set: label set of the detections, and of the prompted rows' class.
            detect: look for new objects (unprompted work).
            fg_threshold: foreground probability from which a row of V becomes a track.
            seed: of the Sampler.
            cuda_graph: capture the step in a CUDA graph (on CUDA only).

        Raises:
            UserError: if the model has no such label set.
        """
        model.check_label_set(label_set)
        self.model = model
        self.label_set = label_set
        self.detect = detect
        self.fg_threshold = fg_threshold
        self.seed = seed
        self.state: StreamState | None = None
        self.size: tuple[int, int] | None = None  # (H_in, W_in) of the frames
        self._pool_was_short = False
        self._frame_step = FrameStep(model, label_set, cuda_graph=cuda_graph)

    def _start(self, height: int, width: int) -> StreamState:
        """The state before the first frame, for masks of (height, width) = (H4, W4)."""
        model = self.model
        num_id, device = model.id_pool.num_id, model.device
        return StreamState(
            memory=model.initial_memory((4 * height, 4 * width)),
            x_prev=torch.zeros(len(model.x_start), height // 2, width // 2, dtype=model.x_start.dtype, device=device),
            ids=torch.full((num_id,), FREE),
            masks=torch.zeros(num_id, height, width, dtype=torch.bool, device=device),
            track_ids=torch.zeros(num_id, dtype=torch.int64),
            prompted=torch.zeros(num_id, dtype=torch.bool),
            last_seen=torch.zeros(num_id, dtype=torch.int64),
            class_sums=torch.zeros(num_id, model.label_sets[self.label_set], dtype=torch.float64),
            predicted=torch.zeros(num_id, dtype=torch.int64),
            generator=torch.Generator().manual_seed(self.seed),
        )

    @torch.no_grad()
    def step(self, image: Tensor, prompts: dict[int, Tensor] | None = None) -> FrameOutput:
        """One turn of Alg. 1's loop.

        Args:
            image: uint8 (3, H_in, W_in), RGB, at the size the model works at.
            prompts: masks of objects given at this frame, by the user's object id: bool (H_in, W_in). They enter M_t
                unchanged, are the output of this frame, and are tracked from the next one on. With
                ``PROMPT_INDEX: zero`` those of the first frame are M_0 instead, and the first frame is predicted.

        Raises:
            UserError: if the frame's size differs from the frames before, or a prompt is unusable.
        """
        prompts = prompts or {}
        mask_size = (image.shape[-2], image.shape[-1])
        if self.size is not None and mask_size != self.size:
            raise UserError(
                f"a frame of {mask_size[1]}x{mask_size[0]} pixels (at the model's input) follows frames of "
                f"{self.size[1]}x{self.size[0]}: all frames of a stream have one size"
            )
        self.size = mask_size
        if self.state is None:
            height, width = self.model.normalise(image[None]).shape[-2:]  # padded
            self.state = self._start(height // 4, width // 4)
        state = self.state
        if state.frame_index < 0:
            state.x_prev.copy_(self.model.x_start[:, None, None])  # X_0
            if self.model.prompt_index == "zero":
                self._add(prompts, mask_size)
                prompts = {}
        state.frame_index += 1
        report, mask_logits, tracked = self._frame_step(image, state)
        report = report.cpu().double()  # the one time that a frame waits for the device
        probabilities, visible = report[:, :-1], report[:, -1] > 0

        # A_t = concat(A_{t-1}, A'), M_t = concat(m_trk, m_D)
        state.class_sums[:tracked] += probabilities[:tracked]
        state.predicted += 1
        state.last_seen[:tracked][state.in_use[:tracked] & visible[:tracked]] = state.frame_index
        # Row of Q that a slot's output is read from; a slot beyond the first N is taken in this frame or not at all.
        source = torch.arange(len(state.ids)).clamp(max=tracked)
        if self.detect:
            self._allocate(probabilities, visible, mask_logits, tracked, source)
        given = self._add(prompts, mask_size)

        slots = state.in_use.nonzero()[:, 0]
        rows = source[slots]
        logits = mask_logits[upload(rows, mask_logits.device)].float()
        current, shown = probabilities[rows], visible[rows]
        if given:  # certain to be there, of unknown class
            echoed = torch.tensor([slot in given for slot in slots.tolist()])
            current[echoed], shown[echoed] = 1 / current.shape[1], True
            at, of = (upload(each, logits.device) for each in (echoed.nonzero()[:, 0], slots[echoed]))
            logits[at] = torch.where(state.masks[of], _GIVEN_LOGIT, -_GIVEN_LOGIT)
        age = state.predicted[slots, None]
        mean = torch.where(age > 0, state.class_sums[slots] / age.clamp(min=1), current)
        track_ids = state.track_ids[slots].tolist()
        return FrameOutput(
            frame_index=state.frame_index,
            track_ids=track_ids,
            probabilities=current,
            mean_probabilities=mean,
            mask_logits=logits,
            visible=shown,
            prompted=state.prompted[slots],
            given={track_id for slot, track_id in zip(slots.tolist(), track_ids, strict=True) if slot in given},
        )

    def add(self, prompts: dict[int, Tensor]) -> None:
        """Objects given at the latest frame, after its step: they are tracked from the next frame on.

        An object that is followed already is corrected: its mask in the history is replaced.

        Args:
            prompts: bool (H_in, W_in) by the user's object id.

        Raises:
            UserError: if a mask is not of the frame's size, or too few ID vectors are free; then nothing has changed.
        """
        self._state()
        assert self.size is not None
        self._add(prompts, self.size)

    def remove(self, track_id: int) -> None:
        """Stop following an object; its ID vector goes back to the pool.

        Raises:
            UserError: if no such object is followed.
        """
        self._state().release(self._slot_of(track_id))

    @property
    def track_ids(self) -> list[int]:
        """Ids of the objects that are followed now."""
        state = self._state()
        return state.track_ids[state.in_use].tolist()

    def _state(self) -> StreamState:
        if self.state is None:
            raise UserError("the stream has not seen a frame yet")
        return self.state

    def _slot_of(self, track_id: int) -> int:
        state = self._state()
        slots = (state.in_use & (state.track_ids == track_id)).nonzero()[:, 0].tolist()
        if not slots:
            raise UserError(f"object {track_id} is not followed; followed now: {sorted(self.track_ids)}")
        return slots[0]

    def _draw(self) -> int:
        """Sampler(B_t, 1)."""
        state = self._state()
        taken = torch.zeros(len(state.ids), dtype=torch.bool)
        taken[state.ids[state.in_use]] = True
        return int(self.model.id_pool.sample(1, in_use=taken, generator=state.generator))

    def _allocate(
        self, probabilities: Tensor, visible: Tensor, mask_logits: Tensor, tracked: int, source: Tensor
    ) -> None:
        """D = the confident foreground detections; A' = Sampler(B_{t-1}, |D|). Writes rows of Q into ``source``."""
        state = self._state()
        foreground = probabilities[tracked:].sum(-1)
        found = ((foreground >= self.fg_threshold) & visible[tracked:]).nonzero()[:, 0]
        found = found[foreground[found].argsort(descending=True)]  # the surest first, should slots run out
        taken = []
        for row in (found + tracked).tolist():
            slot = self._take_slot()
            if slot is None:
                state.dropped += 1
                continue
            state.occupy(slot, id_index=self._draw(), track_id=state.next_track_id, prompted=False)
            state.next_track_id += 1
            state.class_sums[slot] = probabilities[row]
            state.predicted[slot] = 1
            source[slot] = row
            taken.append(slot)
        if taken:
            slots, rows = torch.tensor(taken), source[taken]
            device = mask_logits.device
            state.masks[upload(slots, device)] = mask_logits[upload(rows, device)] > 0

    def _recyclable(self) -> Tensor:
        """bool (N_id): slots of unprompted tracks that are hidden now."""
        state = self._state()
        return state.in_use & ~state.prompted & (state.last_seen < state.frame_index)

    def _take_slot(self) -> int | None:
        """A free slot, or the one of the longest-unseen unprompted track, or None (docs/deviations.md, 11)."""
        state = self._state()
        free = (~state.in_use).nonzero()[:, 0].tolist()
        if free:
            return free[0]
        if not self._pool_was_short:
            self._pool_was_short = True
            logger.warning(
                "frame %d: all %d ID vectors are in use; from here on the longest-unseen tracks are recycled",
                state.frame_index,
                len(state.ids),
            )
        hidden = self._recyclable().nonzero()[:, 0].tolist()
        if not hidden:
            return None
        slot = min(hidden, key=lambda each: int(state.last_seen[each]))
        state.release(slot)
        state.recycled += 1
        return slot

    def _add(self, prompts: dict[int, Tensor], size: tuple[int, int]) -> set[int]:
        """A_t and M_t gain the given objects; all of them or, where one is refused, none. Returns their slots."""
        state = self._state()
        for object_id, mask in prompts.items():
            if tuple(mask.shape) != size:
                raise UserError(
                    f"the mask of object {object_id} is {mask.shape[1]}x{mask.shape[0]} pixels, "
                    f"the frame {size[1]}x{size[0]}"
                )
        known = {object_id: self._slot_of(object_id) for object_id in self.track_ids if object_id in prompts}
        available = ~state.in_use | self._recyclable()
        available[list(known.values())] = False
        room = int(available.sum())
        if len(prompts) - len(known) > room:
            raise UserError(
                f"{len(prompts) - len(known)} new objects cannot be followed: {room} of {len(state.ids)} ID vectors "
                "(MODEL.AUSM.NUM_ID) are free"
            )
        state.prompted[list(known.values())] = True  # a correction: the object keeps its id, its slot and its vector
        slots = []
        for object_id in prompts:
            slot = known.get(object_id)
            if slot is None:
                slot = self._take_slot()
                assert slot is not None
                state.occupy(slot, id_index=self._draw(), track_id=object_id, prompted=True)
            else:
                state.last_seen[slot] = state.frame_index
            state.next_track_id = max(state.next_track_id, object_id + 1)
            slots.append(slot)
        if slots:
            marked = torch.stack([self._mark(mask) for mask in prompts.values()])
            device = state.masks.device
            state.masks[upload(torch.tensor(slots), device)] = upload(marked.cpu(), device)
        return set(slots)

    def _mark(self, mask: Tensor) -> Tensor:
        """bool (H_in, W_in) -> bool (H4, W4) as M has it."""
        height, width = (4 * side for side in self._state().masks.shape[-2:])
        padded = F.pad(mask, (0, width - mask.shape[1], 0, height - mask.shape[0]))
        return masks_at_stride4(padded[None])[0] > 0
