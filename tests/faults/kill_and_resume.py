# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Trains a tiny model, kills the training at random moments and resumes it, and compares it with one left alone.

python -m tests.faults.kill_and_resume [--kills 20] [--workers 1] [--processes 2] [--seed 0]

The losses of every iteration, the weights, their average and the state of the optimiser have to be the same, bit for
bit. Whenever the training has been killed, every file under a final name has to be whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from ausm_d2.checkpoint.reading import is_whole
from ausm_d2.data.synthvis import SynthVis
from ausm_d2.engine import Trainer
from ausm_d2.processes import leave_together
from ausm_d2.seeds import seed_generators
from tests.tiny import ONE_LAYER, tiny_cfg

_TIMEOUT = timedelta(seconds=60)
_ended: dict[int, int] = {}  # exit codes of children that were waited for
_VIDEOS = "few_train"


def training_cfg(folder: Path, *, workers: int, iterations: int, clips: int = 1) -> CfgNode:
    """Saves often, so that many kills come while it saves; everything random is switched on."""
    cfg = tiny_cfg("OUTPUT_DIR", str(folder), "MODEL.AUSM.PROMPT_LABEL_SET", "synthvis", "MODEL_EMA.ENABLED", True)
    cfg.merge_from_list(ONE_LAYER)
    cfg.merge_from_list(["MODEL.AUSM.TRAIN.HISTORY_NOISE.ENABLED", True, "MODEL.SWIN.DROP_PATH_RATE", 0.3])
    cfg.merge_from_list(["MODEL.AUSM.TRAIN.OWN_PASSES", 1, "INPUT.AUGMENTATIONS", ["brightness", "rotation"]])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (_VIDEOS,), ()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.SAMPLING_FRAME_NUM = (48,), 2
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = clips, iterations, (iterations // 2,)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SEED = 1e-3, 2, -1  # the seed too comes from the checkpoint
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.freeze()
    return cfg


def register_videos() -> None:
    """Drawn videos to train on; all 20,000 of ``synthvis_train`` take seconds to list in every process."""
    DatasetCatalog.register(_VIDEOS, lambda: list(SynthVis(0, 50)))
    meta = MetadataCatalog.get("synthvis_train").as_dict()
    MetadataCatalog.get(_VIDEOS).set(**{name: value for name, value in meta.items() if name != "name"})


class WriteLosses(HookBase):
    """Notes the losses of every iteration, also of iterations that are run again."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def after_step(self) -> None:
        losses = {name: value for name, (value, _) in self.trainer.storage.latest().items() if "loss" in name}
        if losses:
            os.write(self._file, (json.dumps([self.trainer.iter, losses], sort_keys=True) + "\n").encode())


def train(cfg: CfgNode, attempt: int, rank: int = 0, world: int = 1) -> None:
    """In a process of its own: begin or resume."""
    folder = Path(cfg.OUTPUT_DIR)
    log = os.open(folder / f"log{rank}.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if world > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store{attempt}", rank=rank, world_size=world, timeout=_TIMEOUT
        )
        comm.create_local_process_group(world)
    # Resumed, nothing may come from these generators any more: they are others then.
    seed_generators(attempt if (folder / "last_checkpoint").exists() else 0)
    trainer = Trainer(cfg)
    if rank == 0:  # it has the means over all processes
        trainer.register_hooks([WriteLosses(folder / "losses.txt")])
        trainer._hooks.insert(0, trainer._hooks.pop())  # before the checkpoint of that iteration
    trainer.resume_or_load(resume=True)
    trainer.train()
    leave_together()


def start(cfg: CfgNode, attempt: int, world: int) -> list[int]:
    """Fork processes that train, each the leader of a group with its workers; their ids."""
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setpgid(0, 0)
                train(cfg, attempt, rank, world)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _ended.pop(child, None)  # of an earlier process with this number
        children.append(child)
    return children


def wait(children: Sequence[int], seconds: float, until: Callable[[], bool] | None = None) -> list[int | None]:
    """How each process ended (as ``waitstatus_to_exitcode``); None: it has not, after that many seconds.

    Args:
        until: ends the waiting as soon as it is true.
    """
    codes: dict[int, int | None] = {child: _ended.get(child) for child in children}
    end = time.monotonic() + seconds
    while None in codes.values() and time.monotonic() < end and not (until and until()):
        for child in [child for child, code in codes.items() if code is None]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = _ended[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return list(codes.values())


def kill(child: int) -> None:
    """A process and its workers, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def check_files(folder: Path) -> bool:
    """Every file under a final name is whole; whether one is there that was being written."""
    for path in folder.glob("model_*.pth"):
        assert is_whole(path), path
    if (tag := folder / "last_checkpoint").exists():
        assert (folder / tag.read_text()).is_file(), tag.read_text()
    return any(folder.glob(".*"))


def losses(folder: Path) -> dict[int, dict[str, float]]:
    """By iteration; one that was run twice gave the same both times."""
    found: dict[int, dict[str, float]] = {}
    for line in (folder / "losses.txt").read_text().splitlines():
        iteration, values = json.loads(line)
        assert found.setdefault(iteration, values) == values, f"iteration {iteration} was another one when run again"
    return found


def difference(one: Any, other: Any, name: str = "") -> str | None:
    """The name of the first part of two checkpoints that is not the same, bit for bit."""
    if isinstance(one, Mapping):
        if one.keys() != other.keys():
            return f"{name}: {sorted(map(str, one.keys() ^ other.keys()))}"
        parts = [difference(one[key], other[key], f"{name}.{key}") for key in one]
        return next((part for part in parts if part), None)
    if isinstance(one, list | tuple):
        parts = [difference(a, b, f"{name}.{i}") for i, (a, b) in enumerate(zip(one, other, strict=True))]
        return next((part for part in parts if part), None)
    same = torch.equal(one, other) if isinstance(one, Tensor) else one == other
    return None if same else name


def compare(alone: Path, killed: Path) -> None:
    """Two trainings were the same."""
    assert losses(alone) == losses(killed)
    one, other = (torch.load(folder / "model_final.pth", weights_only=True) for folder in (alone, killed))
    assert (found := difference(one, other)) is None, found


def run(folder: Path, *, kills: int, workers: int, world: int, iterations: int, seed: int) -> dict[str, int]:
    """One training left alone and one that is killed so many times; how many kills came while a file was written."""
    alone, killed = folder / "alone", folder / "killed"
    counts = {"kills": 0, "while saving": 0}
    options = {"workers": workers, "iterations": iterations, "clips": world}
    saves = iterations // 2
    alone.mkdir(parents=True)
    register_videos()
    children = start(training_cfg(alone, **options), 0, world)
    wait(children, 600, until=lambda: any(alone.glob("model_*.pth")))
    begin = time.monotonic()
    assert wait(children, 600) == [0] * world, (alone / "log0.txt").read_text()
    between = (time.monotonic() - begin) / saves  # seconds from one save to the next
    killed.mkdir()
    rng, cfg = random.Random(seed), training_cfg(killed, **options)
    while True:
        children = start(cfg, counts["kills"] + 1, world)
        if counts["kills"] < kills:
            # Kills are spread over the saves, half of them while it saves, the others any time up to the next save.
            saved = max(1, counts["kills"] * saves // kills)
            wait(children, 600, until=lambda saved=saved: len(list(killed.glob("model_*.pth"))) >= saved)
            if counts["kills"] % 2:
                codes = wait(children, 600, until=lambda: any(killed.glob(".model_*")))
                time.sleep(rng.uniform(0, 0.005))
            else:
                # On a busy machine the time between two saves varies: the next save ends the waiting.
                codes = wait(
                    children,
                    rng.uniform(0, between),
                    until=lambda saved=saved: len(list(killed.glob("model_*.pth"))) > saved,
                )
            if None not in codes:  # it was faster
                break
            victim = rng.randrange(world)
            kill(children[victim])
            rest = children[:victim] + children[victim + 1 :]
            assert None not in wait(rest, 120), "a process goes on, or waits, without the one that was killed"
            wait([children[victim]], 60)
            counts["kills"] += 1
            counts["while saving"] += check_files(killed)
        else:
            assert wait(children, 600) == [0] * world, (killed / "log0.txt").read_text()
            break
    compare(alone, killed)
    assert not any(killed.glob(".*")), "what was not finished is removed"
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, help="processes that make training items")
    parser.add_argument("--processes", type=int, default=1, help="processes that train")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(
            Path(folder),
            kills=args.kills,
            workers=args.workers,
            world=args.processes,
            iterations=args.iterations,
            seed=args.seed,
        )
    print(f"{counts}: losses, weights, averages and optimiser states are the same, bit for bit")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
