# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Take a few images of one or more classes out of a COCO file, to measure ``ausm train`` with (docs/own_objects.md).

Taken are the first images by id in which one to five objects of the classes are labelled, none of them a crowd, and
the largest covers a share of the image. All annotations of a taken image are kept.

    python -m tools.few_labels coco/annotations/instances_train2017.json --classes person --images 20 -o person_20.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ausm_d2.cli.arguments import given_path
from ausm_d2.data.catalog.annotations import read_categories, read_table
from ausm_d2.errors import UserError, cli
from ausm_d2.io import atomic_write

MOST = 5  # objects of the classes in an image


def take(table: dict[str, Any], ids: Sequence[int], *, images: int, least: float) -> dict[str, Any]:
    """The contents of a COCO file, reduced to some images.

    Args:
        ids: of the categories.
        images: how many to take; 0: all that fit.
        least: share of the image that the largest object of the categories covers.
    """
    objects: dict[Any, list[dict[str, Any]]] = {}
    for each in table["annotations"]:
        if each["category_id"] in ids:
            objects.setdefault(each["image_id"], []).append(each)

    def fits(image: dict[str, Any]) -> bool:
        own = objects.get(image["id"], [])
        if not 1 <= len(own) <= MOST or any(each.get("iscrowd", 0) for each in own):
            return False
        return max(each["area"] for each in own) >= least * image["height"] * image["width"]

    ordered = sorted(table["images"], key=lambda image: image["id"])
    kept = list(islice((image for image in ordered if fits(image)), images or None))
    known = {image["id"] for image in kept}
    return {**table, "images": kept, "annotations": [e for e in table["annotations"] if e["image_id"] in known]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tools.few_labels", description=__doc__.split("\n\n")[0])
    parser.add_argument("labels", metavar="JSON")
    parser.add_argument("--classes", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="(default: all that fit)")
    parser.add_argument("--least", type=float, default=0.02, metavar="SHARE", help="(default: %(default)g)")
    parser.add_argument("-o", "--output", required=True, type=given_path, metavar="JSON")
    args = parser.parse_args()
    path = Path(args.labels)
    table = read_table(path)
    names = read_categories(path, table)
    unknown = [name for name in args.classes if name not in names.values()]
    if unknown:
        raise UserError(f"--classes: {unknown} found; {path} has {', '.join(sorted(names.values()))}")
    wanted = [each for each, name in names.items() if name in args.classes]
    taken = take(table, wanted, images=args.images, least=args.least)
    if len(taken["images"]) < max(args.images, 1):
        raise UserError(f"{path}: {len(taken['images'])} images fit; {max(args.images, 1)} or more expected")
    with atomic_write(Path(args.output)) as temporary:
        temporary.write_text(json.dumps(taken), encoding="utf-8")
    count = sum(each["category_id"] in wanted for each in taken["annotations"])
    print(f"{args.output}: {len(taken['images'])} images with {count} objects of {', '.join(args.classes)}")


if __name__ == "__main__":
    cli(main)
