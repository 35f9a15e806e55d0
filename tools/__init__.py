# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Commands for developers, run from the root of a checkout as ``python -m tools.NAME``; they are not in the wheel."""
