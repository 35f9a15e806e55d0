# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Kernels: pure tensor operations, each with a reference in PyTorch and faster forms. Imports nothing of modeling."""
