# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Fixtures every test file may use, and the order of the files.

PyTorch is imported in functions: with ``-n``, the process that hands out the tests loads this file and does without.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent

# The files that take longest. They are run first: one that begins last would leave the other workers without work.
LONG = (
    "faults/test_cases.py",
    "tools/test_experiments.py",
    "tools/test_batch_ray.py",
    "kernels/test_triton_kernels.py",
    "export/test_runner.py",
    "kernels/test_interpreter.py",
    "test_package.py",
    "faults/test_kill_and_resume.py",
    "tools/test_benchmark.py",
    "test_on_gpu.py",
    "app/test_browser.py",
    "test_meta_arch.py",
    "data/test_synthvis.py",
    "finetune/test_run.py",
    "evaluation/test_evaluators.py",
    "streaming/test_launches.py",
    "test_edge.py",
    "docs/test_tutorial.py",
    "test_train_net.py",
    "test_engine.py",
    "test_recipe.py",
    "test_mini.py",
    "modeling/test_timm_backbone.py",
    "jobs/test_track.py",
    "app/test_server.py",
    "app/test_follower.py",
    "streaming/test_predictor.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # this process runs no tests
    import cv2
    import torch

    gc.disable()  # what is imported now is no garbage; see pytest_runtestloop
    # A process that is forked from one with a pool of threads waits for threads that it does not have.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {TESTS / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import numpy as np
    import torch

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

    def get(cfg: Any, *names: str, default: Any = None) -> Any:
        return next((cfg[name] for name in names if name in cfg), default)

    monkeypatch.setattr("detectron2.engine.defaults._try_get_key", get)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and video kept beside the checkout; tests that need them skip where they are absent."""
    path = TESTS.parents[1] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no real data: the folder ../shared/data is not beside this checkout")
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    gc.freeze()  # collections leave out the million objects of the imports
    gc.enable()
    if hasattr(os, "fork") and any("new_processes" in getattr(item, "fixturenames", ()) for item in session.items):
        from tests.new_process import start_fork_server

        start_fork_server()


@pytest.fixture(scope="session")
def new_processes() -> ForkServerContext:
    """For :mod:`tests.new_process`."""
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked")
    return multiprocessing.get_context("forkserver")
