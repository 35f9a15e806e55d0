# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""AUSM (arXiv 2508.19242) as a Detectron2 meta-architecture: batched inputs -> losses | predictions.

Shape shorthand:
    B: clips; T: frames of a clip; BT: both, flattened
    N: rows of A; V: detection queries; Q: N + V
    D: channels
    H, W: padded image size in pixels; h, w: at stride 8; H4, W4: at stride 4
    K: classes of the largest label set of the batch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ausm_d2.config import check_model_config
from ausm_d2.errors import UserError
from ausm_d2.modeling.frame_encoder import FrameEncoder, FrameFeatures
from ausm_d2.modeling.history import HistoryCompressor, HistoryDecoder, HistoryMarker, Memory, ObjectVectors
from ausm_d2.modeling.id_pool import IDPool
from ausm_d2.modeling.pixel_decoder import PixelDecoder, Predictions, memory_levels
from ausm_d2.modeling.resize import resize_to
from ausm_d2.streaming.video import VideoSettings, segment_video
from ausm_d2.training.criterion import SetCriterion
from ausm_d2.training.frame_class import FrameClassifier
from ausm_d2.training.rollout import history_of_pass, own_history
from ausm_d2.training.targets import ClipTargets
from ausm_d2.training.teacher_forcing import HistoryNoise, TeacherForcing, draw_switch_times, frame_targets, preprocess

SIZE_DIVISIBILITY = 32  # the coarsest stride of the frame encoder


class ClipOutput(NamedTuple):
    """What the training forms compute of B clips of T frames."""

    layers: list[Predictions]  # by decoder layer, over BT frames
    x: Tensor  # (B, T, D, h, w) X_t


@META_ARCH_REGISTRY.register()
class AUSM(nn.Module):
    """Autoregressive universal segmentation model.

    One set of weights runs in three ways that compute the same function: all frames of a clip at once (training),
    frame by frame with gradients through the memory (``TRAIN.MODE: iterative | rollout``), and as a stream
    (:class:`~ausm_d2.streaming.stream.Stream`, inference).
    """

    pixel_mean: Tensor  # (3, 1, 1)
    pixel_std: Tensor  # (3, 1, 1)

    @configurable
    def __init__(
        self,
        *,
        frame_encoder: FrameEncoder,
        compressor: HistoryCompressor,
        decoder: HistoryDecoder,
        pixel_decoder: PixelDecoder,
        criterion: SetCriterion,
        frame_classifier: FrameClassifier | None,
        hidden_dim: int,
        num_id: int,
        heads: dict[str, int],
        memory_strides: Sequence[int],
        marker_eps: float,
        object_vectors: ObjectVectors | None,
        prompt_index: str,
        prompt_prob: float,
        train_mode: str,
        own_passes: int,
        history_noise: HistoryNoise | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        video: VideoSettings,
    ) -> None:
        """
        Args:
            frame_encoder, compressor, decoder, pixel_decoder: the modules of Sec. 3.
            criterion: the loss.
            frame_classifier: a further loss, on X_t (docs/deviations.md, 18).
            hidden_dim: D.
            num_id: N_id.
            heads: number of classes by label set.
            memory_strides: strides G_t is pooled to for the Pixel Decoder.
            marker_eps: eps of the History Marker.
            object_vectors: what is handed on in place of marks (an ablation; docs/deviations.md, 19).
            prompt_index: "frame" or "zero" (docs/deviations.md, 2).
            prompt_prob: probability that a clip's objects switch at their first visible frame.
            train_mode: "parallel", "iterative" or "rollout".
            own_passes: most passes over a clip on its own history before the one that counts ("parallel").
            history_noise: applied to M in training; None: ground truth as it is.
            pixel_mean, pixel_std: of RGB in 0..255.
            video: how whole videos are segmented in evaluation.
        """
        super().__init__()
        self.frame_encoder = frame_encoder
        self.marker = HistoryMarker(eps=marker_eps)
        self.object_vectors = object_vectors
        self.compressor = compressor
        self.decoder = decoder
        self.pixel_decoder = pixel_decoder
        self.id_pool = IDPool(num_id, hidden_dim)
        self.x_start = nn.Parameter(torch.randn(hidden_dim) * 0.02)  # X_0, tiled over space
        self.criterion = criterion
        self.frame_classifier = frame_classifier
        self.heads = heads
        self.memory_strides = tuple(memory_strides)
        self.prompt_index = prompt_index
        self.prompt_prob = prompt_prob
        self.train_mode = train_mode
        self.own_passes = own_passes
        self.history_noise = history_noise
        self.video = video
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_model_config(cfg)
        ausm = cfg.MODEL.AUSM
        return {
            "frame_encoder": FrameEncoder(cfg),
            "compressor": HistoryCompressor(cfg),
            "decoder": HistoryDecoder(cfg),
            "pixel_decoder": PixelDecoder(cfg),
            "criterion": SetCriterion(cfg),
            "frame_classifier": FrameClassifier(cfg) if ausm.TRAIN.FRAME_CLASS_WEIGHT else None,
            "hidden_dim": ausm.HIDDEN_DIM,
            "num_id": ausm.NUM_ID,
            "heads": dict(ausm.HEADS),
            "memory_strides": ausm.PIXEL_DECODER.MEMORY_STRIDES,
            "marker_eps": ausm.MARKER_EPS,
            "object_vectors": ObjectVectors(cfg) if ausm.PROPAGATE == "vectors" else None,
            "prompt_index": ausm.PROMPT_INDEX,
            "prompt_prob": ausm.TRAIN.PROMPT_PROB,
            "train_mode": ausm.TRAIN.MODE,
            "own_passes": ausm.TRAIN.OWN_PASSES,
            "history_noise": HistoryNoise.from_config(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "video": VideoSettings.from_config(cfg),
        }

    @property
    def device(self) -> torch.device:
        return self.x_start.device

    def check_head(self, head: str) -> None:
        """Raises UserError if the model has no head of that name."""
        if head not in self.heads:
            raise UserError(f"MODEL.AUSM.HEADS: no head '{head}', the config has {sorted(self.heads)}")

    def normalise(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images (..., 3, H', W') in 0..255 -> normalised, zero-padded to at least ``size``: (..., 3, H, W)."""
        images = (images.to(self.device).float() - self.pixel_mean) / self.pixel_std
        height, width = images.shape[-2:]
        bottom, right = (max(side, least) for side, least in zip((height, width), size or (0, 0), strict=True))
        right, bottom = right + -right % SIZE_DIVISIBILITY, bottom + -bottom % SIZE_DIVISIBILITY
        if (bottom, right) == (SIZE_DIVISIBILITY, SIZE_DIVISIBILITY):
            right *= 2  # the group norms need more than one cell at the coarsest stride
        return F.pad(images, (0, right - width, 0, bottom - height))

    def encode(self, images: Tensor) -> FrameFeatures:
        """Frame encoder: (BT, 3, H, W) -> X_t and mask features; no information between frames."""
        return self.frame_encoder(images)

    def predict(
        self,
        *,
        x: Tensor,
        mask_features: Tensor,
        x_prev: Tensor,
        ids: Tensor,
        in_use: Tensor,
        history: Tensor,
        heads: Sequence[str],
        memory: Memory | None = None,
        intermediate: bool = True,
    ) -> tuple[list[Predictions], Memory | None]:
        """The body of Alg. 1 and Alg. 2: X_t, X_{t-1}, A_{t-1}, M_{t-1} -> y_trk, y_det, for T frames at once.

        Args:
            x: (B, T, D, h, w) X_t.
            mask_features: (B, T, D, H4, W4).
            x_prev: (B, T, D, h, w) X_{t-1}.
            ids: (B, N, D) ID vectors.
            in_use: bool (B, T, N): row i is in A_{t-1}.
            history: (B, T, N, H4, W4) masks M_{t-1}, zero for rows that are not in use.
            heads: label set of each of the B clips.
            memory: of the frames before; None: the clip starts here and no memory is kept.
            intermediate: also the predictions of the Pixel Decoder's earlier layers.

        Returns:
            Predictions by layer, over BT frames, and the memory after the last frame.
        """
        frames = x.shape[1]
        e, rows, vectors = x_prev.to(x.dtype), ids[:, None].expand(-1, frames, -1, -1), None
        if self.object_vectors is None:
            e = e + self.marker(ids[:, None], history).to(x.dtype)
        else:
            rows, vectors = self.object_vectors(ids, e, history, memory.vectors if memory else None)
        f, ssm = self.compressor(e, memory.ssm if memory else None)
        g = self.decoder(x.flatten(0, 1), f.flatten(0, 1))
        mask_features = mask_features.flatten(0, 1)
        layers = self.pixel_decoder(
            memory_levels(g, self.memory_strides),
            mask_features + resize_to(g, mask_features),
            rows.flatten(0, 1).to(g.dtype),
            in_use.flatten(0, 1),
            [head for head in heads for _ in range(frames)],
            intermediate=intermediate,
        )
        return layers, Memory(ssm, vectors) if memory else None

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Training items -> losses by name; in evaluation mode, test items (whole videos) -> one result each."""
        if not self.training:
            return [segment_video(self, item, self.video) for item in batched_inputs]
        images, targets = self._collate(batched_inputs)
        heads = [item["head"] for item in batched_inputs]
        # N_gt vectors of B, one per instance
        rows = targets.classes.shape[1]
        ids = self.id_pool(torch.stack([self.id_pool.sample(rows) for _ in heads]).to(self.device))
        prompted = targets.prompted | (torch.rand(len(heads), device=self.device) < self.prompt_prob)
        visible = targets.visible & targets.labelled[:, :, None]
        switch = draw_switch_times(visible, prompted=prompted, prompt_index=self.prompt_index)
        forcing = preprocess(targets, switch)
        if self.history_noise is not None:
            forcing.history = self.history_noise(forcing.history, forcing.in_use)

        if self.train_mode == "parallel":
            passes = int(torch.randint(self.own_passes + 1, ())) if self.own_passes else 0  # 0: draws as iterative
            output = self.forward_parallel(images, ids, forcing, heads, own_passes=passes)
        else:
            rollout = (targets, prompted) if self.train_mode == "rollout" else None
            output = self.forward_iterative(images, ids, forcing, heads, rollout=rollout)
        frames = frame_targets(targets, forcing)
        losses = self.criterion(output.layers, frames)
        if self.frame_classifier is not None:
            frame_heads = [head for head in heads for _ in range(images.shape[1])]
            losses |= self.frame_classifier(output.x.flatten(0, 1), frames, frame_heads)
        losses["loss_det_ce"] = losses["loss_det_ce"] + self._idle_heads(heads)
        return losses

    def _idle_heads(self, heads: Sequence[str]) -> Tensor:
        """Zero, with a gradient for each head that has no clip here: distributed training waits for all of them."""
        tables = [self.pixel_decoder.class_embed]
        if self.frame_classifier is not None:
            tables.append(self.frame_classifier.class_embed)
        idle = [module for table in tables for name, module in table.items() if name not in heads]
        return 0.0 * sum((p.sum() for module in idle for p in module.parameters()), self.x_start.new_zeros(()))

    def _collate(self, items: list[dict[str, Any]]) -> tuple[Tensor, ClipTargets]:
        """Items -> normalised images (B, T, 3, H, W) and their targets, padded to the largest of the batch."""
        for item in items:
            self.check_head(item["head"])
        height, width = (max(item["image"].shape[axis] for item in items) for axis in (2, 3))
        images = torch.stack([self.normalise(item["image"], (height, width)) for item in items])
        size = (images.shape[-2], images.shape[-1])
        return images, ClipTargets.from_items(items, size=size, device=self.device)

    def forward_parallel(
        self, images: Tensor, ids: Tensor, forcing: TeacherForcing, heads: Sequence[str], *, own_passes: int = 0
    ) -> ClipOutput:
        """Alg. 2: all frames of the clips at once.

        Args:
            images: (B, T, 3, H, W) normalised.
            ids: (B, N, D).
            forcing: history and targets of every frame.
            heads: label set of each clip.
            own_passes: times that the history is replaced by what the model makes of it (deviations, 10).
        """
        features = self.encode(images.flatten(0, 1))
        x = features.x.unflatten(0, images.shape[:2])
        start = self.x_start.to(x.dtype)[:, None, None].expand(x.shape[0], 1, -1, *x.shape[-2:])
        inputs = {
            "x": x,
            "mask_features": features.mask_features.unflatten(0, images.shape[:2]),
            "x_prev": torch.cat([start, x[:, :-1]], dim=1),
            "ids": ids,
            "in_use": forcing.in_use,
            "heads": heads,
        }
        for _ in range(own_passes):
            with torch.no_grad():
                layers, _ = self.predict(**inputs, history=forcing.history, intermediate=False)
            forcing = replace(forcing, history=history_of_pass(layers[-1], forcing))
        layers, _ = self.predict(**inputs, history=forcing.history)
        return ClipOutput(layers, x)

    def forward_iterative(
        self,
        images: Tensor,
        ids: Tensor,
        forcing: TeacherForcing,
        heads: Sequence[str],
        *,
        rollout: tuple[ClipTargets, Tensor] | None = None,
    ) -> ClipOutput:
        """The same function frame by frame, with gradients through the memory (Fig. 4's baseline; deviations, 13).

        Args:
            images, ids, forcing, heads: as :meth:`forward_parallel`.
            rollout: targets and, per clip, whether its objects are given: then M comes from the model's own,
                detached predictions instead of the ground truth (deviations, 10).
        """
        batch, frames = images.shape[:2]
        xs: list[Tensor] = []
        memory: Memory | None = None
        steps = []
        history = forcing.history[:, 0]
        for t in range(frames):
            features = self.encode(images[:, t])
            x = features.x
            if not xs:
                x_prev = self.x_start.to(x.dtype)[:, None, None].expand_as(x)
                pixels = batch * x.shape[-2] * x.shape[-1]
                memory = Memory(self.compressor.init_states(pixels, device=x.device, dtype=x.dtype))
            layers, memory = self.predict(
                x=x[:, None],
                mask_features=features.mask_features[:, None],
                x_prev=x_prev[:, None],
                ids=ids,
                in_use=forcing.in_use[:, t, None],
                history=history[:, None],
                heads=heads,
                memory=memory,
            )
            steps.append(layers)
            x_prev = x
            xs.append(x)
            if t + 1 < frames:
                history = forcing.history[:, t + 1]
                if rollout is not None:
                    history = own_history(t, layers[-1], forcing, *rollout, criterion=self.criterion)
        layers = [
            Predictions(*(torch.stack(each, dim=1).flatten(0, 1) for each in zip(*layer, strict=True)))
            for layer in zip(*steps, strict=True)
        ]
        return ClipOutput(layers, torch.stack(xs, dim=1))
