# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Reads files that were damaged or made up, by the same seed the same ones, in processes that may not crash.

python -m tests.faults.fuzz [--kinds annotations results ...] [--count N] [--seconds S] [--seed 0] [--first 0]

A case passes if the file is read, or refused with a ``UserError``. It fails with any other exception, if its process
ends, if it takes longer than ten seconds, or more than 2 GB of memory beyond what the process began with. ``--kinds X
--first I --count 1`` runs a case again.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ausm_d2.checkpoint.reading import read_checkpoint
from ausm_d2.data.build import get_records
from ausm_d2.data.catalog.coco import register_coco_style
from ausm_d2.data.catalog.ytvis import register_ytvis_style
from ausm_d2.data.check import check_dataset
from ausm_d2.errors import UserError
from ausm_d2.evaluation.tracks import true_tracks
from ausm_d2.evaluation.ytvis import score_files
from ausm_d2.masks.png import read_picture, write_mask_png
from ausm_d2.pictures import check_picture, read_image
from ausm_d2.video.inputs import open_source
from tests.checkpoint.small import small_model
from tests.evaluation.cases import random_case
from tests.video.clips import pictures, write_clip

SECONDS, MEMORY = 10, 2 * 2**30  # of a case
_BATCH = 50  # cases of a process

Rng = np.random.Generator

# Mutations


_BAD = [None, True, -1, 0, 1, 2**31, 2**63, 10**40, -0.5, 1e308, float("nan"), float("inf"), "", "x", "\ud800", "1e9"]
_BAD += [[], {}, [[]], [None], {"": 0}, "../" * 8 + "etc/passwd", "\0", "9" * 5000, [0] * 300, {"counts": "a"}]


def mutate_json(value: Any, rng: Rng) -> Any:
    """A copy, one to three of whose parts are replaced, removed, doubled, or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(int(rng.integers(1, 4))):
        holder, key = value, None
        while True:  # a random walk downwards
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = keys[int(rng.integers(len(keys)))]
            if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
                holder = holder[key]
            else:
                break
        if key is None or not len(holder):
            continue
        action = rng.integers(5)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[int(rng.integers(len(holder)))]))
        elif action == 2 and isinstance(holder[key], str) and holder[key]:
            holder[key] = mutate_bytes(holder[key].encode("utf-8", "replace"), rng).decode("latin1")
        elif action == 3 and isinstance(holder[key], int | float):
            holder[key] = type(holder[key])(holder[key] * int(rng.integers(-3, 10**6)))
        else:
            holder[key] = copy.deepcopy(_BAD[int(rng.integers(len(_BAD)))])
    return value


def mutate_bytes(data: bytes, rng: Rng) -> bytes:
    """Flipped bits, overwritten, doubled and removed pieces, an early end; mostly a few bytes near the beginning."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        if not out:
            break
        at = int(rng.integers(min(len(out), 400) if rng.random() < 0.5 else len(out)))
        length = int(rng.integers(1, 9))
        action = rng.integers(7)
        if action == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif action == 1:
            out[at : at + length] = rng.bytes(length)
        elif action == 2:
            out[at : at + 4] = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"][rng.integers(4)]
        elif action == 3:
            del out[at : at + length]
        elif action == 4:
            out[at:at] = out[at : at + int(rng.integers(1, 200))]
        elif action == 5 and rng.random() < 0.3:
            del out[at:]
        else:
            other = int(rng.integers(len(out)))
            out[at : at + length] = out[other : other + length]
    return bytes(out)


# Kinds of files


class Kind(NamedTuple):
    """What is tried."""

    seeds: Callable[[Path], Sequence[Any]]  # the contents that are mutated, made in a folder
    mutate: Callable[[Any, Rng], bytes]
    suffixes: Sequence[str]  # one for each of the seeds
    read: Callable[[Path], object]


def _as_json(value: Any, rng: Rng) -> bytes:
    if rng.random() < 0.2:
        return mutate_bytes(json.dumps(value).encode(), rng)
    return json.dumps(mutate_json(value, rng)).encode("utf-8", "surrogatepass")


def _annotations(folder: Path) -> list[Any]:
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cat"}]}
    for i in range(2):
        coco["images"].append({"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30})
        rle = {"size": [20, 30], "counts": [5, 40, 555]}
        masks: list[Any] = [[[1.0, 1, 12, 3, 8, 15]], rle]
        for mask in masks:
            entry = {"image_id": i, "category_id": 7, "iscrowd": int(mask is rle), "segmentation": mask}
            coco["annotations"].append({"id": len(coco["annotations"]), "bbox": [1, 1, 9, 9], "area": 40.0, **entry})
    return [random_case(np.random.default_rng(3), videos=2)[0], coco]


def _read_annotations(path: Path) -> None:
    is_coco = path.name.endswith(".coco.json")
    register = register_coco_style if is_coco else register_ytvis_style
    register("fuzzed_train", str(path), str(path.parent))
    for record in get_records("fuzzed_train"):
        if record.masks is not None:
            true_tracks(record)
    check_dataset("fuzzed_train", max_videos=2)


def _results(folder: Path) -> list[Any]:
    truth, results = random_case(np.random.default_rng(4), videos=2)
    (folder / "truth.json").write_text(json.dumps(truth))
    return [results]


def _read_results(path: Path) -> None:
    score_files(path.parent / "truth.json", path)


_VIDEOS = (".mp4", ".mkv", ".avi", ".webm")


def _videos(folder: Path) -> list[bytes]:
    return [write_clip(folder / f"seed{suffix}", 12).read_bytes() for suffix in _VIDEOS[:3]] + [
        write_clip(folder / "seed.webm", 12, container_format="matroska").read_bytes()
    ]


def _read_video(path: Path) -> None:
    for _ in islice(open_source(path).frames, 60):
        pass


_PICTURES = (".png", ".jpg", ".gif", ".tif", ".webp", ".bmp", ".png")


def _pictures(folder: Path) -> list[bytes]:
    found = []
    images = [Image.fromarray(each[..., ::-1]) for each in pictures(3, (40, 50))]
    for i, suffix in enumerate(_PICTURES[:-1]):
        path = folder / f"seed{i}{suffix}"
        images[0].save(path, **({"save_all": True, "append_images": images[1:]} if suffix in (".gif", ".tif") else {}))
        found.append(path.read_bytes())
    ids = np.zeros((40, 50), np.int32)
    ids[3:9, 4:20], ids[20:30] = 1, 2
    write_mask_png(folder / "mask.png", ids)
    return [*found, (folder / "mask.png").read_bytes()]


def _read_pictures(path: Path) -> None:
    reads: list[Callable[[str], object]] = [read_image, check_picture, read_picture, lambda p: _read_video(Path(p))]
    refused = []
    for read in reads:
        try:
            read(str(path))
        except UserError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _checkpoints(folder: Path) -> list[bytes]:
    from tests.checkpoint.small import write_pickle

    state = {name: value[:2].clone() if value.ndim else value for name, value in small_model().state_dict().items()}
    state = dict(islice(state.items(), 20))
    torch.save({"model": state, "iteration": 3, "trainer": {"lr": [0.1, {"a": torch.ones(3)}]}}, folder / "seed.pth")
    torch.save({"model": state}, folder / "old.pth", _use_new_zipfile_serialization=False)
    write_pickle(folder / "seed.pkl", {name: value.numpy() for name, value in state.items()})
    return [(folder / name).read_bytes() for name in ("seed.pth", "old.pth", "seed.pkl")]


KINDS = {
    "annotations": Kind(_annotations, _as_json, (".json", ".coco.json"), _read_annotations),
    "results": Kind(_results, _as_json, (".json",), _read_results),
    "videos": Kind(_videos, mutate_bytes, _VIDEOS, _read_video),
    "pictures": Kind(_pictures, mutate_bytes, _PICTURES, _read_pictures),
    "checkpoints": Kind(_checkpoints, mutate_bytes, (".pth", ".pth", ".pkl"), read_checkpoint),
}
COUNTS = {"annotations": 50_000, "results": 50_000, "videos": 2_000, "pictures": 2_000, "checkpoints": 2_000}


# Running


def _case(kind: Kind, seeds: Sequence[Any], seed: int, index: int, folder: Path) -> str | None:
    """What is wrong with one case; None: nothing."""
    rng = np.random.default_rng([seed, index])
    which = int(rng.integers(len(seeds)))
    path = folder / f"case{kind.suffixes[which]}"
    path.write_bytes(kind.mutate(seeds[which], rng))
    begin = time.monotonic()
    signal.alarm(SECONDS)  # not caught: it ends the process, wherever that is
    try:
        kind.read(path)
    except UserError as error:
        if "\n" in str(error):
            return f"an error of several lines: {error!r}"
    except Exception:
        return traceback.format_exc(limit=-4)
    finally:
        signal.alarm(0)
    return f"took {took:.1f} s" if (took := time.monotonic() - begin) > SECONDS else None


def _run_batch(kind: Kind, seeds: Sequence[Any], seed: int, first: int, count: int, folder: Path) -> None:
    """In a process of its own; what it finds, and how far it came, is in files."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    logging.disable(logging.CRITICAL)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for index in range(first, first + count):
        (folder / "at").write_text(str(index))
        problem = _case(kind, seeds, seed, index, folder)
        if problem is None and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before > MEMORY:
            problem = "took more than 2 GB"
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if problem is not None:
            with (folder / "found").open("a") as file:
                file.write(json.dumps([index, problem]) + "\n")


def fuzz(name: str, count: int, *, seed: int = 0, first: int = 0, seconds: float = float("inf")) -> tuple[int, list]:
    """Try cases first, first + 1, ... of a kind, for so long at most.

    Returns:
        How many were tried, and the (number, what is wrong) of those that failed.
    """
    kind, found = KINDS[name], []
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    try:
        seeds = kind.seeds(folder)
        index, end, until = first, first + count, time.monotonic() + seconds
        while index < end and time.monotonic() < until:
            size = min(_BATCH, end - index)
            child = os.fork()
            if child == 0:
                try:
                    _run_batch(kind, seeds, seed, index, size, folder)
                finally:
                    os._exit(0)
            status = os.waitpid(child, 0)[1]
            if status:
                at = int((folder / "at").read_text())
                signal_name = signal.Signals(status & 127).name if status & 127 else f"exit code {status >> 8}"
                found.append((at, f"took {SECONDS} s" if signal_name == "SIGALRM" else f"ended by {signal_name}"))
                index = at + 1
            else:
                index += size
        if (folder / "found").exists():
            found += [tuple(json.loads(line)) for line in (folder / "found").read_text().splitlines()]
        return index - first, found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    parser.add_argument("--count", type=int, help=f"of each kind; default: {COUNTS}")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each kind, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    failed = 0
    for name in args.kinds:
        tried, found = fuzz(name, args.count or COUNTS[name], seed=args.seed, first=args.first, seconds=args.seconds)
        for index, problem in found:
            print(f"--- {name} {index}: {problem}")
        print(f"{name}: {tried} cases from {args.first}, seed {args.seed}: {len(found)} failed", flush=True)
        failed += len(found)
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
