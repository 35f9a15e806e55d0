# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Show how a checkpoint's tensors map to a model of this project; optionally write the converted file.

    python -m tools.convert_weights --config-file CONFIG WEIGHTS [WEIGHTS ...] [--output OUT.pth] [--half]
        [--opts KEY VALUE ...]

Reads official Swin checkpoints, Mask2Former's COCO instance checkpoints, timm's classification weights and the
project's own. ``MODEL.WEIGHTS`` takes the same files and converts them in the same way; this command is for inspection
and for keeping the converted file. Averaged weights (MODEL_EMA) are used if the checkpoint has them. The weights of
several files (checkpoints of one training, say) are averaged.
The exit code is 1, and nothing is written, if a module that should match does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ausm_d2.checkpoint.convert import Conversion, convert
from ausm_d2.checkpoint.reading import read_checkpoint, weights_to_use
from ausm_d2.config import load_config
from ausm_d2.errors import UserError, cli
from ausm_d2.io import atomic_write
from ausm_d2.meta_arch import AUSM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="checkpoints to read")
    parser.add_argument("--config-file", required=True, help="config of the model that is to have the weights")
    parser.add_argument("--output", help="file to write the converted weights to")
    parser.add_argument("--half", action="store_true", help="write half precision")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs that change the config; the last argument"
    )
    args = parser.parse_args()

    state = AUSM(load_config(args.config_file, args.opts)).state_dict()
    conversions = [_converted(path, state) for path in args.weights]
    if args.output:
        weights = mean_weights([conversion.weights for conversion in conversions])
        if args.half:
            weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
        with atomic_write(args.output) as temporary:
            torch.save({"model": weights, "converted_from": str(conversions[0].origin)}, temporary)
        print(f"wrote {args.output}")


def _converted(path: str, state: Mapping[str, Tensor]) -> Conversion:
    """Convert a file's weights for a model with the given state, and print the mapping.

    Raises:
        UserError: if weights cannot be read or do not fit.
    """
    checkpoint = read_checkpoint(path)
    try:
        conversion = convert(weights_to_use(checkpoint), state, origin=checkpoint.get("converted_from"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    print(conversion.table())
    conversion.check(path)
    return conversion


def mean_weights(weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each floating-point tensor, computed in double precision; other tensors are the first file's.

    Raises:
        UserError: if the files do not have the same tensors.
    """
    first, *others = weights
    for number, other in enumerate(others, start=2):
        odd = sorted(first.keys() ^ other.keys())
        if odd:
            raise UserError(f"file {number} and the first have not the same tensors: {odd[0]} (of {len(odd)})")
    return {
        name: torch.stack([each[name].double() for each in weights]).mean(dim=0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }


if __name__ == "__main__":
    cli(main)
