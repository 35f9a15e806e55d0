# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""AUSM that trains on recorded frames.

Shape shorthand:
    BT: frames, of one size
    D: channels; C_i: channels of the backbone's level i
    h, w: feature size at stride 8; H4, W4: mask size at stride 4
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ausm_d2.data.items import TrainingClip
from ausm_d2.errors import UserError
from ausm_d2.meta_arch import AUSM
from ausm_d2.modeling.pixel_decoder import Predictions, memory_levels
from ausm_d2.modeling.proposals import CellPredictions
from ausm_d2.modeling.transfer import upload
from ausm_d2.recorded.frames import OF_FRAMES, OF_ROWS, Frame, by_size, collate, packed
from ausm_d2.training.forms import clip_inputs
from ausm_d2.training.own_history import history_after_passes
from ausm_d2.training.targets import FrameTargets
from ausm_d2.training.teacher_forcing import frame_targets


@META_ARCH_REGISTRY.register()
class AUSMDecoder(AUSM):
    """AUSM that trains the Pixel Decoder and its proposals on recorded frames."""

    cells_only = False
    """Train only the per-cell predictions that proposals are chosen from; skipping the decoder halves an iteration."""

    @torch.no_grad()
    def record(self, clips: list[TrainingClip]) -> Iterator[Frame]:
        """Record the frames of clips of one size.

        History and targets are drawn as in training (``TRAIN.PROMPT_PROB``, ``OWN_PASSES``, ...). Frames without an
        instance to track or to detect are skipped.
        """
        images, targets = self.collate(clips)
        ids, _, forcing = self._preprocess(targets)
        levels: dict[str, Tensor] = {}
        hook = self.frame_encoder.backbone.register_forward_hook(lambda *call: levels.update(call[-1]))
        try:
            inputs = clip_inputs(self, images, ids, forcing, [clip["label_set"] for clip in clips])
        finally:
            hook.remove()
        passes = int(torch.randint(self.own_passes + 1, ())) if images.shape[1] > 1 else 0
        history = history_after_passes(self, inputs, forcing.history, passes)
        f, rows, _ = inputs.compress(self, history, 0, images.shape[1], None)
        x = inputs.x.flatten(0, 1)
        g = self.decoder(x, f.flatten(0, 1))
        memory, mask_features = self.decoder_features(
            x, g, inputs.mask_features.flatten(0, 1), [each.flatten(0, 1) for each in inputs.levels]
        )
        wanted = frame_targets(targets, forcing)
        for i in range(len(g)):
            if not (wanted.detect[i] | wanted.track[i]).any():
                continue
            yield {
                "backbone": [levels[name][i].half().cpu() for name in self.frame_encoder.in_features[1:]],
                "g": g[i].half().cpu(),
                "mask_features": mask_features[i].half().cpu(),
                "ids": rows.flatten(0, 1)[i].half().cpu(),
                "in_use": forcing.in_use.flatten(0, 1)[i].cpu().clone(),
                "label_set": inputs.label_sets[i // images.shape[1]],
                **packed(wanted.masks[i]),
                **({} if self.mask_gate is None else {"memory": [level[i].half().cpu() for level in memory]}),
                **{name: getattr(wanted, name)[i].cpu().clone() for name in (*OF_ROWS, *OF_FRAMES)},
            }

    def forward(self, batched_inputs: list[Any]) -> Any:
        """Recorded frames -> losses by name; in evaluation mode as :class:`AUSM`."""
        if not self.training:
            return super().forward(batched_inputs)
        groups = list(by_size(batched_inputs).values())
        if self.cells_only:
            return self.criterion.of_cells([self._cells(frames) for frames in groups])
        losses = self.criterion.grouped([self._decode(frames) for frames in groups])
        losses["loss_det_ce"] = losses["loss_det_ce"] + self._unused_classifiers(
            [frame["label_set"] for frame in batched_inputs]
        )
        return losses

    def _stacked(self, values: Sequence[Tensor]) -> Tensor:
        """Half-precision tensors of the frames -> float32, channels last, on the device."""
        whole = upload(torch.stack(list(values)), self.device)
        return whole.float().contiguous(memory_format=torch.channels_last)

    def _levels(self, frames: Sequence[Frame], name: str) -> list[Tensor]:
        return [self._stacked(level) for level in zip(*(each[name] for each in frames), strict=True)]

    def _collated(self, frames: Sequence[Frame]) -> tuple[FrameTargets, Tensor, Tensor]:
        targets, ids, in_use = collate(frames, self.x_start.shape[0])
        moved = {name: upload(value, self.device) for name, value in vars(targets).items()}
        return FrameTargets(**moved), upload(ids, self.device), upload(in_use, self.device)

    def _sources(self, frames: Sequence[Frame], g: Tensor) -> tuple[Tensor, Tensor] | None:
        """The proposals' inputs: pyramid and G_t, (BT, D, h, w) each. None if V is learned."""
        pyramid = self.frame_encoder.proposal_pyramid
        return None if pyramid is None else (pyramid(self._levels(frames, "backbone")), g)

    def _cells(self, frames: Sequence[Frame]) -> tuple[CellPredictions, FrameTargets]:
        """Frames of one size -> predictions of the cells, and targets.

        Raises:
            UserError: if V is learned.
        """
        sources = self._sources(frames, self._stacked([each["g"] for each in frames]))
        if sources is None or self.pixel_decoder.proposals is None:
            raise UserError("MODEL.AUSM.PIXEL_DECODER.QUERIES: learned, expected proposals: only they have cells")
        return self.pixel_decoder.proposals.cells(*sources), self._collated(frames)[0]

    def _decode(self, frames: Sequence[Frame]) -> tuple[list[Predictions], FrameTargets]:
        """Frames of one size -> predictions by layer, and targets."""
        targets, ids, in_use = self._collated(frames)
        g = self._stacked([each["g"] for each in frames])
        layers = self.pixel_decoder(
            memory_levels(g, self.memory_strides) if self.mask_gate is None else self._levels(frames, "memory"),
            self._stacked([each["mask_features"] for each in frames]),
            ids,
            in_use,
            [each["label_set"] for each in frames],
            sources=self._sources(frames, g),
        )
        return layers, targets
