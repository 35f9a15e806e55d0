# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The registered data sets, one module per benchmark family. Importing registers names and reads no file."""

from ausm_d2.data.catalog import synthvis as synthvis
