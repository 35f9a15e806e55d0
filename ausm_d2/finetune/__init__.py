# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a shipped model for a user's own objects (``ausm train``, docs/own_objects.md)."""
