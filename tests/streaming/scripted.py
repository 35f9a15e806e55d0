# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A stand-in for the model whose predictions a test writes down, so that what a stream does with them shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ausm_d2.modeling.frame_encoder import FrameFeatures
from ausm_d2.modeling.id_pool import IDPool
from ausm_d2.modeling.network import AUSMNetwork, Memory
from ausm_d2.modeling.pixel_decoder import Predictions
from ausm_d2.streaming.stream import Stream
from tests.streaming.opened import open_stream

SIDE = 32  # pixels of a frame; masks have 8 x 8 cells
CELLS = SIDE // 4


def frame() -> np.ndarray:
    return np.zeros((SIDE, SIDE, 3), np.uint8)


def cells(*places: int) -> Tensor:
    """A mask of some of the 64 cells, logits 5 and -5."""
    logits = torch.full((CELLS * CELLS,), -5.0)
    logits[list(places)] = 5.0
    return logits.view(CELLS, CELLS)


def pixels(*places: int) -> np.ndarray:
    """The same mask in pixels: bool (SIDE, SIDE)."""
    return (cells(*places) > 0).repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()


class Row:
    """The prediction for one row: class probabilities (the remainder is background) and cells of the mask."""

    def __init__(self, probabilities: Sequence[float], *places: int) -> None:
        self.logits = torch.tensor([*probabilities, max(1 - sum(probabilities), 1e-9)]).log()
        self.mask = cells(*places)


class ScriptedModel:
    """``script[t]`` gives the rows of frame t: by slot ("tracks") and by query ("detections")."""

    def __init__(self, script: list[dict[str, dict[int, Row]]], *, num_id: int = 4, num_det: int = 3) -> None:
        self.script = script
        self.num_det = num_det
        self.label_sets = {"things": 2}
        self.prompt_index = "frame"
        self.id_pool = IDPool(num_id, 8)
        self.x_start = torch.ones(8)
        self.device = torch.device("cpu")
        self.seen: list[dict[str, Any]] = []  # arguments of each prediction

    def check_label_set(self, label_set: str) -> None:
        assert label_set in self.label_sets

    def normalise(self, images: Tensor) -> Tensor:
        return images.float()

    def encode(self, images: Tensor) -> FrameFeatures:
        x = torch.full((1, 8, CELLS // 2, CELLS // 2), float(len(self.seen) + 1))
        return FrameFeatures(x=x, mask_features=torch.zeros(1, 8, CELLS, CELLS), multi_scale=[])

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def initial_memory(self, size: tuple[int, int], *, state_dtype: torch.dtype | None = None) -> Memory:
        return Memory([])

    def predict(self, **arguments: Any) -> tuple[list[Predictions], Memory]:
        rows = self.script[len(self.seen)]
        self.seen.append({**arguments, **{name: arguments[name].clone() for name in ("history", "x_prev")}})
        num_id = self.id_pool.num_id
        nothing = Row([0.0, 0.0])
        every = [rows.get("tracks", {}).get(i, nothing) for i in range(num_id)]
        every += [rows.get("detections", {}).get(i, nothing) for i in range(self.num_det)]
        classes, masks = torch.stack([row.logits for row in every]), torch.stack([row.mask for row in every])
        return [Predictions(class_logits=classes[None], mask_logits=masks[None])], Memory([])


def scripted(
    script: list[dict[str, dict[int, Row]]], *, detect: bool = True, **model: Any
) -> tuple[Stream, ScriptedModel]:
    """A stream over a script, and its model."""
    stand_in = ScriptedModel(script, **model)
    return open_stream(cast(AUSMNetwork, stand_in), label_set="things", detect=detect, fg_threshold=0.5), stand_in
