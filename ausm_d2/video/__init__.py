# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Reads videos and writes results, in all supported formats. Independent of the model."""
