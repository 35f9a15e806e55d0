# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The output of a stream's step, before masks are upsampled to frame size.

Shape shorthand:
    H4, W4: mask size at stride 4 of the network's padded input
    K: classes of the stream's label set
    R: rows
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.modeling.transfer import upload


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


def joined(outputs: Sequence[FrameOutput]) -> FrameOutput:
    """Concatenate the rows of several outputs of one frame."""
    names = ("probabilities", "mean_probabilities", "mask_logits", "visible", "prompted")
    return FrameOutput(
        frame_index=outputs[0].frame_index,
        track_ids=[track_id for each in outputs for track_id in each.track_ids],
        given=set().union(*(each.given for each in outputs)),
        **{name: torch.cat([getattr(each, name) for each in outputs]) for name in names},
    )
