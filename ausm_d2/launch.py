# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The commands ``train_net.py`` and ``ausm evaluate``: training, resuming and evaluation with Detectron2's flags."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import torch
from detectron2.config import CfgNode
from detectron2.engine import DEFAULT_TIMEOUT, default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer, ShippedWeights
from ausm_d2.config import load_config
from ausm_d2.data.build import available_test_sets, check_train_config, require_files
from ausm_d2.engine import Trainer, check_datasets
from ausm_d2.errors import UserError
from ausm_d2.processes import errors_of_processes, leave_together, lost_processes


def checked_config(args: argparse.Namespace) -> CfgNode:
    """Load, check and freeze the config of a run, before anything is written.

    Raises:
        UserError: if the config, a data set or the weights cannot be used.
    """
    _check_machines(args)
    _check_gpus(args)
    cfg = load_config(args.config_file, args.opts, args.overlay)
    if args.eval_only and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST: empty, expected the names of the data sets to evaluate on")
    if not args.eval_only:
        check_train_config(cfg, max(args.num_gpus, 1) * args.num_machines)
    tests, missing = available_test_sets(cfg)  # may be empty when training
    if args.eval_only and not tests:
        raise UserError(f"DATASETS.TEST: none of its data sets is there (TEST.SKIP_MISSING is on); {missing[0]}")
    training = [] if args.eval_only else list(cfg.DATASETS.TRAIN)
    check_datasets(cfg, [*tests, *training])
    require_files(training)
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        raise UserError(f"MODEL.META_ARCHITECTURE: unknown '{cfg.MODEL.META_ARCHITECTURE}', expected AUSM")
    _check_output(Path(cfg.OUTPUT_DIR))
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)  # the model's own checks of the config

    last = AUSMCheckpointer(nn.Module(), cfg.OUTPUT_DIR)
    resumes = args.resume and last.has_checkpoint()
    weights = last.get_checkpoint_file() if resumes else cfg.MODEL.WEIGHTS
    key = f"{cfg.OUTPUT_DIR}/last_checkpoint" if resumes else "MODEL.WEIGHTS"
    if args.eval_only and not weights:
        raise UserError(f"{key}: empty, expected the weights to evaluate")
    here = ":" not in weights or weights.startswith(ShippedWeights.PREFIX)  # other URLs are fetched later
    if here:
        AUSMCheckpointer(model, complete=args.eval_only).load(weights)  # checks that they are there and fit
    if args.eval_only:
        cfg.MODEL.WEIGHTS = weights
    else:
        cfg.TEST.AUSM.RESUME = False  # periodic evaluation: the weights have changed since the last one
        cfg.TEST.AUSM.BASELINES = False  # score the references after training only
    cfg.freeze()
    return cfg


def _check_machines(args: argparse.Namespace) -> None:
    """Raise UserError if several machines could not find each other: Detectron2 would wait, or train on each alone."""
    if not args.timeout > 0:
        raise UserError(f"--timeout: {args.timeout}, expected a number of seconds above 0")
    if args.num_machines < 2:
        return
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(f"--machine-rank: {args.machine_rank}, expected 0 to {args.num_machines - 1}, another on each")
    if args.num_gpus < 1:
        raise UserError(f"--num-gpus: {args.num_gpus} on each of {args.num_machines} machines, expected 1 or more")
    if args.dist_url == default_argument_parser().get_default("dist_url"):  # it is this machine's own address
        raise UserError("--dist-url: not given; with several machines, tcp://HOST:PORT of machine 0 expected")
    url = urlsplit(args.dist_url)
    try:
        address = url.hostname and url.port
    except ValueError:  # the port is no number
        address = None
    if not (url.scheme == "env" or (url.scheme == "tcp" and address) or (url.scheme == "file" and url.path)):
        raise UserError(
            f"--dist-url: '{args.dist_url}', expected tcp://HOST:PORT of machine 0, or file:///PATH that all machines "
            "see"
        )


def _check_gpus(args: argparse.Namespace) -> None:
    """Raise UserError if this machine has fewer GPUs than ``--num-gpus``: Detectron2 starts one process per GPU."""
    there = torch.cuda.device_count()
    if not there and "MODEL.DEVICE" in args.opts[::2] and args.num_gpus > 0:
        return  # so many processes on the CPU, for which load_config lets MODEL.DEVICE be cpu only
    if args.num_gpus < 0 or args.num_machines < 1:
        raise UserError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines}: expected 0 or more GPUs on each of 1 or "
            "more machines"
        )
    if args.num_gpus * args.num_machines > 1 and args.num_gpus > there:  # a single process may run on the CPU
        raise UserError(f"--num-gpus: {args.num_gpus}, but PyTorch finds {there} on this machine")


def _check_output(folder: Path) -> None:
    """Raise UserError if a folder, which need not exist yet, is not writable."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"OUTPUT_DIR: '{folder}' cannot be written ('{there}' is not a writable folder)")


def run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Train or evaluate; runs in each process.

    Raises:
        UserError: if another process is gone, or does not answer within the time-out.
    """
    with lost_processes():
        _run(args, cfg)
        leave_together(args.timeout)


def _run(args: argparse.Namespace, cfg: CfgNode) -> None:
    try:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"OUTPUT_DIR: '{cfg.OUTPUT_DIR}' cannot be written: {error.strerror}") from None
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
    """Run the command.

    Args:
        arguments: of the command line; None: ``sys.argv``.
        prog: name of the command in its help.
    """
    parser = default_argument_parser()
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT.total_seconds(),
        metavar="SECONDS",
        help="with several processes: how long one waits for the others before it gives up (default: %(default).0f; "
        "all wait while the first one scores an evaluation)",
    )
    parser.add_argument(
        "--overlay", action="append", default=[], metavar="FILE", help="YAML file whose keys replace the config's"
    )
    parser.prog = prog or parser.prog
    args = parser.parse_args(arguments)
    cfg = checked_config(args)
    with errors_of_processes(args.dist_url):
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, cfg),
            timeout=timedelta(seconds=args.timeout),
        )
