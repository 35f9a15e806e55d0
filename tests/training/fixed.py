# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Training without chance: what is drawn of a clip does not depend on the batch that the clip is in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ausm_d2.meta_arch import AUSM


class FixedDraws:
    """Fixed randomness: the same loss points for all rows, the first ID vectors, and all objects prompted."""

    def __init__(self, patch: Any, model: AUSM) -> None:
        """``patch``: a ``pytest.MonkeyPatch``; the model is to have ``PROMPT_PROB`` 1 and no history noise."""
        assert model.prompt_prob == 1 and model.history_noise is None
        patch.setattr(torch, "rand", self._rand)
        patch.setattr(torch, "randint", lambda high, size, **_: torch.full(size, high - 1))
        patch.setattr(model.id_pool, "sample", lambda count, **_: torch.arange(count))

    @staticmethod
    def _rand(*size: Any, device: Any = None, **_: Any) -> Tensor:
        size = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        if len(size) < 3:
            return torch.full(tuple(size), 0.5, device=device)
        one = torch.empty(*size[-2:]).uniform_(generator=torch.Generator().manual_seed(sum(size[-2:])))
        return one.expand(tuple(size)).clone()
