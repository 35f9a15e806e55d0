# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Data: registered data sets, training clips, test videos.

Nothing is imported here: the records (``video.py``) need no Detectron2. Importing ``catalog`` registers the data sets.
"""
