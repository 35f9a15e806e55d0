# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""From labels to a fine-tuned model.

The folder of a run:

- ``labels/train.json``, ``labels/val.json``: the user's labels in two parts;
- ``start.pth``, ``train.yaml``: what the training begins with;
- ``training/``: checkpoints, log and metrics;
- ``model.pth``, ``config.yaml``: the result, for ``ausm track --config``;
- ``scores.json``: AP on the held part, before and after.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ausm_d2.checkpoint.reading import read_checkpoint, weights_to_use
from ausm_d2.config import class_names, load_config
from ausm_d2.data.build import check_train_config
from ausm_d2.engine import check_datasets
from ausm_d2.errors import UserError
from ausm_d2.finetune.labels import LABEL_SET, Labels
from ausm_d2.finetune.recipe import (
    CONFIG,
    MODEL,
    RECIPE,
    START,
    base_config,
    recipe,
    write_config,
    write_start,
    write_weights,
)
from ausm_d2.finetune.scores import score, table, without_gain
from ausm_d2.finetune.trainer import Progress, fine_tune, measure_pace
from ausm_d2.io import atomic_folder, atomic_write, read_json

FEWEST = 10  # iterations, however short the time
_SPARE = 1.2  # the training ends after this multiple of the requested minutes


@dataclass
class Asked:
    """A request of ``ausm train``."""

    output: Path
    labels: Callable[[], Labels] | None = None  # None: ``resume``
    start: str = "ausm_edge"  # the model to begin with
    minutes: float = 6.0  # of training
    iterations: int | None = None  # instead of minutes
    opts: Sequence[str] = ()  # alternating keys and values of the config
    seed: int = 1
    resume: bool = False


@dataclass
class Work:
    """Callbacks of a run."""

    say: Callable[[str], None]
    progress: Callable[[str], Progress]  # by the name of the unit that it counts
    stopped: Callable[[], bool]


def train(asked: Asked, work: Work) -> bool:
    """Run a request.

    Returns:
        True if the training is complete; False if it was stopped, and ``resume`` continues it.

    Raises:
        UserError: the request or its data are invalid. Nothing has been written.
    """
    folder = asked.output
    started = (folder / RECIPE).is_file()
    if asked.resume and not started:
        raise UserError(f"--resume: {folder} holds no training ({RECIPE})")
    if asked.resume:
        work.say(f"going on with {folder / RECIPE}; labels and settings are those that it was begun with")
    elif started:
        raise UserError(f"{folder} holds a training already; --resume goes on with it, or choose another folder")
    else:
        _prepare(asked, work)
    cfg = _load(folder)
    before = _score_before(cfg, folder, work)
    deadline = time.monotonic() + _SPARE * 60 * asked.minutes if asked.iterations is None and not asked.resume else None

    def over() -> bool:
        return work.stopped() or (deadline is not None and time.monotonic() > deadline)

    done, checkpoint = fine_tune(cfg, resume=asked.resume, progress=work.progress("iteration"), stopped=over)
    _write_result(cfg, folder, checkpoint)
    if done < cfg.SOLVER.MAX_ITER:
        if work.stopped():
            work.say(f"stopped after {done} of {cfg.SOLVER.MAX_ITER} iterations; {folder / MODEL} is as far as that")
            return False
        work.say(f"the time is up after {done} of {cfg.SOLVER.MAX_ITER} iterations; --resume does the others")
    for old in (folder / "training").glob("model_[0-9]*.pth"):
        if old != checkpoint:
            old.unlink()
    if before is not None:
        after = score(cfg, str(folder / MODEL), work.progress("picture"))
        _write_json(folder / "scores.json", {"before": before, "after": after, "iterations": done})
        work.say(f"on the held part, found without prompts:\n{table(before, after)}")
        if poor := without_gain(before, after):
            work.say(
                f"nothing was gained for {', '.join(poor)}: AP50 did not rise. Add labelled images of the kind that it "
                f"will be used on, or keep the model that it began with"
            )
    names = ", ".join(class_names(cfg)[LABEL_SET])
    work.say(f"{folder / MODEL} knows: {names}\nausm track VIDEO --config {folder / CONFIG} -o RESULTS")
    return True


def _prepare(asked: Asked, work: Work) -> None:
    """Check everything, then write the initial files of the training."""
    assert asked.labels is not None
    base = base_config(asked.start)
    labels = asked.labels()
    work.say(f"checked, no problems; to train on: {labels.train}")
    work.say(f"held out: {labels.held}" if labels.held is not None else "held out: nothing")
    for note in labels.notes:
        work.say(f"note: {note}")
    keys = recipe(asked.start, labels, asked.output, asked.opts, asked.seed)
    heading = f"Own objects: {', '.join(labels.classes)}; from {asked.start}."
    with atomic_folder(asked.output) as folder:
        labels.write(folder / "labels")
        write_config(folder / RECIPE, keys)
        cfg = load_config(str(folder / RECIPE))
        check_train_config(cfg, 1)
        write_start(base, cfg, folder / START)
        cfg = load_config(str(folder / RECIPE))  # which finds the weights now
        check_datasets(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        iterations = asked.iterations
        if iterations is None:
            pace = measure_pace(cfg)
            iterations = max(FEWEST, pace.iterations(asked.minutes))
            work.say(
                f"an iteration takes {pace.iteration:.2f} s, the time before the first one {pace.start:.0f} s: "
                f"{iterations} in {asked.minutes:g} minutes"
            )
        keys["SOLVER"] |= {"MAX_ITER": iterations, "CHECKPOINT_PERIOD": max(1, min(50, iterations // 4))}
        keys["SOLVER"]["WARMUP_ITERS"] = min(10, iterations // 2)
        resume = f"ausm train -o {asked.output} --resume goes on with the training."
        write_config(folder / RECIPE, keys, heading, resume)
        result = {"_BASE_": RECIPE, "MODEL": {"WEIGHTS": f"./{MODEL}"}}
        write_config(folder / CONFIG, result, heading, f"ausm track VIDEO --config {asked.output / CONFIG} -o RESULTS")


def _load(folder: Path) -> CfgNode:
    """The config of the training.

    Raises:
        UserError: it is damaged, or its data are not there any more.
    """
    cfg = load_config(str(folder / RECIPE))
    cfg.OUTPUT_DIR = str(folder.resolve() / "training")  # the folder may have been moved
    check_datasets(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    cfg.freeze()
    return cfg


def _score_before(cfg: CfgNode, folder: Path, work: Work) -> dict[str, Any] | None:
    """The scores of the weights that the training begins with; None if nothing is held out."""
    if not cfg.DATASETS.TEST:
        return None
    path = folder / "scores.json"
    if path.is_file():
        return dict(read_json(path)["before"])
    before = score(cfg, str(folder / START), work.progress("picture"))
    _write_json(path, {"before": before})
    return before


def _write_result(cfg: CfgNode, folder: Path, checkpoint: Path) -> None:
    weights = weights_to_use(read_checkpoint(checkpoint))
    write_weights(weights, folder / MODEL)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
