#!/usr/bin/env python
# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Train, resume or evaluate AUSM, with Detectron2's own flags.

    python train_net.py --config-file configs/synth/ausm_nano.yaml [--eval-only] [--resume] [KEY VALUE ...]
"""

from __future__ import annotations

import argparse

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ausm_d2.config import load_config
from ausm_d2.engine import Trainer, check_datasets
from ausm_d2.errors import cli


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config; nothing is written before it is known to be good."""
    cfg = load_config(args.config_file, args.opts)
    check_datasets(cfg, [*cfg.DATASETS.TEST, *(() if args.eval_only else cfg.DATASETS.TRAIN)])
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def run(args: argparse.Namespace) -> None:
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def main() -> None:
    args = default_argument_parser().parse_args()
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    cli(main)
