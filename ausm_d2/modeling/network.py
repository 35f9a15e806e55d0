# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The network of Alg. 1 and Alg. 2 (arXiv 2508.19242): tensors in, tensors out.

Training (``ausm_d2/training/forms.py``) and the stream (``ausm_d2/streaming/stream.py``) call the same two methods,
:meth:`AUSMNetwork.encode` and :meth:`AUSMNetwork.predict`. There is no loss and no file access here.

Shape shorthand:
    B: clips; T: frames of a clip; BT: B * T frames, flattened into one axis
    N: rows of A, padded with rows that are not in use; N_det: detection queries V; Q: N + N_det
    D: channels; K: classes of a label set
    H_pad, W_pad: padded image size in pixels; h, w: its size at stride 8; H4, W4: at stride 4; h_l, w_l: at level l
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ausm_d2.config import check_model_config, label_sets
from ausm_d2.errors import UserError
from ausm_d2.kernels.autocast import autocast_dtype
from ausm_d2.kernels.choice import set_kernels
from ausm_d2.modeling.frame_encoder import FrameEncoder, FrameFeatures
from ausm_d2.modeling.history import HistoryCompressor, HistoryDecoder, HistoryMarker
from ausm_d2.modeling.id_pool import IDPool
from ausm_d2.modeling.pixel_decoder import PixelDecoder, Predictions, memory_levels
from ausm_d2.modeling.resize import resize_to
from ausm_d2.modeling.ssm import SSMState

SIZE_DIVISIBILITY = 32  # the coarsest stride of the frame encoder


@dataclass
class Memory:
    """The recurrent state of the network. X_{t-1}, A_{t-1} and M_{t-1} are not part of it.

    Created by :meth:`AUSMNetwork.initial_memory`. A variant of the network may add tensors in a subclass.
    """

    ssm: list[SSMState]  # one per layer of the History Compressor, for B * h * w sequences

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {f"ssm.{i}.{name}": each for i, state in enumerate(self.ssm) for name, each in state._asdict().items()}

    def map(self, function: Callable[[Tensor], Tensor]) -> Memory:
        """The same memory with ``function`` applied to every tensor."""
        return replace(self, ssm=[SSMState(*(function(each) for each in state)) for state in self.ssm])


class AUSMNetwork(nn.Module):
    """Frame Encoder, History Marker, History Compressor, History Decoder, Pixel Decoder and the pool of ID vectors."""

    pixel_mean: Tensor  # (3, 1, 1)
    pixel_std: Tensor  # (3, 1, 1)
    added_modules: tuple[str, ...] = ("frame_encoder.proposal_pyramid.", "pixel_decoder.proposals.")
    """Name prefixes of the parameters that a variant has (here with ``PIXEL_DECODER.QUERIES: proposals``); they may be
    missing from the weights it starts from."""

    @configurable
    def __init__(
        self,
        *,
        frame_encoder: FrameEncoder,
        compressor: HistoryCompressor,
        decoder: HistoryDecoder,
        pixel_decoder: PixelDecoder,
        hidden_dim: int,
        num_id: int,
        label_sets: dict[str, int],
        memory_strides: Sequence[int],
        prompt_index: str,
        start: str,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        kernels: str = "auto",
    ) -> None:
        """
        Args:
            frame_encoder, compressor, decoder, pixel_decoder: the modules of Sec. 3.
            hidden_dim: D.
            num_id: N_id.
            label_sets: number of classes by name of the label set.
            memory_strides: strides G_t is pooled to for the Pixel Decoder.
            prompt_index: "frame" or "zero" (docs/deviations.md, 2).
            start: "lookup" or "residual" (docs/deviations.md, 15).
            pixel_mean, pixel_std: per RGB channel, for values in 0..255.
            kernels: kernels of all layers, one of ``kernels.choice.NAMES``.

        Raises:
            UserError: if these kernels cannot run here, or if ``memory_strides`` has a stride that the frame encoder
                lacks and ``start`` is residual.
        """
        super().__init__()
        coarsest = 8 << (len(frame_encoder.in_features) - 2)
        if start == "residual" and max(memory_strides) > coarsest:
            raise UserError(
                f"MODEL.AUSM.PIXEL_DECODER.MEMORY_STRIDES: {list(memory_strides)}, expected at most {coarsest}, "
                "the coarsest stride of the frame encoder, because MODEL.AUSM.START is residual"
            )
        self.frame_encoder = frame_encoder
        self.marker = HistoryMarker()
        self.compressor = compressor
        self.decoder = decoder
        self.pixel_decoder = pixel_decoder
        self.id_pool = IDPool(num_id, hidden_dim)
        self.x_start = nn.Parameter(torch.randn(hidden_dim) * 0.02)  # X_0, tiled over space
        # Gate of G_t - X_t in the mask features. Without the residual start G_t is added ungated.
        self.mask_gate = nn.Parameter(torch.zeros(hidden_dim)) if start == "residual" else None
        self.label_sets = label_sets
        self.memory_strides = tuple(memory_strides)
        self.prompt_index = prompt_index
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        set_kernels(self, kernels)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_model_config(cfg)
        ausm = cfg.MODEL.AUSM
        return {
            "frame_encoder": FrameEncoder(cfg),
            "compressor": HistoryCompressor(cfg),
            "decoder": HistoryDecoder(cfg),
            "pixel_decoder": PixelDecoder(cfg),
            "hidden_dim": ausm.HIDDEN_DIM,
            "num_id": ausm.NUM_ID,
            "label_sets": label_sets(cfg),
            "memory_strides": ausm.PIXEL_DECODER.MEMORY_STRIDES,
            "prompt_index": ausm.PROMPT_INDEX,
            "start": ausm.START,
            "kernels": ausm.KERNELS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.x_start.device

    def check_label_set(self, label_set: str) -> None:
        """
        Raises:
            UserError: if the network has no such label set.
        """
        if label_set not in self.label_sets:
            raise UserError(
                f"MODEL.AUSM.LABEL_SETS: no label set '{label_set}', the config has {sorted(self.label_sets)}"
            )

    @staticmethod
    def padded_size(height: int, width: int) -> tuple[int, int]:
        """(H_pad, W_pad) for an image of ``height`` x ``width`` pixels."""
        height, width = (side + -side % SIZE_DIVISIBILITY for side in (height, width))
        if (height, width) == (SIZE_DIVISIBILITY, SIZE_DIVISIBILITY):
            width *= 2  # group norm needs more than one cell at the coarsest stride
        return height, width

    def normalise(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images (..., 3, H_in, W_in) in 0..255 -> normalised, zero-padded at the bottom and right.

        Args:
            size: smallest (height, width) before :meth:`padded_size` is applied; None: the size of the images.

        Returns:
            (..., 3, H_pad, W_pad).
        """
        images = (images.to(self.device).float() - self.pixel_mean) / self.pixel_std
        height, width = images.shape[-2:]
        minimum = size or (height, width)
        bottom, right = self.padded_size(max(height, minimum[0]), max(width, minimum[1]))
        return F.pad(images, (0, right - width, 0, bottom - height))

    def initial_memory(
        self,
        size: tuple[int, int],
        *,
        clips: int = 1,
        dtype: torch.dtype | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> Memory:
        """The memory before the first frame.

        Args:
            size: (H_pad, W_pad).
            clips: B.
            dtype: of the activations; None: the autocast dtype if autocast is on, else that of the weights.
            state_dtype: in which the Mamba states are stored; None: float32, their convolutions in ``dtype``.
        """
        device = self.device
        if dtype is None:
            dtype = autocast_dtype(device.type) or self.x_start.dtype
        sequences = clips * (size[0] // 8) * (size[1] // 8)
        states = self.compressor.init_states(sequences, device=device, dtype=dtype, state_dtype=state_dtype)
        return Memory(states)

    def encode(self, images: Tensor) -> FrameFeatures:
        """Frame encoder: (BT, 3, H_pad, W_pad) -> X_t and mask features; no information between frames."""
        return self.frame_encoder(images)

    def mark(
        self, x_prev: Tensor, ids: Tensor, in_use: Tensor, history: Tensor, memory: Memory | None, *, inplace: bool
    ) -> tuple[Tensor, Tensor, Memory | None]:
        """Mark the objects of frame t - 1: E_t = X_{t-1} + HistoryMarker(A_{t-1}, M_{t-1}).

        Arguments as for :meth:`predict`. A variant of the network overrides this method.

        Returns:
            (B, T, D, h, w) E_t, (B, T, N, D) query content of the rows in the Pixel Decoder, and the memory.
        """
        e = x_prev + self.marker(ids[:, None], history).to(x_prev.dtype)
        return e, ids[:, None].expand(-1, x_prev.shape[1], -1, -1), memory

    def decoder_features(
        self, x: Tensor, g: Tensor, mask_features: Tensor, levels: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Inputs of the Pixel Decoder: its memory levels and the mask features.

        With the residual start, G_t - X_t (0 before training) is added to Mask2Former's levels and mask features.
        Otherwise the levels are pooled from G_t, and G_t is added to the mask features.

        Args:
            x, g: (BT, D, h, w) X_t and G_t.
            mask_features: (BT, D, H4, W4), from the frame encoder.
            levels: all levels of the frame encoder, coarsest first: (BT, D, h_l, w_l), the last of stride 8.
        """
        if self.mask_gate is None:
            return memory_levels(g, self.memory_strides), mask_features + resize_to(g, mask_features)
        change = g - x
        of_stride = {8 << i: level for i, level in enumerate(reversed(levels))}
        changes = zip(self.memory_strides, memory_levels(change, self.memory_strides), strict=True)
        memory = [of_stride[stride] + pooled for stride, pooled in changes]
        gate = self.mask_gate.to(change.dtype)[:, None, None]
        return memory, mask_features + resize_to(gate * change, mask_features)

    def predict(
        self,
        *,
        x: Tensor,
        mask_features: Tensor,
        levels: Sequence[Tensor],
        x_prev: Tensor,
        ids: Tensor,
        in_use: Tensor,
        history: Tensor,
        label_sets: Sequence[str],
        pyramid: Tensor | None = None,
        memory: Memory | None = None,
        inplace: bool = False,
        intermediate: bool = True,
    ) -> tuple[list[Predictions], Memory | None]:
        """The body of Alg. 1 and Alg. 2: X_t, X_{t-1}, A_{t-1}, M_{t-1} -> y_trk, y_det, for T frames at once.

        Args:
            x: (B, T, D, h, w) X_t.
            mask_features: (B, T, D, H4, W4).
            levels: all levels of the frame encoder, coarsest first: (B, T, D, h_l, w_l).
            x_prev: (B, T, D, h, w) X_{t-1}.
            ids: (B, N, D) ID vectors.
            in_use: bool (B, T, N): row i is in A_{t-1}.
            history: (B, T, N, H4, W4) masks M_{t-1}, zero for rows that are not in use.
            label_sets: name of the label set of each of the B clips.
            pyramid: (B, T, D, h, w), from the frame encoder, if V is made from proposals.
            memory: state after the previous frame; None: the clip starts here and no memory is returned.
            inplace: overwrite ``memory`` (without autograd only, which needs the old values).
            intermediate: also return the predictions of the Pixel Decoder's earlier layers.

        Returns:
            Predictions by layer, over BT frames, and the memory after the last frame.
        """
        f, rows, memory = self.compress(
            x_prev=x_prev.to(x.dtype), ids=ids, in_use=in_use, history=history, memory=memory, inplace=inplace
        )
        layers = self.decode(
            x=x,
            f=f,
            mask_features=mask_features,
            levels=levels,
            rows=rows,
            in_use=in_use,
            label_sets=label_sets,
            pyramid=pyramid,
            intermediate=intermediate,
        )
        return layers, memory

    def compress(
        self,
        *,
        x_prev: Tensor,
        ids: Tensor,
        in_use: Tensor,
        history: Tensor,
        memory: Memory | None = None,
        inplace: bool = False,
    ) -> tuple[Tensor, Tensor, Memory | None]:
        """The recurrent half of :meth:`predict`: History Marker and History Compressor. Arguments as there.

        Returns:
            (B, T, D, h, w) F_t, (B, T, N, D) query content of the rows in the Pixel Decoder, and the memory after the
            last frame.
        """
        e, rows, memory = self.mark(x_prev, ids, in_use, history, memory, inplace=inplace)
        f, ssm = self.compressor(e, memory.ssm if memory else None, inplace=inplace)
        return f, rows, replace(memory, ssm=ssm) if memory else None

    def decode(
        self,
        *,
        x: Tensor,
        f: Tensor,
        mask_features: Tensor,
        levels: Sequence[Tensor],
        rows: Tensor,
        in_use: Tensor,
        label_sets: Sequence[str],
        pyramid: Tensor | None = None,
        intermediate: bool = True,
    ) -> list[Predictions]:
        """The per-frame half of :meth:`predict`: History Decoder and Pixel Decoder. ``f`` and ``rows`` as from
        :meth:`compress`, the other arguments as there.

        Returns:
            Predictions by layer, over BT frames.
        """
        frames, x = x.shape[1], x.flatten(0, 1)
        g = self.decoder(x, f.flatten(0, 1))
        return self.pixel_decoder(
            *self.decoder_features(x, g, mask_features.flatten(0, 1), [level.flatten(0, 1) for level in levels]),
            rows.flatten(0, 1).to(g.dtype),
            in_use.flatten(0, 1),
            [name for name in label_sets for _ in range(frames)],
            sources=None if pyramid is None else (pyramid.flatten(0, 1), g),
            intermediate=intermediate,
        )
