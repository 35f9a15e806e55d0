# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Checkpoints: read safely (reading.py), fitted to a model (convert.py), loaded and saved (checkpointer.py)."""
