# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Frames in, results out: reads every kind of video, writes every kind of result. Knows no model."""
