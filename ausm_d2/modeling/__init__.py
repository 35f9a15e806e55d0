# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The network: tensors in, tensors out. It knows no data set, no file and, outside ``from_config``, no config."""
