# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Runs jobs on several CPU cores, with a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import cv2
from tqdm import tqdm

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_parallel(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], *, workers: int, label: str, patience: float = 3.0
) -> list[_Result]:
    """Apply ``function`` to every job, in order, with a progress bar.

    After ``patience`` seconds the remaining jobs are distributed to ``workers`` processes (0 or 1: none); shorter work
    does not justify starting them. They are started by a fork server, because forking a process with threads or CUDA
    can hang. ``function`` must be picklable.
    """
    begin = time.monotonic()
    with tqdm(total=len(jobs), desc=label, unit="video", disable=None) as bar:  # no bar in a log file
        results: list[_Result] = []
        for job in jobs:
            if workers > 1 and time.monotonic() - begin >= patience:
                break
            results.append(function(job))
            bar.update()
        left = jobs[len(results) :]
        if left:
            context = get_context("forkserver")
            with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
                for result in pool.map(function, left):
                    results.append(result)
                    bar.update()
    return results
