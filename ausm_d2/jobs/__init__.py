# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A video in, a folder of results out: what ``ausm track``, ``demo/demo.py``, the page and the batch tools call."""
