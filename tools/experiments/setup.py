# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Shared by the experiments: arguments, config, model, logging."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.cli.arguments import given_path
from ausm_d2.config import load_config
from ausm_d2.data.catalog import register_from_config
from ausm_d2.engine import Trainer, check_datasets
from ausm_d2.errors import UserError
from ausm_d2.meta_arch import AUSM


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Config, output, number of videos, KEY VALUE pairs."""
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--output", required=True, type=given_path, metavar="DIR", help="for table.md, table.json, plot.png and results"
    )
    parser.add_argument("--videos", type=int, metavar="N", help="only the first N videos of each data set")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to change; comes last"
    )


def common_config(args: argparse.Namespace, view: Callable[[str], str] | None = None) -> CfgNode:
    """The config of a command; ``OUTPUT_DIR`` is its ``--output`` and the references are off.

    Args:
        view: registers the view of a data set that will be evaluated in its place, and returns its name.

    Raises:
        UserError: if the config or a data set cannot be used.
    """
    if args.videos is not None and args.videos < 1:
        raise UserError(f"--videos: {args.videos}, expected 1 or more")
    cfg = load_config(args.config_file, args.opts)
    cfg.OUTPUT_DIR, cfg.TEST.AUSM.BASELINES = args.output, False
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST: empty, expected the names of the data sets to evaluate on")
    register_from_config(cfg)
    check_datasets(cfg, [view(name) if view and name in DatasetCatalog else name for name in cfg.DATASETS.TEST])
    for name in ("fvcore", "ausm_d2"):
        setup_logger(name=name)
    setup_logger()
    return cfg


def load_model(cfg: CfgNode) -> AUSM:
    """The model with ``MODEL.WEIGHTS``, ready to evaluate.

    Raises:
        UserError: if there are no weights, or they do not fit.
    """
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS: empty, expected the weights to evaluate")
    model = Trainer.build_model(cfg)
    AUSMCheckpointer(model, complete=True).load(cfg.MODEL.WEIGHTS)
    return model.eval()


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a command, for its JSON."""
    return {key: value for key, value in vars(args).items() if value is not None and not callable(value)}
