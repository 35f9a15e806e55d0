# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Detectron2's trainer on recorded frames."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from ausm_d2.engine import Trainer
from ausm_d2.recorded.decoder import AUSMDecoder


class DecoderTrainer(Trainer):
    """The trainer of ``train_net.py``, on batches of recorded frames."""

    def __init__(self, cfg: CfgNode, batches: Any, *, cells_only: bool = False) -> None:
        """
        Args:
            cells_only: see :class:`~ausm_d2.recorded.decoder.AUSMDecoder`.
            batches: :class:`~ausm_d2.recorded.frames.RecordedBatches`, or
                :class:`~ausm_d2.recorded.recorder.PooledBatches`.
        """
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.META_ARCHITECTURE = AUSMDecoder.__name__
        cfg.freeze()
        self._batches = batches
        super().__init__(cfg)
        model: Any = self.model
        getattr(model, "module", model).cells_only = cells_only  # with several processes the model is wrapped

    def build_train_loader(self, cfg: CfgNode) -> Any:  # type: ignore[override]  # of the instance
        """The batches given to the constructor."""
        return self._batches
