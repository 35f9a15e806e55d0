# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Training of the Pixel Decoder from recorded inputs (tools/train_decoder.py).

Shape shorthand:
    B: clips; T: frames of a clip; BT: frames, of one size
    N: instances (rows of A)
    D: channels; C_i: channels of the backbone's level i
    h, w: feature size at stride 8; H4, W4: mask size at stride 4; H_pad, W_pad: padded image size in pixels
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.data.build import build_train_loader
from ausm_d2.data.items import TrainingClip
from ausm_d2.engine import Trainer, check_datasets
from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write
from ausm_d2.meta_arch import AUSM
from ausm_d2.modeling.pixel_decoder import memory_levels
from ausm_d2.training.forms import clip_inputs
from ausm_d2.training.own_history import history_after_passes
from ausm_d2.training.targets import FrameTargets
from ausm_d2.training.teacher_forcing import frame_targets

_SHARD = 64  # frames of a file

logger = logging.getLogger(__name__)
Frame = dict[str, Any]
"""A recorded frame: ``backbone`` [(C_i, h_i, w_i)] of strides 8 and up, ``g`` (D, h, w), ``mask_features`` (D, H4, W4)
and ``ids`` (N, D) in half precision; ``in_use`` (N); ``masks``, the bits of (N, H_pad, W_pad), and ``size``, their
shape; ``label_set``; the other fields of FrameTargets."""


@META_ARCH_REGISTRY.register()
class AUSMDecoder(AUSM):
    """AUSM that trains on recorded frames."""

    @torch.no_grad()
    def record(self, clips: list[TrainingClip]) -> Iterator[Frame]:
        """The frames of clips of one size. ``TRAIN.PROMPT_PROB``, ``OWN_PASSES`` and the rest are as in training."""
        if self.mask_gate is not None:
            raise UserError("MODEL.AUSM.START: residual, expected lookup: the decoder reads G_t alone")
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
        _, mask_features = self.decoder_features(
            x, g, inputs.mask_features.flatten(0, 1), [each.flatten(0, 1) for each in inputs.levels]
        )
        wanted = frame_targets(targets, forcing)
        for i in range(len(g)):
            if not (wanted.detect[i] | wanted.track[i]).any():
                continue
            masks = wanted.masks[i]
            yield {
                "backbone": [levels[name][i].half() for name in self.frame_encoder.in_features[1:]],
                "g": g[i].half(),
                "mask_features": mask_features[i].half(),
                "ids": rows.flatten(0, 1)[i].half(),
                "in_use": forcing.in_use.flatten(0, 1)[i].clone(),
                "masks": torch.from_numpy(np.packbits(masks.numpy())),
                "size": tuple(masks.shape),
                "label_set": inputs.label_sets[i // images.shape[1]],
            } | {name: getattr(wanted, name)[i].clone() for name in _FLAGS}

    def forward(self, batched_inputs: list[Any]) -> Any:
        """Recorded frames -> losses by name; in evaluation mode as :class:`AUSM`."""
        if not self.training:
            return super().forward(batched_inputs)
        groups = []
        for _, group in groupby(sorted(batched_inputs, key=_padded), key=_padded):
            groups.append(self._decode_recorded(list(group)))
        losses = self.criterion.grouped(groups)
        losses["loss_det_ce"] = losses["loss_det_ce"] + self._unused_classifiers(
            [frame["label_set"] for frame in batched_inputs]
        )
        return losses

    def _decode_recorded(self, frames: list[Frame]) -> tuple[Any, FrameTargets]:
        targets, ids, in_use = _collate(frames, self.x_start.shape[0])

        def stacked(values: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(values)).float().contiguous(memory_format=torch.channels_last)

        g, mask_features = stacked([each["g"] for each in frames]), stacked([each["mask_features"] for each in frames])
        sources = None
        if self.frame_encoder.proposal_pyramid is not None:
            levels = [stacked(level) for level in zip(*(each["backbone"] for each in frames), strict=True)]
            sources = self.frame_encoder.proposal_pyramid(levels), g
        memory, names = memory_levels(g, self.memory_strides), [each["label_set"] for each in frames]
        return self.pixel_decoder(memory, mask_features, ids, in_use, names, sources=sources), targets


_FLAGS = ("classes", "visible", "track", "detect", "labelled", "exhaustive")


def _padded(frame: Frame) -> tuple[int, int]:
    return frame["size"][1], frame["size"][2]


def _collate(frames: list[Frame], dim: int) -> tuple[FrameTargets, Tensor, Tensor]:
    """Frames of one padded size -> targets, (BT, N, D) ids and bool (BT, N) in use."""
    rows, (height, width) = max(frame["size"][0] for frame in frames), _padded(frames[0])
    masks = torch.zeros(len(frames), rows, height, width, dtype=torch.bool)
    ids, in_use = torch.zeros(len(frames), rows, dim), torch.zeros(len(frames), rows, dtype=torch.bool)
    flags = {name: torch.zeros(len(frames), rows, dtype=frames[0][name].dtype) for name in _FLAGS[:4]}
    for i, frame in enumerate(frames):
        count = frame["size"][0]
        bits = np.unpackbits(frame["masks"].numpy(), count=count * height * width)
        masks[i, :count] = torch.from_numpy(bits.reshape(count, height, width).astype(bool))
        ids[i, :count], in_use[i, :count] = frame["ids"], frame["in_use"]
        for name, values in flags.items():
            values[i, :count] = frame[name]
    whole = {name: torch.stack([frame[name] for frame in frames]) for name in _FLAGS[4:]}
    return FrameTargets(masks=masks, **flags, **whole), ids, in_use


def _read_frames(file: Path) -> list[Frame]:
    """The frames of a file, mapped to memory.

    Raises:
        UserError: if it is no whole file of :func:`record`.
    """
    try:
        frames = torch.load(file, mmap=True, weights_only=True)
    except Exception as error:  # torch, zipfile and pickle raise various exceptions
        raise UserError(f"{file}: cannot be read as recorded frames: {str(error).splitlines()[0]}") from None
    wanted = {"backbone", "g", "mask_features", "ids", "in_use", "masks", "size", "label_set", *_FLAGS}
    if not isinstance(frames, list) or any(not isinstance(each, dict) or each.keys() != wanted for each in frames):
        raise UserError(f"{file}: expected recorded frames, a list of {', '.join(sorted(wanted))}")
    return frames


class RecordedBatches:
    """Endless batches of recorded frames, each of one size and of one folder: a function of seed and iteration."""

    def __init__(self, folders: Sequence[Path], shares: Sequence[float], *, batch: int, seed: int) -> None:
        """
        Args:
            folders: of :func:`record`.
            shares: how often each is drawn, relative to the others.
            batch: frames of a batch.

        Raises:
            UserError: if a folder has no frames, or a file cannot be read.
        """
        self.seed, self._start, self._batch = seed, 0, batch
        self._shares = np.asarray(shares, dtype=np.float64) / np.sum(shares)
        self._frames = [self._read(folder) for folder in folders]
        self._of_size: list[dict[tuple[int, int], list[Frame]]] = []
        for frames in self._frames:
            of_size: dict[tuple[int, int], list[Frame]] = {}
            for frame in frames:
                of_size.setdefault(_padded(frame), []).append(frame)
            self._of_size.append(of_size)

    @staticmethod
    def _read(folder: Path) -> list[Frame]:
        files = sorted(folder.glob("*.pt"))
        if not files:
            raise UserError(f"{folder}: no recorded frames (*.pt)")
        return [frame for file in files for frame in _read_frames(file)]

    def continue_from(self, iteration: int, seed: int) -> None:
        """Begin with the batch of an iteration, counted from 0."""
        self._start, self.seed = iteration, seed

    def __iter__(self) -> Iterator[list[Frame]]:
        iteration = self._start
        while True:
            rng = np.random.default_rng([self.seed, iteration])
            folder = int(rng.choice(len(self._frames), p=self._shares))
            frames = self._frames[folder]
            same = self._of_size[folder][_padded(frames[int(rng.integers(len(frames)))])]
            yield [same[int(rng.integers(len(same)))] for _ in range(self._batch)]
            iteration += 1


class DecoderTrainer(Trainer):
    """The trainer, over recorded frames."""

    folders: ClassVar[list[Path]]
    shares: ClassVar[list[float]]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return RecordedBatches(cls.folders, cls.shares, batch=cfg.SOLVER.IMS_PER_BATCH, seed=max(cfg.SEED, 0))


def record(cfg: CfgNode, folder: Path, count: int) -> None:
    """Record at least ``count`` frames."""
    check_datasets(cfg, cfg.DATASETS.TRAIN)
    model = AUSMDecoder(cfg).eval()
    AUSMCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    torch.manual_seed(max(cfg.SEED, 0))
    folder.mkdir(parents=True, exist_ok=True)
    shard: list[Frame] = []
    written = 0
    for clips in build_train_loader(cfg):
        for clip in clips:
            shard += model.record([clip])
        while len(shard) >= _SHARD:
            with atomic_write(folder / f"{cfg.SEED}_{written:06d}.pt") as path:
                torch.save(shard[:_SHARD], path)
            shard, written = shard[_SHARD:], written + _SHARD
            logger.info("%d of %d frames", written, count)
        if written >= count:
            return
