# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Triton's kernels without a GPU: in Triton's interpreter, which is slow, so the inputs there are few and small."""

from __future__ import annotations

import os

import torch

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""This is the process that test_interpreter.py starts."""
RUNS_TRITON = GPU or INTERPRETED
