# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Measures and result files of the two regimes (VIS and VOS). Nothing here imports the model."""
