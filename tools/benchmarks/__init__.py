# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The subjects of ``python -m tools.benchmark``."""
