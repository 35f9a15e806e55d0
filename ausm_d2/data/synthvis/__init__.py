# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Procedural videos with exact masks: every frame is a function of (seed, video, frame), computed when it is asked for.

A video is a plan (``planner``: who moves where, in the terms of ``scene``) and ``textures``, both made once when its
first frame is asked for, and a ``renderer`` of single frames.
"""

from ausm_d2.data.synthvis.records import SynthFrames, SynthMasks, SynthVis
from ausm_d2.data.synthvis.scene import (
    CLASS_COLORS,
    CLASSES,
    HEIGHT,
    MIN_PART,
    MIN_VISIBLE,
    NUM_FRAMES,
    SPLITS,
    WIDTH,
)

__all__ = [
    "CLASSES",
    "CLASS_COLORS",
    "HEIGHT",
    "MIN_PART",
    "MIN_VISIBLE",
    "NUM_FRAMES",
    "SPLITS",
    "WIDTH",
    "SynthFrames",
    "SynthMasks",
    "SynthVis",
]
