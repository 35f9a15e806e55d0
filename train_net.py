#!/usr/bin/env python
# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Train, resume or evaluate AUSM, with Detectron2's flags.

python train_net.py --config-file configs/synth/ausm_nano.yaml [--eval-only] [--resume] [KEY VALUE ...]
"""

from __future__ import annotations

from ausm_d2.errors import cli
from ausm_d2.launch import main

if __name__ == "__main__":
    cli(main)
