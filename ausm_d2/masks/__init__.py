# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Masks as files have them: COCO's run lengths and polygons (``rle``), pictures of object ids (``png``)."""
