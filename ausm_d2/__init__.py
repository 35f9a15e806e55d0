# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Autoregressive Universal Video Segmentation Model (AUSM, arXiv:2508.19242) as a Detectron2 meta-architecture.

    from ausm_d2 import VideoPredictor

    predictor = VideoPredictor.from_pretrained("ausm_edge")

``VideoPredictor``, ``load_config`` and ``add_ausm_config`` are imported lazily: importing the package itself is fast
and needs neither PyTorch nor Detectron2.
"""

import importlib
import warnings
from typing import Any

# Raised by the import of Detectron2; users of this package cannot avoid it.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)

__version__ = "0.1.0"

_EXPORTS = {
    "VideoPredictor": "ausm_d2.streaming.predictor",
    "add_ausm_config": "ausm_d2.config",
    "load_config": "ausm_d2.config",
}
__all__ = ["VideoPredictor", "__version__", "add_ausm_config", "load_config"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    try:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "detectron2":
            raise
        raise ModuleNotFoundError(
            "ausm_d2 needs Detectron2, which must be installed separately; see https://detectron2.readthedocs.io/en/"
            "latest/tutorials/install.html, or tools/install_detectron2.py of the source of ausm_d2",
            name="detectron2",
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
