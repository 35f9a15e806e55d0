# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The part of a frame's work that runs on the model's device.

As CUDA graphs require, there is no device sync, shapes do not depend on the frame's content, and the state is
overwritten in place.

Shape shorthand:
    N_id: slots (rows of A)
    N: number of leading slots that includes all slots in use; N_id in a CUDA graph
    N_det: detection queries V; Q: N + N_det
    K: classes of the stream's label set
    H_in, W_in: the network's input size in pixels, before padding
    H4, W4: mask size at stride 4 of the padded input
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ausm_d2.kernels.cached_tensors import hold_cached_tensors
from ausm_d2.modeling.frame_encoder import FrameFeatures
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.modeling.pixel_decoder import mask_confidence
from ausm_d2.modeling.transfer import upload
from ausm_d2.streaming.slots import FREE
from ausm_d2.streaming.state import StreamState

_ROWS = 16  # N is a multiple of this, so that the time per frame does not vary with every object


def rows_in_use(ids: Tensor) -> int:
    """N for ``ids`` (N_id). Free slots do not affect the result, so trailing ones are cut off."""
    used = (ids != FREE).nonzero()
    last = int(used[-1]) + 1 if len(used) else 1
    return min(last + -last % _ROWS, len(ids))


class StepOutput(NamedTuple):
    """The results of a step. The next step may overwrite the tensors."""

    # float32 (Q, K + 1): class probabilities without background; last column: 0 if the mask is empty, else 1 or, with
    # ``confidence``, the mean foreground probability of its pixels
    report: Tensor
    mask_logits: Tensor  # (Q, H4, W4)
    rows: int  # N


class FrameStep:
    """E_t = X_{t-1} + HistoryMarker(A_{t-1}, M_{t-1}) .. (y_trk, y_det) = PixelDecoder(concat(A_{t-1}, V), G_t)."""

    def __init__(self, model: AUSMNetwork, label_set: str, *, cuda_graph: bool, confidence: bool = False) -> None:
        """
        Args:
            model: in evaluation mode.
            label_set: of all rows.
            cuda_graph: capture the step in a CUDA graph at the second frame of a state (the first compiles kernels and
                allocates workspaces) and replay it from then on. On CUDA only.
            confidence: report the mean foreground probability of each mask (TEST.AUSM.TRACK_SCORE: mask).
        """
        self._model = model
        self._label_set = label_set
        self._confidence = confidence
        self._capturing = cuda_graph and model.device.type == "cuda"
        self._seen: StreamState | None = None  # state of the previous call
        self._graph: _Graph | None = None  # captured on that state

    @torch.no_grad()
    def __call__(self, image: Tensor, state: StreamState, features: FrameFeatures | None = None) -> StepOutput:
        """
        Args:
            image: uint8 (3, H_in, W_in), RGB.
            features: of the image, where it was encoded before; a step that is captured encodes it itself.
            state: overwritten in place: the memory, X_{t-1} by X_t, and M_{t-1} by the masks of the same rows in this
                frame.
        """
        if self._seen is not state:
            self._seen, self._graph = state, None
        elif self._capturing:
            self._graph = self._graph or _Graph(self, image, state)
            return self._graph.replay(image, state.slots.ids)
        ids = state.slots.ids if self._capturing else state.slots.ids[: rows_in_use(state.slots.ids)]
        if features is None:
            return self.run(upload(image, self._model.device), upload(ids, self._model.device), state)
        return self.recur(features, upload(ids, self._model.device), state)

    def remember(self, state: StreamState) -> None:
        """Update the memory with X_{t-1} and M_{t-1} as a step would, without a new frame."""
        ids = upload(state.slots.ids[: rows_in_use(state.slots.ids)], self._model.device)
        in_use = ids != FREE
        self._model.compress(
            x_prev=state.x_prev[None, None],
            ids=self._model.id_pool(ids.clamp(min=0))[None],
            in_use=in_use[None, None],
            history=state.masks[None, None, : len(ids)],
            memory=state.memory,
            inplace=True,
        )

    def run(self, image: Tensor, ids: Tensor, state: StreamState) -> StepOutput:
        """The step itself. ``image`` and ``ids``, the first N of ``state.slots.ids``, are on the model's device."""
        return self.recur(self._model.encode(self._model.normalise(image[None])), ids, state)

    def recur(self, features: FrameFeatures, ids: Tensor, state: StreamState) -> StepOutput:
        """The step without the frame encoder: everything that depends on earlier frames."""
        rows = len(ids)
        in_use = ids != FREE
        clip = features.map(lambda each: each[:, None])
        predictions, _ = self._model.predict(
            x=clip.x,
            mask_features=clip.mask_features,
            levels=clip.multi_scale,
            pyramid=clip.pyramid,
            x_prev=state.x_prev[None, None],
            ids=self._model.id_pool(ids.clamp(min=0))[None],
            in_use=in_use[None, None],
            history=state.masks[None, None, :rows],
            label_sets=[self._label_set],
            memory=state.memory,
            inplace=True,
            intermediate=False,
        )
        class_logits, mask_logits = predictions[-1].class_logits[0], predictions[-1].mask_logits[0]
        masks = mask_logits > 0
        state.x_prev.copy_(features.x[0])
        torch.logical_and(masks[:rows], in_use[:, None, None], out=state.masks[:rows])  # free slots stay empty
        visible = masks.flatten(1).any(dim=1, keepdim=True)
        if self._confidence:
            visible = mask_confidence(predictions[-1])
        return StepOutput(torch.cat([class_logits.float().softmax(-1)[:, :-1], visible], dim=1), mask_logits, rows)


class _Graph:
    """A step on one state, captured in a CUDA graph."""

    def __init__(self, step: FrameStep, image: Tensor, state: StreamState) -> None:
        device = state.masks.device
        self._image, self._ids = upload(image, device), upload(state.slots.ids, device)
        self._graph = torch.cuda.CUDAGraph()
        # Weights cached by autocast would be freed after this frame; without the cache the graph holds its own copies.
        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        autocast = torch.autocast("cuda", dtype, enabled, cache_enabled=False)
        # PyTorch's default capture stream is shared and belongs to the device that captured first.
        capture = torch.cuda.graph(self._graph, stream=torch.cuda.Stream(device))
        with hold_cached_tensors() as self._held, torch.cuda.device(device), autocast, capture:
            self._output = step.run(self._image, self._ids, state)

    def replay(self, image: Tensor, ids: Tensor) -> StepOutput:
        for static, new in ((self._image, image), (self._ids, ids)):
            static.copy_(upload(new, static.device))
        self._graph.replay()
        return self._output
