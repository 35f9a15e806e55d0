# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A shipped model for a user's own objects: labels in, a fine-tuned model out (``ausm train``, docs/own_objects.md)."""
