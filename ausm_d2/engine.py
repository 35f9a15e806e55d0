# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Detectron2's DefaultTrainer with this project's loaders, evaluators and optimiser."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from . import meta_arch as meta_arch  # registers AUSM
from .data.build import build_test_loader, build_train_loader, registered_names
from .errors import UserError
from .evaluation import build_evaluator
from .training.solver import build_optimizer


def check_datasets(cfg: CfgNode, names: Iterable[str]) -> None:
    """Every data set is known, and the config has a head of its label set.

    Raises:
        UserError: naming the data set, its classes and the head.
    """
    heads = {str(name): int(classes) for name, classes in cfg.MODEL.AUSM.HEADS}
    for name in names:
        if name not in DatasetCatalog:
            raise UserError(f"data set '{name}' is not registered; registered: {', '.join(registered_names())}")
        metadata = MetadataCatalog.get(name)
        classes = len(metadata.thing_classes)
        if metadata.head not in heads:
            raise UserError(
                f"data set '{name}' needs the head '{metadata.head}' ({classes} classes), MODEL.AUSM.HEADS has {heads}"
            )
        if heads[metadata.head] != classes:
            raise UserError(
                f"data set '{name}' has {classes} classes, MODEL.AUSM.HEADS gives its head '{metadata.head}' "
                f"{heads[metadata.head]}"
            )


class Trainer(DefaultTrainer):
    """What train_net.py runs."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        check_datasets(cfg, cfg.DATASETS.TRAIN)
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        check_datasets(cfg, [dataset_name])
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)
