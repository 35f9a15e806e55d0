# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The experiments of ``python -m tools.experiment`` and ``tools.sweep_threshold``."""
