# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""From a video to a folder of results: called by ``ausm track``, ``demo/demo.py``, the web page and the batch tools."""
