# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Augmentation of clips: first planned for all frames, then applied once per frame to pixels and masks alike.

An augmentation changes a :class:`ClipPlan`: one geometric matrix and one colour matrix per frame. The composed plan is
rendered in a single pass, so masks are decoded only where the output shows them and nothing is resampled twice.
"""
