# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The console script ``ausm``: one module per command."""
