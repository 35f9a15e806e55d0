# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The Pixel Decoder (paper, Sec. 3): Mask2Former's masked-attention decoder over concat(A_{t-1}, V) and G_t.

Parameter names and shapes are those of Mask2Former's ``sem_seg_head.predictor``, except the classifiers: one per label
set.

Shape shorthand:
    BT: frames; no information passes between them
    N: rows of A, padded with rows that are not in use
    N_det: detection queries V; Q: N + N_det
    D: channels
    h, w: feature size at stride 8; h_l, w_l: of memory level l; H4, W4: mask size at stride 4
    K: classes of the largest label set among the frames
    S: pixels of a memory level
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ausm_d2.config import label_sets
from ausm_d2.modeling.attention import Attention, FeedForward
from ausm_d2.modeling.checkpointing import run_block
from ausm_d2.modeling.norm import LayerNorm
from ausm_d2.modeling.position import sine_tokens
from ausm_d2.modeling.proposals import CellPredictions, Proposals, Queries
from ausm_d2.modeling.resize import resize_to
from ausm_d2.modeling.transfer import upload


class Predictions(NamedTuple):
    """Predictions of one decoder layer. The first N rows are y_trk, the rest y_det."""

    class_logits: Tensor  # (BT, Q, K + 1); background last; -inf for classes outside the frame's label set
    mask_logits: Tensor  # (BT, Q, H4, W4)
    # Of the last layer, if V is made from proposals: of all cells, and (BT, N_det) of those that were chosen
    cells: CellPredictions | None = None
    objectness: Tensor | None = None


def mask_confidence(predictions: Predictions) -> Tensor:
    """(Q, 1) of one frame: mean foreground probability of each mask, 0 for empty ones. For rows of V made from
    proposals it is multiplied by the square root of the objectness."""
    logits = predictions.mask_logits[0].float()
    inside = (logits > 0).flatten(1)
    confidence = (logits.sigmoid().flatten(1) * inside).sum(dim=1, keepdim=True)
    confidence = confidence / inside.sum(dim=1, keepdim=True).clamp(min=1)
    if predictions.objectness is None:
        return confidence
    objectness = predictions.objectness[0, :, None]
    rows = len(confidence) - len(objectness)
    return torch.cat([confidence[:rows], confidence[rows:] * objectness.sqrt()])


def stack_frames(frames: Sequence[Predictions]) -> Predictions:
    """Predictions of one layer for T frames of B clips, B rows each -> for BT frames."""

    def stacked(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values), dim=1).flatten(0, 1)

    logits = (stacked([each.class_logits for each in frames]), stacked([each.mask_logits for each in frames]))
    cells = [each.cells for each in frames if each.cells is not None]
    return Predictions(*logits, CellPredictions(*map(stacked, zip(*cells, strict=True))) if cells else None)


class CrossAttentionLayer(nn.Module):
    """Post-norm attention from the queries to the pixels of one memory level."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(dim, head_dim=head_dim)
        self.multihead_attn.init_as_lookup()  # a row of A initially attends to its own mark
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor, query_position: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return self.norm(x + self.multihead_attn(x + query_position, key, value, mask=mask))


class SelfAttentionLayer(nn.Module):
    """Post-norm attention among the queries."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, head_dim=head_dim)
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor, query_position: Tensor, mask: Tensor) -> Tensor:
        query = x + query_position
        return self.norm(x + self.self_attn(query, query, x, mask=mask))


class FFNLayer(FeedForward):
    """Post-norm feed-forward."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(dim, hidden_dim)
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + super().forward(x))


class MaskEmbed(nn.Module):
    """Three linear layers, queries -> mask embeddings."""

    def __init__(self, dim: int, mask_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, mask_dim)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layers[0](x))
        x = F.relu(self.layers[1](x))
        return self.layers[2](x)


def memory_levels(g: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """Average (BT, D, h, w) features of stride 8 down to each of ``strides``."""
    return [g if stride == 8 else F.avg_pool2d(g, stride // 8, ceil_mode=True) for stride in strides]


def _layer(
    cross: nn.Module,
    attend: nn.Module,
    ffn: nn.Module,
    position: Tensor,
    alive: Tensor,
    x: Tensor,
    key: Tensor,
    value: Tensor,
    inside: Tensor,
) -> Tensor:
    """One layer: cross-attention within the masks ``inside``, self-attention among the rows ``alive``, feed-forward."""
    return ffn(attend(cross(x, position, key, value, inside[:, None]), position, alive))


def _attention_mask(mask_logits: Tensor) -> Tensor:
    """(BT, Q, h_l, w_l) logits -> bool (BT, Q, S): inside the predicted mask; an empty mask attends everywhere."""
    inside = (mask_logits > 0).flatten(2)
    inside |= ~inside.any(dim=-1, keepdim=True)
    return inside


class PixelDecoder(nn.Module):
    """Masked-attention decoder with tracking rows (A), detection rows (V) and one classifier per label set."""

    @configurable
    def __init__(
        self,
        dim: int,
        *,
        num_layers: int,
        head_dim: int,
        dim_feedforward: int,
        num_levels: int,
        num_det: int,
        label_sets: dict[str, int],
        proposals: bool = False,
        checkpointing: bool = False,
    ) -> None:
        """
        Args:
            dim: channels D of memory, queries and mask features.
            num_layers: decoder layers, each cross-attention, self-attention, feed-forward.
            head_dim: width of an attention head.
            dim_feedforward: hidden channels of the feed-forward.
            num_levels: memory levels, cycled through by the layers.
            num_det: N_det, rows of V.
            label_sets: number of classes by name of the label set.
            proposals: V is made from the best cells of the frame (proposals.py), plus one learned row that all share;
                False: every row of V is learned (paper).
            checkpointing: recompute the activations of the layers in the backward pass.
        """
        super().__init__()
        self.checkpointing = checkpointing
        self.num_levels = num_levels
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(dim, head_dim) for _ in range(num_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(dim, head_dim) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(FFNLayer(dim, dim_feedforward) for _ in range(num_layers))
        self.decoder_norm = LayerNorm(dim)
        self.proposals = Proposals(dim, num_det=num_det) if proposals else None
        self.query_feat = nn.Embedding(1 if proposals else num_det, dim)  # V, content
        self.query_embed = nn.Embedding(1 if proposals else num_det, dim)  # V, position
        self.track_embed = nn.Embedding(1, dim)  # A, one position shared by all rows
        self.level_embed = nn.Embedding(num_levels, dim)
        self.mask_embed = MaskEmbed(dim, dim)
        self.class_embed = nn.ModuleDict({name: nn.Linear(dim, classes + 1) for name, classes in label_sets.items()})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        decoder = cfg.MODEL.AUSM.PIXEL_DECODER
        return {
            "dim": cfg.MODEL.AUSM.HIDDEN_DIM,
            "num_layers": decoder.LAYERS,
            "head_dim": decoder.HEAD_DIM,
            "dim_feedforward": decoder.DIM_FEEDFORWARD,
            "num_levels": len(decoder.MEMORY_STRIDES),
            "num_det": decoder.NUM_DET,
            "label_sets": label_sets(cfg),
            "proposals": decoder.QUERIES == "proposals",
            "checkpointing": cfg.MODEL.AUSM.TRAIN.CHECKPOINTING,
        }

    def classify(self, x: Tensor, label_sets: Sequence[str]) -> Tensor:
        """(BT, Q, D) normalised queries and the label set of every frame -> (BT, Q, K + 1) class logits."""
        names = sorted(set(label_sets))
        if len(names) == 1:
            return self.class_embed[names[0]](x)
        logits = {name: self.class_embed[name](x) for name in names}
        width = max(each.shape[-1] for each in logits.values())
        out = next(iter(logits.values())).new_full((*x.shape[:-1], width), float("-inf"))
        for name, values in logits.items():
            rows = upload(torch.tensor([label_set == name for label_set in label_sets]), x.device)
            gap = out.new_full((*x.shape[:-1], width - values.shape[-1]), float("-inf"))
            values = torch.cat([values[..., :-1], gap, values[..., -1:]], dim=-1)
            out = torch.where(rows[:, None, None], values, out)
        return out

    def _predict(
        self, x: Tensor, mask_features: Tensor, prior: Tensor | None, label_sets: Sequence[str]
    ) -> Predictions:
        normed = self.decoder_norm(x)
        return Predictions(self.classify(normed, label_sets), self._mask_logits(normed, mask_features, prior))

    def _mask_logits(self, normed: Tensor, mask_features: Tensor, prior: Tensor | None) -> Tensor:
        logits = torch.einsum("bqd,bdhw->bqhw", self.mask_embed(normed), mask_features)
        if prior is None:
            return logits
        rows = logits.shape[1] - prior.shape[1]
        if not logits.requires_grad:
            logits[:, rows:] += prior.to(logits.dtype)
            return logits
        return torch.cat([logits[:, :rows], logits[:, rows:] + prior.to(logits.dtype)], dim=1)

    def _detection_rows(
        self, batch: int, sources: tuple[Tensor, Tensor] | None, mask_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Queries | None]:
        """Content and position of V, (BT, N_det, D) each, and the proposals that they were made from."""
        if self.proposals is None:
            return self.query_feat.weight.expand(batch, -1, -1), self.query_embed.weight.expand(batch, -1, -1), None
        assert sources is not None
        made = self.proposals(*sources, mask_size)
        return made.content + self.query_feat.weight, made.position + self.query_embed.weight, made

    def _memory_tokens(self, memory: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values (BT, S, D) of each memory level; only the keys have positions."""
        values, keys = [], []
        for level, features in enumerate(memory):
            tokens = features.flatten(2).transpose(1, 2) + self.level_embed.weight[level].to(features.dtype)
            _, dim, height, width = features.shape
            values.append(tokens)
            keys.append(tokens + sine_tokens(height, width, dim, device=features.device, dtype=features.dtype))
        return keys, values

    def forward(
        self,
        memory: Sequence[Tensor],
        mask_features: Tensor,
        ids: Tensor,
        in_use: Tensor,
        label_sets: Sequence[str],
        *,
        sources: tuple[Tensor, Tensor] | None = None,
        intermediate: bool = True,
    ) -> list[Predictions]:
        """
        Args:
            memory: features by level, each (BT, D, h_l, w_l).
            mask_features: (BT, D, H4, W4).
            ids: (BT, N, D) ID vectors A_{t-1}; N may be 0.
            in_use: bool (BT, N); False: padding, which affects no other row.
            label_sets: name of the label set of each of the BT frames.
            sources: what the proposals are made from: pyramid and G_t, (BT, D, h, w) each.
            intermediate: also return the predictions before the first layer and after the earlier layers (training).

        Returns:
            Predictions by layer; the last entry is the result.
        """
        batch, num_trk = in_use.shape
        mask_size = (mask_features.shape[-2], mask_features.shape[-1])
        content, place, made = self._detection_rows(batch, sources, mask_size)
        prior = None if made is None else made.prior
        x = torch.cat([ids, content.to(ids.dtype)], dim=1)
        position = torch.cat([self.track_embed.weight.expand(batch, num_trk, -1), place], dim=1)
        alive = torch.cat([in_use, in_use.new_ones(batch, content.shape[1])], dim=1)[:, None, None]

        keys, values = self._memory_tokens(memory)
        out = [self._predict(x, mask_features, prior, label_sets)] if intermediate else []
        # Logits are linear in the mask features: for attention masks alone, resize the features instead of the logits.
        resized = [] if intermediate else [resize_to(mask_features, features) for features in memory]
        priors = [] if intermediate else [None if prior is None else resize_to(prior, features) for features in memory]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross, attend, ffn) in enumerate(layers):
            level = i % self.num_levels
            with torch.no_grad():
                if intermediate:
                    logits = resize_to(out[-1].mask_logits.float(), memory[level])
                else:
                    logits = self._mask_logits(self.decoder_norm(x), resized[level], priors[level])
                inside = _attention_mask(logits)
            block = partial(_layer, cross, attend, ffn, position, alive)
            x = run_block(block, x, keys[level], values[level], inside, checkpointing=self.checkpointing)
            if intermediate:
                out.append(self._predict(x, mask_features, prior, label_sets))
        if not intermediate:
            out.append(self._predict(x, mask_features, prior, label_sets))
        if made is not None:
            out[-1] = out[-1]._replace(cells=made.cells, objectness=made.objectness)
        return out
