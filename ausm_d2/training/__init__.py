# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Training: teacher forcing, the three forms of the network over clips, targets, matcher, losses, optimiser."""
