# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Train the Pixel Decoder and its proposals alone, from recorded inputs: on a CPU, faster than train_net.py.

``record`` runs all that is frozen (frame encoder, History Compressor and Decoder) over clips of DATASETS.TRAIN and
stores what the Pixel Decoder reads; ``train`` is Detectron2's trainer over these frames (--resume, MODEL_EMA and
TEST.EVAL_PERIOD as ever), with --cells of the proposals' cells alone.

    python -m tools.train_decoder record --config-file FILE --frames 3500 -o DIR [--opts KEY VALUE ...]
    python -m tools.train_decoder train DIR [DIR ...] --shares 7 3 --config-file FILE [--cells] [--resume] [--opts ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2.utils.logger import setup_logger

from ausm_d2.cli.arguments import given_path
from ausm_d2.config import load_config
from ausm_d2.errors import UserError, cli
from ausm_d2.recorded.frames import RecordedBatches
from ausm_d2.recorded.recorder import record
from ausm_d2.recorded.trainer import DecoderTrainer


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.train_decoder", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="record what the Pixel Decoder reads")
    recording.add_argument("--frames", type=int, required=True, metavar="N")
    recording.add_argument("-o", "--output", type=given_path, required=True, metavar="DIR")
    training = commands.add_parser("train", help="train on recorded frames")
    training.add_argument("folders", nargs="+", type=given_path, metavar="DIR")
    training.add_argument("--shares", nargs="+", type=float, metavar="X", help="how often each DIR is drawn")
    training.add_argument("--resume", action="store_true")
    training.add_argument(
        "--cells", action="store_true", help="train what the proposals are chosen from, without the decoder: faster"
    )
    for each in (recording, training):
        each.add_argument("--config-file", required=True, metavar="FILE")
        each.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    return parser.parse_args()


def main() -> None:
    """The command."""
    args = _arguments()
    setup_logger(name="tools")
    setup_logger(name="ausm_d2")
    cfg = load_config(args.config_file, args.opts)
    if args.command == "record":
        if args.frames < 1:
            raise UserError(f"--frames: {args.frames}, expected 1 or more")
        record(cfg, Path(args.output), args.frames)
        return
    shares = args.shares or [1.0] * len(args.folders)
    if len(shares) != len(args.folders) or min(shares) <= 0:
        raise UserError(f"--shares: {args.shares}, expected {len(args.folders)} numbers above 0, one for each folder")
    folders = [Path(folder) for folder in args.folders]
    batches = RecordedBatches(folders, shares, batch=cfg.SOLVER.IMS_PER_BATCH, seed=max(cfg.SEED, 0))
    cfg.TEST.AUSM.RESUME = cfg.TEST.AUSM.BASELINES = False
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    setup_logger(cfg.OUTPUT_DIR, name="fvcore")
    setup_logger(cfg.OUTPUT_DIR)
    trainer = DecoderTrainer(cfg, batches, cells_only=args.cells)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    cli(main)
