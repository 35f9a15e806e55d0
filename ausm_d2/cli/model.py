# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The config of the model named on a command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detectron2.config import CfgNode

from ausm_d2.config import load_config
from ausm_d2.config.files import PRETRAINED
from ausm_d2.errors import UserError


def model_config(options: argparse.Namespace) -> CfgNode:
    """The config for the options of :func:`~ausm_d2.cli.options.add_model_arguments`; see :func:`config`."""
    changes = list(options.opts)
    changes += ["MODEL.WEIGHTS", options.weights] if options.weights else []
    changes += ["MODEL.DEVICE", options.device] if options.device else []
    return config(options.config, changes)


def config(name: str, changes: Sequence[str] = ()) -> CfgNode:
    """The config of a model, by name or file.

    Raises:
        UserError: if it does not exist, or has no weights.
    """
    cfg = load_config(PRETRAINED.get(name, name), changes)
    if not cfg.MODEL.WEIGHTS:
        raise UserError(f"MODEL.WEIGHTS: empty in '{name}'; add --opts MODEL.WEIGHTS FILE")
    return cfg
