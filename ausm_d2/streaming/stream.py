# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The recurrence of Alg. 1 (paper, Sec. 4): one frame in, its masks out, with a state of constant size.

Shape shorthand:
    H, W: frame size in pixels; H_in, W_in: the network's input size, before padding
    H4, W4: mask size at stride 4 of the padded input
    N: number of leading slots that includes all slots in use before the frame
    N_det: detection queries V; Q: N + N_det
    K: classes of the stream's label set
    R: rows of a result
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.modeling.masks import masks_at_stride4, upsample_logits
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.modeling.transfer import upload
from ausm_d2.streaming.ahead import EncodedFrame, network_input, pixels
from ausm_d2.streaming.detections import new_tracks
from ausm_d2.streaming.gates import appearance, delay, ending, hide_jumped, hide_unsure, keep_within_reach, share_out
from ausm_d2.streaming.output import GIVEN_LOGIT, FrameOutput, tracked_rows
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.state import StreamState
from ausm_d2.streaming.step import FrameStep


class Stream:
    """One video, frame by frame. Frames are resized to the network's input; masks are returned at frame size."""

    def __init__(
        self, network: AUSMNetwork, settings: VideoSettings, *, label_set: str, detect: bool, first_track_id: int = 1
    ) -> None:
        """
        Args:
            network: in evaluation mode.
            settings: input size, thresholds, ...
            label_set: of detections and prompted rows.
            detect: detect new objects (unprompted).
            first_track_id: of the tracks that are found; lower ones are the user's.

        Raises:
            UserError: if the network has no such label set.
        """
        network.check_label_set(label_set)
        self.network = network
        self.settings = settings
        self.label_set = label_set
        self.detect = detect
        self._first_track_id = first_track_id
        self.state: StreamState | None = None  # None before the first frame
        confidence = settings.track_score == "mask"
        self._frame_step = FrameStep(network, label_set, cuda_graph=settings.cuda_graph, confidence=confidence)

    @property
    def track_ids(self) -> list[int]:
        """Ids of all tracked objects, including hidden ones."""
        return self.started().slots.followed()

    @torch.no_grad()
    def step(
        self,
        frame: np.ndarray | EncodedFrame,
        prompts: Mapping[int, np.ndarray] | None = None,
        *,
        input_size: tuple[int, int] | None = None,
        elsewhere: Tensor | None = None,
    ) -> FrameOutput:
        """One iteration of Alg. 1. If it raises UserError, the stream is unchanged.

        Args:
            frame: uint8 (H, W, 3), RGB; or one of :func:`~ausm_d2.streaming.ahead.encode_ahead`, by this network.
            prompts: bool (H, W) masks by object id, for objects prompted at this frame; they enter M_t. With
                ``PROMPT_INDEX: zero`` the prompts of the first frame are M_0, and the first frame is predicted.
            input_size: (H_in, W_in), at the first frame; None: by the frame and its prompts.
            elsewhere: bool (R, H4, W4) masks in this frame of objects that are followed by other streams of the video:
                a detection of one of them is no new object.

        Raises:
            UserError: if the frame's size differs from that of earlier frames, or a prompt is invalid.
        """
        prompts = prompts or {}
        with torch.autocast(self.network.device.type, torch.bfloat16, enabled=self.settings.amp):
            size = (pixels(frame).shape[0], pixels(frame).shape[1])
            self.check(size, prompts)
            state = self.state or self._initial(size, input_size or self.settings.input_size(size, prompts.values()))
            image, features = network_input(frame, self.settings, state.input_size)
            given = self._marks(prompts, state)
            reserved = state.slots.reserve(given, state.frame_index)
            self.state = state  # nothing below raises UserError
            if state.frame_index < 0:
                state.x_prev.copy_(self.network.x_start[:, None, None])  # X_0
                if self.network.prompt_index == "zero":
                    self._give(given, reserved, state)
                    given, reserved = {}, {}
            before = state.masks.clone() if self.detect and self.settings.reach else None
            report, mask_logits, tracked = self._frame_step(image, state, features)
            report = report.cpu().double()  # the only device sync of a frame, but for the rules in gates.py
            other: list[int | None] = []  # by row that is added to Q: the track that ends if it starts one
            if before is not None:
                report, mask_logits, other = keep_within_reach(
                    before[:tracked], state, report, mask_logits, self.settings
                )
            if self.detect and self.settings.appearance:
                report, mask_logits, jumped = hide_jumped(state, report, mask_logits, tracked, self.settings.appearance)
                other += jumped
            state.frame_index += 1
            return self._advance(state, report, mask_logits, tracked, given, reserved, elsewhere, other)

    def check(self, size: tuple[int, int], prompts: Mapping[int, np.ndarray]) -> None:
        """
        Args:
            size: (H, W) of the next frame, or of the latest one.
            prompts: bool masks by object id.

        Raises:
            UserError: a size that is not that of the frames before, or a mask of another size.
        """
        expected = self.state.size if self.state else size
        if size != expected:
            raise UserError(
                f"a frame of {size[1]}x{size[0]} pixels follows frames of "
                f"{expected[1]}x{expected[0]}: all frames of a video have one size"
            )
        for object_id, mask in prompts.items():
            if mask.shape != size:
                raise UserError(
                    f"the mask of object {object_id} is {mask.shape[1]}x{mask.shape[0]} pixels, "
                    f"the frame {size[1]}x{size[0]}"
                )

    def beside(self) -> Stream:
        """A stream of the same video that begins with the latest frame and follows nothing yet."""
        state = self.started()
        other = Stream(self.network, self.settings, label_set=self.label_set, detect=False)
        with torch.no_grad(), torch.autocast(self.network.device.type, torch.bfloat16, enabled=self.settings.amp):
            new = other._initial(state.size, state.input_size)
            new.x_prev.copy_(self.network.x_start[:, None, None])
            self._frame_step.remember(new)
        new.x_prev.copy_(state.x_prev)
        new.frame_index = state.frame_index
        other.state = new
        return other

    def add(self, prompts: Mapping[int, np.ndarray]) -> None:
        """Prompt objects at the latest frame, after its step. They are tracked from the next frame on.

        An object that is already tracked is corrected: its mask in the history is replaced.

        Args:
            prompts: bool (H, W) masks by object id.

        Raises:
            UserError: if a mask is not of the frame's size, or too few ID vectors are free; the stream is unchanged.
        """
        state = self.started()
        self.check(state.size, prompts)
        given = self._marks(prompts, state)
        self._give(given, state.slots.reserve(given, state.frame_index), state)

    def remove(self, track_id: int) -> None:
        """Stop tracking an object: its ID vector returns to the pool, its mask is removed from the history.

        Raises:
            UserError: if the object is not tracked.
        """
        state = self.started()
        state.masks[state.slots.remove(track_id)] = False

    def forget_scores(self) -> None:
        """Reset the scores of all tracks (when the input is repeated)."""
        self.started().slots.forget_scores()

    def rename(self, track_id: int, new_id: int) -> None:
        """Change the id of an object; the new id must not be in use.

        Raises:
            UserError: if no such object is followed.
        """
        slots = self.started().slots
        slots.track_ids[slots.slot_of(track_id)] = new_id
        slots.next_track_id = max(slots.next_track_id, new_id + 1)

    def logits(self, output: FrameOutput, given: Mapping[int, np.ndarray] | None = None) -> Tensor:
        """The mask logits of all rows at frame size.

        Args:
            output: of the latest step.
            given: bool (H, W) masks by id that replace the logits of their rows, as +-infinity.

        Returns:
            (R, H, W).
        """
        state = self.started()
        logits = upsample_logits(output.mask_logits, state.input_size, state.size)
        for row, track_id in enumerate(output.track_ids):
            if given and track_id in given:
                mask = upload(torch.from_numpy(given[track_id]), logits.device)
                logits[row] = torch.where(mask, torch.inf, -torch.inf)
        return logits

    def given_logits(self, track_id: int) -> Tensor:
        """(H4, W4): the mask of an object in M_t, as the logits of what is given."""
        state = self.started()
        mask = state.masks[state.slots.slot_of(track_id)]
        return torch.where(mask, GIVEN_LOGIT, -GIVEN_LOGIT)

    def state_dict(self) -> dict[str, Any]:
        """The complete state as tensors and numbers. Tensors are not copied: the next step overwrites some of them.

        Raises:
            UserError: before the first frame.
        """
        return {"label_set": self.label_set, "detect": self.detect, "state": self.started().state_dict()}

    @classmethod
    def from_state_dict(cls, network: AUSMNetwork, settings: VideoSettings, values: Mapping[str, Any]) -> Stream:
        """Restore a stream from :meth:`state_dict`. With the same weights and settings it continues bit for bit.

        Raises:
            KeyError, ValueError: if an entry is missing or does not fit.
        """
        stream = cls(network, settings, label_set=values["label_set"], detect=values["detect"])
        state = values["state"]
        with torch.autocast(network.device.type, torch.bfloat16, enabled=settings.amp):
            stream.state = stream._initial(tuple(state["size"]), tuple(state["input_size"]))
        stream.state.load_state_dict(state)
        return stream

    def fork(self, **changes: Any) -> Stream:
        """An independent copy of the stream.

        Args:
            changes: settings to replace, such as ``fg_threshold``.
        """
        settings = replace(self.settings, **changes)
        if self.state is None:
            first = self._first_track_id
            return Stream(self.network, settings, label_set=self.label_set, detect=self.detect, first_track_id=first)
        return Stream.from_state_dict(self.network, settings, self.state_dict())

    def started(self) -> StreamState:
        """The state after at least one frame.

        Raises:
            UserError: before the first frame.
        """
        if self.state is None:
            raise UserError("the stream has not seen a frame yet")
        return self.state

    def _initial(self, size: tuple[int, int], input_size: tuple[int, int]) -> StreamState:
        num_classes = self.network.label_sets[self.label_set]
        state = StreamState.initial(self.network, size, input_size, num_classes=num_classes, settings=self.settings)
        state.slots.next_track_id = self._first_track_id
        return state

    def _marks(self, prompts: Mapping[int, np.ndarray], state: StreamState) -> dict[int, Tensor]:
        """Downsample prompt masks to the resolution of M: bool (H, W) -> bool (H4, W4), on the CPU, by object id."""
        height, width = (4 * side for side in state.masks.shape[-2:])
        marks = {}
        for object_id, mask in prompts.items():
            resized = self.settings.resize_mask(mask, state.input_size)
            padded = F.pad(resized, (0, width - resized.shape[1], 0, height - resized.shape[0]))
            marks[object_id] = masks_at_stride4(padded[None])[0] > 0
        return marks

    def _give(self, given: Mapping[int, Tensor], reserved: Mapping[int, int], state: StreamState) -> None:
        """Add prompted objects to A_t and M_t: masks from :meth:`_marks`, slots from :meth:`Slots.reserve`."""
        if given:
            state.slots.give(reserved, state.frame_index)
            slots = torch.tensor([reserved[object_id] for object_id in given])
            device = state.masks.device
            state.masks[upload(slots, device)] = upload(torch.stack(list(given.values())), device)

    def _advance(
        self,
        state: StreamState,
        report: Tensor,
        mask_logits: Tensor,
        tracked: int,
        given: Mapping[int, Tensor],
        reserved: Mapping[int, int],
        elsewhere: Tensor | None,
        other: Sequence[int | None],
    ) -> FrameOutput:
        """A_t = concat(A_{t-1}, A'), M_t = concat(m_trk, m_D), and prompted objects.

        Args:
            report: float64 (Q, K + 1), CPU; see :class:`~ausm_d2.streaming.step.StepOutput`.
            mask_logits: (Q, H4, W4).
            tracked: N.
            given, reserved: masks and slots of the objects prompted at this frame.
            elsewhere: see :meth:`step`.
            other: of the last rows of Q, which the rules added for other objects that tracks have spread or jumped to:
                the track that ends if the row starts one.
        """
        slots = state.slots
        probabilities, visible = report[:, :-1], report[:, -1] > 0
        hide_unsure(probabilities, visible[:tracked], state, self.settings.hide_below)
        scores = probabilities * report[:, -1:] if self.settings.track_score == "mask" else probabilities
        slots.update(scores[:tracked], visible[:tracked], state.frame_index, rule=self.settings.track_score)
        # Row of Q with the output of each slot. A slot beyond the first N is free, unless it is occupied in this frame.
        source = torch.arange(len(slots.ids)).clamp(max=tracked)
        if self.detect:
            for track_id in ending(visible[:tracked], state, self.settings):
                self.remove(track_id)
        if self.settings.exclusive:
            share_out(state, mask_logits, tracked)
        if self.detect:
            rows_and_masks = (probabilities, scores, visible, mask_logits, state.masks, elsewhere)
            found = new_tracks(*rows_and_masks, tracked=tracked, settings=self.settings)
            first = len(report) - len(other)
            for row in found:
                ended = other[row - first] if row >= first else None
                if ended is not None:
                    self.remove(ended)
            taken = slots.allocate(found, scores, frame_index=state.frame_index, reserved=set(reserved.values()))
            self._start_tracks(taken, state, probabilities, mask_logits, first)
            source[list(taken)] = torch.tensor(list(taken.values()), dtype=torch.int64)
        self._give(given, reserved, state)
        return tracked_rows(state, source, probabilities, visible, mask_logits, reserved)

    def _start_tracks(
        self,
        taken: Mapping[int, int],
        state: StreamState,
        probabilities: Tensor,
        mask_logits: Tensor,
        first: int,
    ) -> None:
        """Masks of new tracks. ``taken``: rows of Q by slot; from ``first`` on, parts of other tracks' masks."""
        if not taken:
            return
        new, rows = torch.tensor(list(taken)), torch.tensor(list(taken.values()))
        state.slots.due[new] += delay(probabilities[rows], rows >= first, self.settings)
        new, masks = upload(new, mask_logits.device), mask_logits[upload(rows, mask_logits.device)] > 0
        state.masks[new] = masks
        if self.settings.appearance:
            state.appearance[new] = appearance(masks, state.x_prev)
