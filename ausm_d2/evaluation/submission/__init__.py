# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Submissions: the files that evaluation servers accept, written from results and checked before the upload.

``archive`` writes and checks them; each other module holds one family of formats.
"""
