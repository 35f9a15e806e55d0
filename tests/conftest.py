# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Fixtures every test file may use."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode

from tests.new_process import start_fork_server

# A process that is forked from one with a pool of threads waits for threads that it does not have.
torch.set_num_threads(1)
cv2.setNumThreads(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def restored_loggers() -> Iterator[None]:
    """Detectron2's setup adds handlers to these loggers, which later tests must not have."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "ausm_d2")]
    before = [(each.handlers[:], each.propagate, each.level) for each in loggers]
    yield
    for each, (handlers, each.propagate, level) in zip(loggers, before, strict=True):
        each.handlers[:] = handlers
        each.setLevel(level)


@pytest.fixture
def quick_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2's setup dumps and parses the whole config for each of three keys, which takes half a second."""

    def get(cfg: CfgNode, *names: str, default: Any = None) -> Any:
        return next((cfg[name] for name in names if name in cfg), default)

    monkeypatch.setattr("detectron2.engine.defaults._try_get_key", get)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and video kept beside the checkout; tests that need them skip where they are absent."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no real data: the folder ../shared/data is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def new_processes() -> ForkServerContext:
    """For :mod:`tests.new_process`."""
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked")
    return start_fork_server()
