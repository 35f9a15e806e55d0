# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Autoregressive Universal Video Segmentation Model (AUSM, arXiv:2508.19242) as a Detectron2 meta-architecture."""

__version__ = "0.1.0"
