#!/usr/bin/env python
# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What becomes of a checkpoint's tensors in a model of this project; optionally, the converted file.

    python tools/convert_weights.py --config-file CONFIG WEIGHTS [--output OUT.pth] [--opts KEY VALUE ...]

Official Swin checkpoints, Mask2Former's COCO instance checkpoints, timm's classification weights and the project's own
are understood. ``MODEL.WEIGHTS`` takes the same files directly and does the same conversion: this is for looking, and
for files that are to be kept. The exit code is 1 when a module that should match did not; nothing is written then.
"""

from __future__ import annotations

import argparse

import torch

from ausm_d2.checkpoint import convert, read_checkpoint
from ausm_d2.config import load_config
from ausm_d2.errors import UserError, cli
from ausm_d2.io import atomic_write
from ausm_d2.meta_arch import AUSM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="checkpoint to read")
    parser.add_argument("--config-file", required=True, help="config of the model that is to have the weights")
    parser.add_argument("--output", help="file to write the converted weights to")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs that change the config; the last argument"
    )
    args = parser.parse_args()

    checkpoint = read_checkpoint(args.weights)
    model = AUSM(load_config(args.config_file, args.opts))
    try:
        conversion = convert(checkpoint["model"], model.state_dict(), origin=checkpoint.get("converted_from"))
    except UserError as error:
        raise UserError(f"{args.weights}: {error}") from error
    print(conversion.table())
    conversion.check(args.weights)
    if args.output:
        with atomic_write(args.output) as temporary:
            torch.save({"model": conversion.weights, "converted_from": str(conversion.origin)}, temporary)
        print(f"wrote {args.output}")


if __name__ == "__main__":
    cli(main)
