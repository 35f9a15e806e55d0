# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The interface between an exported file and its driver: names of inputs and outputs, and settings stored in the file.

Needs neither PyTorch nor onnxruntime.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

KEY = "ausm_d2 step, version 1"  # of the settings, in the metadata of the file
INPUTS = ("image", "ids", "masks", "x_prev")  # then memory_0, memory_1, ...
OUTPUTS = ("report", "mask_logits", "masks_next", "x_next")  # then memory_0_next, ...


@dataclass(frozen=True)
class StepSettings:
    """See TEST.AUSM in ausm_d2/config/defaults.py."""

    size: tuple[int, int]  # (H, W) of the frames
    input_size: tuple[int, int]  # (H_in, W_in)
    label_set: str
    classes: list[str]
    num_id: int
    prompt_index: str
    fg_threshold: float
    hide_below: float
    birth_iou: float
    track_score: str
    topk: int | None
    seed: int
    x_start: list[float]  # X_0

    @classmethod
    def from_json(cls, text: str) -> StepSettings:
        """
        Raises:
            KeyError, ValueError, TypeError: if an entry is missing or does not fit.
        """
        values = json.loads(text)
        found = {field.name: values[field.name] for field in fields(cls)}
        return cls(**{**found, "size": tuple(found["size"]), "input_size": tuple(found["input_size"])})
