# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Submissions: the files that evaluation servers take, made of the model's results and checked before they go out.

``archive`` writes and checks them; each other module holds one family of formats.
"""
