# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The registered data sets, one module per benchmark family."""
