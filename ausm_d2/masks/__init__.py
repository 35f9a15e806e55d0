# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Mask formats: COCO run lengths and polygons (rle.py), label images (png.py), masks from boxes, points and scribbles
(drawn.py)."""
