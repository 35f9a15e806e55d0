# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The output of a stream's step, before masks are upsampled to frame size.

Shape shorthand:
    H4, W4: mask size at stride 4 of the network's padded input
    K: classes of the stream's label set
    R: rows
    N_id: slots; Q: rows of the Pixel Decoder
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.modeling.transfer import upload
from ausm_d2.streaming.state import StreamState

GIVEN_LOGIT = 20.0  # logit inside a prompt mask; its sigmoid is 1 in float16


@dataclass
class FrameOutput:
    """The rows of A_t in slot order, masks at stride 4."""

    frame_index: int
    track_ids: list[int]  # R
    probabilities: Tensor  # float64 (R, K), CPU: class probabilities in this frame; they sum to 1 - p(background)
    mean_probabilities: Tensor  # float64 (R, K), CPU: track scores, by TEST.AUSM.TRACK_SCORE
    mask_logits: Tensor  # (R, H4, W4), on the model's device
    visible: Tensor  # bool (R), CPU: the mask is not empty, and the track is old enough to be returned
    prompted: Tensor  # bool (R), CPU: prompted at this or an earlier frame
    given: set[int]  # track ids prompted at this frame; their logits repeat the prompts

    def select(self, rows: list[int]) -> FrameOutput:
        """The output of some rows."""
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

    def parts(self, count: int) -> Iterator[FrameOutput]:
        """The output in parts of at most ``count`` rows; without rows, one part."""
        rows = len(self.track_ids)
        if rows <= count:
            yield self
            return
        for first in range(0, rows, count):
            yield self.select(list(range(first, min(first + count, rows))))

    def with_given(self, object_id: int, mask_logits: Tensor | None = None) -> FrameOutput:
        """Mark a row as prompted, or append one: its foreground probability is 1, its class as before or unknown.

        Args:
            mask_logits: (H4, W4) of a new row; None: zeros.
        """
        num_classes = self.probabilities.shape[1]
        given = self.given | {object_id}
        if object_id not in self.track_ids:
            certain = self.probabilities.new_full((1, num_classes), 1 / num_classes)
            if mask_logits is None:
                mask_logits = self.mask_logits.new_zeros(self.mask_logits.shape[1:])
            return FrameOutput(
                frame_index=self.frame_index,
                track_ids=[*self.track_ids, object_id],
                probabilities=torch.cat([self.probabilities, certain]),
                mean_probabilities=torch.cat([self.mean_probabilities, certain]),
                mask_logits=torch.cat([self.mask_logits, mask_logits[None]]),
                visible=torch.cat([self.visible, self.visible.new_ones(1)]),
                prompted=torch.cat([self.prompted, self.prompted.new_ones(1)]),
                given=given,
            )
        row = self.track_ids.index(object_id)
        probabilities, mean, visible, prompted = (
            each.clone() for each in (self.probabilities, self.mean_probabilities, self.visible, self.prompted)
        )
        probabilities[row] = mean[row] = F.one_hot(mean[row].argmax(), num_classes).to(mean)
        visible[row], prompted[row] = True, True
        return replace(
            self,
            probabilities=probabilities,
            mean_probabilities=mean,
            visible=visible,
            prompted=prompted,
            given=given,
        )


def tracked_rows(
    state: StreamState,
    source: Tensor,
    probabilities: Tensor,
    visible: Tensor,
    mask_logits: Tensor,
    given: Mapping[int, int],
) -> FrameOutput:
    """The rows of A_t, after the step.

    Args:
        state: after the step.
        source: int64 (N_id): row of Q of each slot.
        probabilities: float64 (Q, K), CPU.
        visible: bool (Q), CPU.
        mask_logits: (Q, H4, W4).
        given: slots of the objects prompted at this frame, by track id; their masks are those in M_t.
    """
    slots = state.slots
    used = slots.in_use.nonzero()[:, 0]
    rows = source[used]
    logits = mask_logits[upload(rows, mask_logits.device)].float()
    current, shown = probabilities[rows], visible[rows]
    if given:  # certainly foreground, class unknown
        given_slots = set(given.values())
        echoed = torch.tensor([slot in given_slots for slot in used.tolist()])
        current[echoed], shown[echoed] = 1 / current.shape[1], True
        at, of = (upload(each, logits.device) for each in (echoed.nonzero()[:, 0], used[echoed]))
        logits[at] = torch.where(state.masks[of], GIVEN_LOGIT, -GIVEN_LOGIT)
    shown &= slots.prompted[used] | (state.frame_index >= slots.due[used])
    age = slots.predicted[used, None]
    return FrameOutput(
        frame_index=state.frame_index,
        track_ids=slots.track_ids[used].tolist(),
        probabilities=current,
        mean_probabilities=torch.where(age > 0, slots.class_sums[used] / age.clamp(min=1), current),
        mask_logits=logits,
        visible=shown,
        prompted=slots.prompted[used],
        given=set(given),
    )


def joined(outputs: Sequence[FrameOutput]) -> FrameOutput:
    """Concatenate the rows of several outputs of one frame."""
    names = ("probabilities", "mean_probabilities", "mask_logits", "visible", "prompted")
    return FrameOutput(
        frame_index=outputs[0].frame_index,
        track_ids=[track_id for each in outputs for track_id in each.track_ids],
        given=set().union(*(each.given for each in outputs)),
        **{name: torch.cat([getattr(each, name) for each in outputs]) for name in names},
    )
