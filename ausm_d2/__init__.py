# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Autoregressive Universal Video Segmentation Model (AUSM, arXiv:2508.19242) as a Detectron2 meta-architecture."""

import warnings

# Detectron2's, at import: nothing that a user of this package could do about it.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)

__version__ = "0.1.0"
