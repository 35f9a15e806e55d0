# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Skips the optimiser's step if the loss or a gradient is not finite: reports it, and ends the training if asked to."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from ausm_d2.data.items import TrainingClip
from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write

_MOST_IN_A_ROW = 10  # steps left out after which the model has diverged
_MOST_SAVED = 10  # batches that a process saves

logger = logging.getLogger(__name__)


class StepLeftOut(Exception):
    """Raised between the backward pass and the optimiser's step, which is not to be taken."""


class FiniteSteps(HookBase):
    """Checks loss and gradients after every backward pass, in all processes together.

    If they are not finite in one process, all processes skip the step. The process with that loss logs iteration, clips
    and losses, and saves them with its batch to ``<folder>/non_finite_<iteration>_<process>.pt``, for ``torch.load``.
    With ``SOLVER.AMP`` only the loss is checked: GradScaler handles gradients that overflow.
    """

    def __init__(self, model: nn.Module, folder: str | os.PathLike[str], *, action: str, gradients: bool) -> None:
        """
        Args:
            model: an AUSM, not wrapped.
            folder: where batches are saved.
            action: "stop" ends the training with an error, "skip" goes on with the next step.
            gradients: check gradients too.
        """
        self._model = model
        self._folder = Path(folder)
        self._action = action
        self._gradients = gradients
        self._in_a_row = self._saved = 0
        self._clips: Sequence[TrainingClip] = ()
        self._losses: dict[str, Tensor] = {}
        model.register_forward_hook(self._note)

    def _note(self, model: nn.Module, arguments: tuple[Sequence[TrainingClip]], losses: Any) -> None:
        if model.training:
            self._clips, self._losses = arguments[0], {name: loss.detach() for name, loss in losses.items()}

    def after_backward(self) -> None:
        """
        Raises:
            StepLeftOut: the step is to be left out.
            UserError: the training is to end.
        """
        total = torch.stack([loss.float() for loss in self._losses.values()]).sum()
        wrong = torch.zeros(2, device=total.device)  # the loss; loss or gradients
        wrong[0] = wrong[1] = ~total.isfinite()
        if self._gradients:
            grads = [each.grad for each in self._model.parameters() if each.grad is not None]
            wrong[1] += ~torch.nn.utils.get_total_norm(grads).isfinite().to(total.device)
        anywhere = wrong.clone()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(anywhere, torch.distributed.ReduceOp.MAX)
        own, elsewhere = (each.tolist() for each in torch.stack([wrong, anywhere]))
        clips, self._clips = self._clips, ()
        if not elsewhere[1]:
            self._in_a_row = 0
            return
        # Gradients are the same in all processes: only the loss tells which process it was.
        if own[0] or (own[1] and not elsewhere[0]):
            text = self._report(clips)
        else:
            text = f"iteration {self.trainer.iter}: the loss is not finite in another process"
        logger.error("%s", text)
        self._in_a_row += 1
        if self._action == "stop":
            raise UserError(f"{text}; SOLVER.NON_FINITE: skip leaves such steps out")
        if self._in_a_row == _MOST_IN_A_ROW:
            raise UserError(f"{text}; it was so {_MOST_IN_A_ROW} times in a row: the training has diverged")
        raise StepLeftOut

    def _report(self, clips: Sequence[TrainingClip]) -> str:
        """What is not finite, and where; the batch is saved."""
        losses = {name: float(loss) for name, loss in self._losses.items()}
        wrong = {name: value for name, value in losses.items() if not torch.tensor(value).isfinite()}
        what = ", ".join(f"{name} {value}" for name, value in wrong.items())
        what = f"the loss is not finite ({what})" if wrong else "the gradients of the loss are not finite"
        which = "; ".join(
            f"{clip['dataset_name']} video {clip['video_id']} frames {[int(i) for i in clip['frame_indices']]}"
            for clip in clips
        )
        text = f"iteration {self.trainer.iter}: {what} of {which}"
        if self._saved == _MOST_SAVED:
            return text
        self._saved += 1
        path = self._folder / f"non_finite_{self.trainer.iter:07d}_{comm.get_rank()}.pt"
        with atomic_write(path) as temporary:
            torch.save({"iteration": self.trainer.iter, "losses": losses, "batch": list(clips)}, temporary)
        return f"{text}; the batch is in {path}"
