# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What ``train_net.py`` and ``ausm evaluate`` run: training, resuming and evaluation, with Detectron2's own flags."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from torch import nn

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer, ShippedWeights
from ausm_d2.config import load_config
from ausm_d2.data.build import available_test_sets, check_train_config, require_files
from ausm_d2.engine import Trainer, check_datasets
from ausm_d2.errors import UserError


def checked_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a run that can begin; nothing has been written.

    Raises:
        UserError: a config, data sets or weights that cannot be used.
    """
    _check_gpus(args)
    cfg = load_config(args.config_file, args.opts, args.overlay)
    if args.eval_only and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST: empty, expected the names of the data sets to evaluate on")
    if not args.eval_only:
        check_train_config(cfg, max(args.num_gpus, 1) * args.num_machines)
    tests, missing = available_test_sets(cfg)  # none in a training that does not evaluate
    if args.eval_only and not tests:
        raise UserError(f"DATASETS.TEST: none of its data sets is there (TEST.SKIP_MISSING is on); {missing[0]}")
    training = [] if args.eval_only else list(cfg.DATASETS.TRAIN)
    check_datasets(cfg, [*tests, *training])
    require_files(training)
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        raise UserError(f"MODEL.META_ARCHITECTURE: unknown '{cfg.MODEL.META_ARCHITECTURE}', expected AUSM")
    _check_output(Path(cfg.OUTPUT_DIR))
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)  # what else the model asks of its config

    last = AUSMCheckpointer(nn.Module(), cfg.OUTPUT_DIR)
    resumes = args.resume and last.has_checkpoint()
    weights = last.get_checkpoint_file() if resumes else cfg.MODEL.WEIGHTS
    key = f"{cfg.OUTPUT_DIR}/last_checkpoint" if resumes else "MODEL.WEIGHTS"
    if args.eval_only and not weights:
        raise UserError(f"{key}: empty, expected the weights to evaluate")
    here = ":" not in weights or weights.startswith(ShippedWeights.PREFIX)  # others are fetched when they are needed
    if weights and here and not Path(PathManager.get_local_path(weights)).is_file():
        raise UserError(f"{key}: weights file '{weights}' does not exist")
    if here:
        AUSMCheckpointer(model, complete=args.eval_only).load(weights)  # whether they fit
    if args.eval_only:
        cfg.MODEL.WEIGHTS = weights
    else:
        cfg.TEST.AUSM.RESUME = False  # of a periodic evaluation: the weights have changed since the one before
        cfg.TEST.AUSM.BASELINES = False  # what the model is compared with, once it is trained
    cfg.freeze()
    return cfg


def _check_gpus(args: argparse.Namespace) -> None:
    """Raises UserError if this machine lacks the GPUs of ``--num-gpus``: Detectron2 starts one process for each."""
    there = torch.cuda.device_count()
    if args.num_gpus < 0 or args.num_machines < 1:
        raise UserError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines}: expected 0 or more GPUs on each of 1 or "
            "more machines"
        )
    if args.num_gpus * args.num_machines > 1 and args.num_gpus > there:  # without it, one process runs on the CPU
        raise UserError(f"--num-gpus: {args.num_gpus}, but PyTorch finds {there} on this machine")


def _check_output(folder: Path) -> None:
    """Raises UserError if nothing can be written to a folder, which need not exist yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"OUTPUT_DIR: '{folder}' cannot be written ('{there}' is no folder that can be written to)")


def run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """In each process."""
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="ausm_d2", abbrev_name="ausm")
    if args.eval_only:
        model = Trainer.build_model(cfg)
        AUSMCheckpointer(model, complete=True).load(cfg.MODEL.WEIGHTS)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """The command, with its arguments; default: those of the process. ``prog``: its name in the help."""
    parser = default_argument_parser()
    parser.add_argument(
        "--overlay", action="append", default=[], metavar="FILE", help="YAML file whose keys replace the config's"
    )
    parser.prog = prog or parser.prog
    args = parser.parse_args(arguments)
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args, checked_config(args)),
    )
