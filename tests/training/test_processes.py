# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A batch shared by two processes, or with clips of several sizes, gives the gradients of the whole batch."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ausm_d2.meta_arch import AUSM
from ausm_d2.processes import leave_together
from tests.tiny import clip, tiny_model
from tests.training.fixed import FixedDraws

SETTINGS = ("MODEL.AUSM.TRAIN.PROMPT_PROB", 1.0, "MODEL.AUSM.TRAIN.OWN_PASSES", 2)


def clips(empty: bool) -> list[dict[str, Any]]:
    """Two clips with different label sets; the second one has few labels, or no objects."""
    second = clip(4, 0 if empty else 1, label_set="object", seed=2)
    return [clip(4, 3, seed=1), {**second, "exhaustive": empty}]


def step(model: Any, items: list[dict[str, Any]]) -> dict[str, Tensor]:
    losses = model(items)
    sum(losses.values()).backward()
    return losses


def _in_a_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for empty in (False, True):
        model = tiny_model(*SETTINGS)
        with pytest.MonkeyPatch.context() as patch:
            items = [clips(empty)[rank]]
            FixedDraws(patch, model)
            losses = step(DistributedDataParallel(model), items)
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save((losses, gradients), folder / f"{rank}_{empty}.pt")
    leave_together()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(new_processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the losses and gradients of both."""
    folder = tmp_path_factory.mktemp("processes")
    processes = [new_processes.Process(target=_in_a_process, args=(rank, folder)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return folder


@pytest.mark.parametrize("empty", [False, True])
def test_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(
    of_two_processes: Path, monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    """Different label sets, an empty clip, and passes on own masks; every loss is shared, its divisor too."""
    (losses, gradients), (others, same) = (torch.load(of_two_processes / f"{rank}_{empty}.pt") for rank in (0, 1))
    model, items = tiny_model(*SETTINGS), clips(empty)
    FixedDraws(monkeypatch, model)
    whole = step(model, items)
    for name, value in whole.items():
        torch.testing.assert_close((losses[name] + others[name]) / 2, value, rtol=1e-4, atol=1e-6)
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    total = torch.cat([grad.flatten() for grad in expected.values()]).norm()
    for name, grad in expected.items():
        assert torch.equal(gradients[name], same[name]), name
        # Some gradients are nothing but rounding: those of the biases of keys.
        assert (gradients[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-6 * total, name


def _sums(model: AUSM, items: list[dict[str, Any]], patch: pytest.MonkeyPatch) -> list[Tensor]:
    """The losses' inputs, by group of clips of one size."""
    kept: list[Tensor] = []
    make = model.criterion._sums

    def noted(*args: Any) -> Tensor:
        kept.append(make(*args))
        return kept[-1]

    with patch.context() as own:
        own.setattr(model.criterion, "_sums", noted)
        model(items)
    return kept


def test_a_clip_batched_with_a_larger_one_has_the_same_losses_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("MODEL.AUSM.TRAIN.PROMPT_PROB", 1.0, "MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", 1)
    small, large = clip(3, 2, seed=1), clip(3, 2, seed=2)
    narrow = {**small, "image": small["image"][..., :-5], "masks": small["masks"][..., :-5]}
    for name in ("image", "masks"):
        large[name] = torch.nn.functional.pad(large[name], (0, 50, 0, 20))
    FixedDraws(monkeypatch, model)
    [alone], [other] = _sums(model, [small], monkeypatch), _sums(model, [large], monkeypatch)
    together = _sums(model, [large, small], monkeypatch)
    torch.testing.assert_close(sum(together), alone + other)
    assert any(torch.equal(each, alone) for each in together)
    assert len(together) == 2 and len(_sums(model, [small, narrow], monkeypatch)) == 1  # padded to 64 x 96 anyway
    losses = {name: value for name, value in model([small]).items() if "_mask" in name}
    both = model([small, small])
    for name, value in losses.items():
        torch.testing.assert_close(both[name], value)  # a mean over masks
