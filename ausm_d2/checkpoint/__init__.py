# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Checkpoints: safe reading (reading.py), conversion to a model (convert.py), loading and saving (checkpointer.py),
identification (fingerprint.py)."""
