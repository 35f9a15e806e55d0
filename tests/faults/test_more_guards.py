# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What commands, jobs, prompts and processes refuse, besides what the tests of each reach."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ausm_d2 import launch
from ausm_d2.errors import UserError
from ausm_d2.jobs.folder import find_videos, track_all
from ausm_d2.jobs.prompt_file import read_prompt_file
from ausm_d2.jobs.track import Request
from ausm_d2.kernels.attention.cpu import attend_on_cpu
from ausm_d2.kernels.choice import set_kernels
from ausm_d2.kernels.conv import causal_conv
from ausm_d2.kernels.group_norm import cpu as group_norm
from ausm_d2.kernels.group_norm.call import GroupNormCall
from ausm_d2.processes import errors_of_processes, lost_processes
from ausm_d2.streaming.groups import GroupedStream
from ausm_d2.streaming.prompts import checked_mask
from ausm_d2.training.solver import build_optimizer
from tests.tiny import tiny_cfg

MASK = {"size": [4, 4], "counts": [0, 16]}


@pytest.mark.parametrize(
    ("entry", "prompt", "message"),
    [
        ({"name": 5}, {"box": [1, 2, 3, 4]}, r"objects\[0\]\.name: 5, expected text"),
        ({}, {"frame": True, "box": [1, 2, 3, 4]}, "frame: True, expected a whole number"),
        ({}, {"frame": 1.5, "box": [1, 2, 3, 4]}, r"frame: 1\.5, expected a whole number"),
        ({}, {"frame": -1, "box": [1, 2, 3, 4]}, "frame: -1, expected a whole number"),
        ({}, {"scribble": [[1, 2], [3, 4]], "label": 7}, "label: 7, expected 1 or 0"),
        ({}, {"mask": {**MASK, "size": [4, 4, 1]}}, "expected the name of a picture, or run lengths"),
        ({}, {"mask": {**MASK, "size": [4, "4"]}}, "expected the name of a picture, or run lengths"),
        ({}, {"mask": {**MASK, "size": [4, 0]}}, "expected the name of a picture, or run lengths"),
        ({}, {"mask": {**MASK, "size": 16}}, "expected the name of a picture, or run lengths"),
        ({}, {"mask": {**MASK, "counts": ""}}, "run lengths that do not fill a frame of 4x4 pixels"),
        ({}, {"points": {}}, "a list expected, with one entry or more"),
        ({}, {"points": 5}, "a list expected, with one entry or more"),
        ({}, {"points": []}, "a list expected, with one entry or more"),
    ],
)
def test_prompts_of_a_file_that_cannot_be_used(
    tmp_path: Path, entry: dict[str, Any], prompt: dict[str, Any], message: str
) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"objects": [{"id": 1, **entry, "prompts": [prompt]}]}))
    with pytest.raises(UserError, match=message):
        read_prompt_file(tmp_path / "p.json")


def test_folders_of_videos_that_are_empty_and_outputs_that_are_no_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no videos \(.*\) and no pictures"):
        find_videos(str(tmp_path), tmp_path / "out")
    (tmp_path / "file").touch()
    asked = Request(None, tmp_path / "file" / "out")
    with pytest.raises(UserError, match="--workers: 0, expected 1 or more"):
        track_all(tiny_cfg(), {}, asked, workers=0)
    with pytest.raises(UserError, match="file/out' cannot be written: Not a directory"):
        track_all(tiny_cfg(), {}, asked)


def test_masks_kernels_and_gradients_of_no_known_kind() -> None:
    with pytest.raises(UserError, match=r"a prompt is a mask, a bool array \(H, W\); found list"):
        checked_mask([[True]], (1, 1))
    with pytest.raises(UserError, match=r"MODEL\.AUSM\.KERNELS: 'fast' is not one of auto, "):
        set_kernels(torch.nn.Linear(1, 1), "fast")
    x = torch.zeros(1, 2, 3)
    with pytest.raises(RuntimeError, match=r"inplace=True needs torch\.no_grad"):
        causal_conv(x, torch.zeros(3, 2), torch.zeros(3), torch.zeros(1, 3, 2), inplace=True)
    cfg = tiny_cfg("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value")
    with pytest.raises(UserError, match=r"CLIP_TYPE: 'value', expected full_model"):
        build_optimizer(cfg, torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="groups: none, expected one or more"):
        GroupedStream.from_state_dict(None, None, {"groups": []})  # type: ignore[arg-type]


def test_a_kernel_without_memory_says_how_much_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(ausm_attention=lambda *_: 0, ausm_group_norm=lambda *_: 0)
    with pytest.raises(MemoryError, match="attention of 3 queries to 5 keys, 1 x 2 heads"):
        attend_on_cpu(library, *(torch.zeros(1, 2, length, 8) for length in (3, 5, 5)))  # type: ignore[arg-type]
    monkeypatch.setattr(group_norm.cpp, "library", lambda _: library)
    call = GroupNormCall(torch.zeros(2, 8, 3, 3), 4, torch.ones(8), torch.zeros(8), 1e-5, False)
    with pytest.raises(MemoryError, match="group norm of 2 x 8 channels"):
        group_norm.CpuGroupNorm().run(call)


def _raised(text: str) -> ProcessRaisedException:
    return ProcessRaisedException(f"\n-- Process 0 terminated\nTraceback\n{text}", 0, 1)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (_raised("ausm_d2.errors.UserError: no data"), "^no data$"),
        (_raised("torch.distributed.DistStoreError: late\nC++"), "--dist-url U: the processes did not meet: late"),
        (ProcessExitedException("x", 1, 1, -9, "SIGKILL"), "process 1 of this machine was killed by SIGKILL; --resume"),
        (ProcessExitedException("x", 1, 1, 3), "process 1 of this machine was ended with exit code 3; --resume"),
    ],
)
def test_what_a_process_ended_with_is_one_line(error: Exception, message: str) -> None:
    with pytest.raises(UserError, match=message) as told, errors_of_processes("U"):
        raise error
    assert "\n" not in str(told.value)


def test_other_errors_of_processes_are_raised_as_they_are() -> None:
    with pytest.raises(ProcessRaisedException), errors_of_processes("U"):
        raise _raised("ValueError: a fault of this program")
    with pytest.raises(RuntimeError, match=r"^shapes$"), lost_processes():
        raise RuntimeError("shapes")
    message = r"another process is gone, or was silent .*\(gloo: closed by peer\)"
    with pytest.raises(UserError, match=message), lost_processes():
        raise RuntimeError("gloo: closed   by peer\nmore")


def _flags(**changes: Any) -> Namespace:
    plain = {"timeout": 9.0, "num_machines": 2, "machine_rank": 0, "num_gpus": 1, "dist_url": "tcp://a:1", "opts": []}
    return Namespace(**{**plain, **changes})


def test_machines_and_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (-1, 2):
        with pytest.raises(UserError, match=f"--machine-rank: {rank}, expected 0 to 1"):
            launch._check_machines(_flags(machine_rank=rank))
    with pytest.raises(UserError, match="--num-gpus 1 --num-machines 0: expected 0 or more GPUs on each of 1 or more"):
        launch._check_gpus(_flags(num_machines=0))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"OUTPUT_DIR: .*file' is not a writable folder"):
        launch._check_output(tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"OUTPUT_DIR: .* is not a writable folder"):
        launch._check_output(tmp_path / "out")
