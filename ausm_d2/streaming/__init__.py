# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The model as a recurrence over frames: state, stream and predictor."""
