# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The configuration: keys and defaults (defaults.py), consistency checks (checks.py, label_sets.py), loading of files
(files.py)."""

from ausm_d2.config.checks import check_model_config as check_model_config
from ausm_d2.config.defaults import add_ausm_config as add_ausm_config
from ausm_d2.config.files import PRETRAINED as PRETRAINED
from ausm_d2.config.files import load_config as load_config
from ausm_d2.config.files import pretrained_config as pretrained_config
from ausm_d2.config.files import with_data_set as with_data_set
from ausm_d2.config.label_sets import class_names as class_names
from ausm_d2.config.label_sets import label_sets as label_sets
