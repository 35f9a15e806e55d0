# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Procedural videos with exact masks. Each frame is a function of (seed, video, frame), rendered on access.

When a video is first accessed, ``planner`` samples the motion of its layers (types in ``scene``) and ``textures`` their
surfaces; ``renderer`` draws single frames.
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
