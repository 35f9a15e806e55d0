# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""AUSM as a Detectron2 meta-architecture: training items -> losses; in evaluation mode, test items -> results.

Shape shorthand:
    B: clips; T: frames of a clip
    N: instances (rows of A)
    D: channels
    H_pad, W_pad: padded image size in pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ausm_d2.data.items import TestVideo, TrainingClip, VideoResult
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.modeling.pixel_decoder import Predictions
from ausm_d2.modeling.transfer import upload
from ausm_d2.streaming.segmenter import segment_video
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.training import forms
from ausm_d2.training.criterion import SetCriterion
from ausm_d2.training.frame_class import FrameClassifier
from ausm_d2.training.targets import ClipTargets, FrameTargets
from ausm_d2.training.teacher_forcing import (
    HistoryNoise,
    TeacherForcing,
    draw_switch_times,
    frame_targets,
    preprocess,
)


@META_ARCH_REGISTRY.register()
class AUSM(AUSMNetwork):
    """The network with its losses in training and the stream over whole videos in evaluation."""

    @configurable
    def __init__(
        self,
        *,
        criterion: SetCriterion,
        frame_classifier: FrameClassifier | None,
        prompt_prob: float,
        keep_hidden: bool,
        train_mode: str,
        own_passes: int,
        detect_cells: int,
        history_noise: HistoryNoise | None,
        video: VideoSettings,
        **network: Any,
    ) -> None:
        """
        Args:
            criterion: the loss.
            frame_classifier: auxiliary loss on X_t (docs/deviations.md, 18).
            prompt_prob: probability that a clip is prompted: s_i is the first frame where i is visible.
            keep_hidden: a row stays in A_{t-1} while its object is hidden (docs/deviations.md, 1).
            train_mode: "parallel", "iterative" or "rollout".
            own_passes: with "parallel", the maximum number of passes without gradients that replace the history by the
                network's own masks.
            detect_cells: objects that cover fewer stride-4 cells are ignored in detection: no targets, no background.
            history_noise: applied to M in training; None: ground truth.
            video: settings of the stream in evaluation.
            network: as for :class:`~ausm_d2.modeling.network.AUSMNetwork`.
        """
        super().__init__(**network)
        self.criterion = criterion
        self.frame_classifier = frame_classifier
        self.prompt_prob = prompt_prob
        self.keep_hidden = keep_hidden
        self.train_mode = train_mode
        self.own_passes = own_passes
        self.detect_cells = detect_cells
        self.history_noise = history_noise
        self.video = video

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        train = cfg.MODEL.AUSM.TRAIN
        return {
            **super().from_config(cfg),
            "criterion": SetCriterion(cfg),
            "frame_classifier": FrameClassifier(cfg) if train.FRAME_CLASS_WEIGHT else None,
            "prompt_prob": train.PROMPT_PROB,
            "keep_hidden": train.HIDDEN_ROWS == "keep",
            "train_mode": train.MODE,
            "own_passes": train.OWN_PASSES,
            "detect_cells": train.DETECT_CELLS,
            "history_noise": HistoryNoise.from_config(cfg),
            "video": VideoSettings.from_config(cfg),
        }

    def forward(self, batched_inputs: list[TrainingClip] | list[TestVideo]) -> dict[str, Tensor] | list[VideoResult]:
        """Training items -> losses by name; in evaluation mode, test items (whole videos) -> one result each."""
        if not self.training:
            return [segment_video(self, item, self.video) for item in cast(list[TestVideo], batched_inputs)]
        clips = cast(list[TrainingClip], batched_inputs)
        label_sets = [clip["label_set"] for clip in clips]
        predicted: list[tuple[Sequence[Predictions], FrameTargets]] = []
        of_frames: dict[str, Tensor] = {}  # the auxiliary loss, averaged over clips
        for items in self._by_size(clips):
            images, targets = self.collate(items)
            names = [item["label_set"] for item in items]
            ids, prompted, forcing = self._preprocess(targets)
            output = self._run(images, ids, forcing, names, targets, prompted)
            frames = frame_targets(targets, forcing)
            predicted.append((output.layers, frames))
            if self.frame_classifier is not None:
                by_frame = [name for name in names for _ in range(images.shape[1])]
                share = len(items) / len(clips)
                for name, loss in self.frame_classifier(output.x.flatten(0, 1), frames, by_frame).items():
                    of_frames[name] = of_frames.get(name, 0.0) + share * loss
        losses = self.criterion.grouped(predicted) | of_frames
        losses["loss_det_ce"] = losses["loss_det_ce"] + self._unused_classifiers(label_sets)
        return losses

    def _by_size(self, items: Sequence[TrainingClip]) -> list[list[TrainingClip]]:
        """Group clips by length and padded size. Padding a clip to the size of a larger one would change its features
        through norms and attention."""
        groups: dict[tuple[int, int, int], list[TrainingClip]] = {}
        for item in items:
            frames, _, height, width = item["image"].shape
            groups.setdefault((frames, *self.padded_size(height, width)), []).append(item)
        return list(groups.values())

    def collate(self, items: list[TrainingClip]) -> tuple[Tensor, ClipTargets]:
        """Items of one padded size -> normalised images (B, T, 3, H_pad, W_pad) and their targets."""
        for item in items:
            self.check_label_set(item["label_set"])
        height, width = (max(item["image"].shape[axis] for item in items) for axis in (2, 3))
        images = torch.stack([self.normalise(item["image"], (height, width)) for item in items])
        size = (images.shape[-2], images.shape[-1])
        return images, ClipTargets.from_items(items, size=size, device=self.device)

    def _preprocess(self, targets: ClipTargets) -> tuple[Tensor, Tensor, TeacherForcing]:
        """Sampler and Preprocess of Alg. 2.

        Returns:
            (B, N, D) ID vectors, one per instance; bool (B) prompted clips; history and targets of every frame.
        """
        clips, rows = targets.classes.shape
        ids = self.id_pool(upload(torch.stack([self.id_pool.sample(rows) for _ in range(clips)]), self.device))
        prompted = targets.prompted | (torch.rand(clips, device=self.device) < self.prompt_prob)
        visible = targets.visible & targets.labelled[:, :, None]
        switch = draw_switch_times(visible, prompted=prompted, prompt_index=self.prompt_index)
        forcing = preprocess(targets, switch, keep_hidden=self.keep_hidden)
        if self.detect_cells:
            forcing.detect &= targets.at_stride4.flatten(3).sum(-1) >= self.detect_cells
        if self.history_noise is not None:
            forcing.history = self.history_noise(forcing.history, forcing.in_use)
        return ids, prompted, forcing

    def _run(
        self,
        images: Tensor,
        ids: Tensor,
        forcing: TeacherForcing,
        label_sets: Sequence[str],
        targets: ClipTargets,
        prompted: Tensor,
    ) -> forms.ClipOutput:
        """Run the network in the form set by ``TRAIN.MODE``."""
        if self.train_mode == "iterative":
            return forms.iterative(self, images, ids, forcing, label_sets)
        if self.train_mode == "rollout":
            return forms.rollout(
                *(self, images, ids, forcing, label_sets),
                targets=targets,
                prompted=prompted,
                criterion=self.criterion,
            )
        # Skip the draw without own passes, to keep the RNG in step with iterative mode.
        passes = int(torch.randint(self.own_passes + 1, ())) if self.own_passes else 0
        if images.shape[1] == 1:
            passes = 0  # a single frame has no history
        return forms.parallel(self, images, ids, forcing, label_sets, own_passes=passes)

    def _unused_classifiers(self, label_sets: Sequence[str]) -> Tensor:
        """Zero, with a gradient for the classifiers of label sets without a clip in this batch.

        Distributed training waits for the gradients of all parameters.
        """
        tables = [self.pixel_decoder.class_embed]
        if self.frame_classifier is not None:
            tables.append(self.frame_classifier.class_embed)
        unused = [module for table in tables for name, module in table.items() if name not in label_sets]
        return 0.0 * sum((p.sum() for module in unused for p in module.parameters()), self.x_start.new_zeros(()))
