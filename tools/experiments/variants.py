# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Models whose trainings differ in one setting: clip length (Fig. 5), History Marker, history noise, START.

Each run is a training as by train_net.py, with a few keys changed, in its own folder. Trainings that are complete, by
this command or by train_net.py (on several GPUs, say), are not repeated; interrupted ones are resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import PathManager

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.checkpoint.convert import Origin
from ausm_d2.checkpoint.reading import read_checkpoint, weights_to_use
from ausm_d2.config import load_config
from ausm_d2.data.views import first_videos
from ausm_d2.engine import Trainer, check_datasets
from ausm_d2.errors import UserError
from ausm_d2.evaluation.evaluators import Scores
from ausm_d2.io import atomic_write
from ausm_d2.meta_arch import AUSM
from tools.experiments.object_vectors import AUSMObjectVectors
from tools.experiments.report import Paper, Report, Row
from tools.experiments.setup import common_config

logger = logging.getLogger(__name__)

PAPER = Paper(
    source="Fig. 5, Swin-B, 16 frames over 5",
    measure="gain of J&F, G or AP, points",
    values={
        "MOSE": {"5": 0.0, "16": 4.5},
        "YouTube-VOS 2018": {"5": 0.0, "16": 1.9},
        "YouTube-VOS 2019": {"5": 0.0, "16": 3.1},
        "OVIS": {"5": 0.0, "16": 5.2},
    },
)
_TOLERANCE = 0.1  # of the frames of an iteration: 5 and 16 have no common multiple below 80
Keys = dict[str, Any]  # config keys and their values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the trainings (default: %(default)s)")


def add_clip_length_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--frames", type=int, nargs="+", default=[5, 16], help="of a clip (default: %(default)s)")
    parser.add_argument(
        "--frames-per-iteration",
        type=int,
        help="of all clips of an iteration together, to a tenth (default: as the config has it)",
    )


def clip_length(args: argparse.Namespace) -> Report:
    """Short and long training clips, with the same number of frames per iteration, to within 10 % (Fig. 5)."""
    cfg = common_config(args)
    total = args.frames_per_iteration or cfg.SOLVER.IMS_PER_BATCH * cfg.INPUT.SAMPLING_FRAME_NUM
    variants: dict[str, Keys] = {}
    for frames in args.frames:
        clips = max(1, round(total / frames)) if frames > 0 else 0
        if abs(clips * frames - total) > _TOLERANCE * total:
            raise UserError(
                f"--frames: no number of clips of {frames} has about the {total} frames of an iteration "
                "(--frames-per-iteration)"
            )
        variants[str(frames)] = {"INPUT.SAMPLING_FRAME_NUM": frames, "SOLVER.IMS_PER_BATCH": clips}
    report = Report("Frames of a training clip", "frames of a training clip", paper=PAPER)
    return _compare(args, variants, report)


def marker(args: argparse.Namespace) -> Report:
    """Objects propagated as marks on the features, or as one vector each."""
    variants = {
        "History Marker": {"MODEL.META_ARCHITECTURE": AUSM.__name__},
        "object vectors": {"MODEL.META_ARCHITECTURE": AUSMObjectVectors.__name__},
    }
    return _compare(args, variants, Report("History Marker", "what is handed on", ordered=False))


def add_start_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument(
        "--detector",
        action="store_true",
        help="load only what a Mask2Former has, frame encoder and Pixel Decoder, from MODEL.WEIGHTS",
    )


def noise(args: argparse.Namespace) -> Report:
    """Training with the true history, or with noise on it."""
    variants = {
        "with history noise": {"MODEL.AUSM.TRAIN.HISTORY_NOISE.ENABLED": True},
        "without": {"MODEL.AUSM.TRAIN.HISTORY_NOISE.ENABLED": False},
    }
    return _compare(args, variants, Report("History noise", "training", ordered=False))


def start(args: argparse.Namespace) -> Report:
    """Attentions initialised as lookups, or a History Decoder whose branches start at zero (deviations.md, 15)."""
    variants: dict[str, Keys] = {name: {"MODEL.AUSM.START": name} for name in ("lookup", "residual")}
    if args.detector:
        weights = str(_detector(load_config(args.config_file, args.opts).MODEL.WEIGHTS, Path(args.output)))
        variants = {name: {**keys, "MODEL.WEIGHTS": weights} for name, keys in variants.items()}
    return _compare(args, variants, Report("Start of the history", "MODEL.AUSM.START", ordered=False))


def _detector(weights: str, folder: Path) -> Path:
    """Write those of some weights that a Mask2Former has, to ``folder/detector.pth``; the rest starts as START says.

    Raises:
        UserError: if there are no weights, or the file cannot be read.
    """
    if not weights:
        raise UserError("MODEL.WEIGHTS: empty, expected the weights of a detector (--detector)")
    state = weights_to_use(read_checkpoint(PathManager.get_local_path(weights)))
    kept = {
        name: value
        for name, value in state.items()
        if name.startswith(("frame_encoder.", "pixel_decoder."))
        and not name.startswith("pixel_decoder.track_embed.")  # the position of tracked rows
    }
    with atomic_write(folder / "detector.pth") as path:
        torch.save({"model": kept, "converted_from": str(Origin.MASK2FORMER)}, path)
    return folder / "detector.pth"


def _compare(args: argparse.Namespace, variants: Mapping[str, Keys], report: Report) -> Report:
    """Train and evaluate every variant with every seed."""
    runs = [
        (setting, seed, _run_config(args, {**keys, "SEED": seed}, _folder(args, setting, seed)))
        for setting, keys in variants.items()
        for seed in args.seeds
    ]
    for _, _, cfg in runs:
        _check_folder(cfg)  # check all folders before the first training
    budget = runs[0][2].SOLVER
    for _, _, cfg in runs:
        _train(cfg)
    for setting, seed, cfg in runs:
        for name, scores in _evaluate(cfg, args.videos).items():
            report.rows.append(Row(name, setting, scores, seed if len(args.seeds) > 1 else None))
    report.rows.sort(key=lambda row: row.dataset)
    frames = {cfg.SOLVER.IMS_PER_BATCH * cfg.INPUT.SAMPLING_FRAME_NUM for _, _, cfg in runs}
    report.notes.append(
        f"Each trained for {budget.MAX_ITER} iterations of {' or '.join(map(str, sorted(frames)))} frames from "
        f"{runs[0][2].MODEL.WEIGHTS or 'random weights'}; seed{'s' * (len(args.seeds) > 1)} "
        f"{', '.join(map(str, args.seeds))}."
    )
    report.notes += _learning_curves(runs)
    return report


def _learning_curves(runs: Sequence[tuple[str, int, CfgNode]]) -> list[str]:
    """Learning of the tracking rows, as Markdown: mean dice loss (last layer) in each quarter of every training.

    A run without ``metrics.json`` has no line.
    """
    lines = []
    for setting, seed, cfg in runs:
        file = Path(cfg.OUTPUT_DIR, "metrics.json")
        if not file.is_file():
            continue
        entries = []
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a killed training may leave an incomplete line
                entries.append(json.loads(line))
        losses = {each["iteration"]: each["loss_trk_dice"] for each in entries if "loss_trk_dice" in each}
        quarters: list[list[float]] = [[], [], [], []]
        for iteration, loss in losses.items():
            quarters[min(4 * iteration // cfg.SOLVER.MAX_ITER, 3)].append(loss)
        cells = [f"{sum(of) / len(of):.2f}" if of else "" for of in quarters]
        lines.append(f"| {' | '.join([f'{setting}, seed {seed}', *cells])} |")
    if not lines:
        return []
    header = [
        "| Dice loss of tracking, mean of the | 1st | 2nd | 3rd | 4th quarter |",
        "| --- | --- | --- | --- | --- |",
    ]
    return ["\n".join([*header, *lines])]


def _folder(args: argparse.Namespace, setting: str, seed: int) -> Path:
    return Path(args.output, f"{setting.replace(' ', '_')}_seed{seed}")


def _run_config(args: argparse.Namespace, keys: Keys, folder: Path) -> CfgNode:
    cfg = common_config(args)
    check_datasets(cfg, cfg.DATASETS.TRAIN)
    if "MODEL.WEIGHTS" not in args.opts:
        cfg.MODEL.WEIGHTS = ""  # those of a finished model would hide what is compared
    cfg.merge_from_list([part for item in keys.items() for part in item])
    cfg.OUTPUT_DIR = str(folder)
    cfg.TEST.EVAL_PERIOD = 0
    return cfg


def _learning(cfg: CfgNode) -> dict[str, Any]:
    """All keys that affect training, with their values."""

    def flat(node: CfgNode, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, CfgNode):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    values = {key: value for part in ("MODEL", "INPUT", "SOLVER") for key, value in flat(cfg[part], f"{part}.")}
    test_only = ("MODEL.DEVICE", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")
    values = {key: value for key, value in values.items() if key not in test_only}
    values.update({"SEED": cfg.SEED, "DATASETS.TRAIN": cfg.DATASETS.TRAIN})
    return json.loads(json.dumps(values))  # a file has lists where a config has tuples


def _check_folder(cfg: CfgNode) -> None:
    """Raise a ``UserError`` if the folder holds a training with other settings."""
    file = Path(cfg.OUTPUT_DIR, "config.yaml")
    if not file.is_file():
        return
    there, asked = _learning(load_config(str(file))), _learning(cfg)
    differ = [
        f"{key} {there.get(key)!r} there, {asked[key]!r} asked for" for key in asked if there.get(key) != asked[key]
    ]
    if differ:
        raise UserError(
            f"{cfg.OUTPUT_DIR}: holds a run of other settings ({'; '.join(differ[:3])}); remove or rename it"
        )


def _train(cfg: CfgNode) -> None:
    """Start or resume a training; do nothing if ``model_final.pth`` exists."""
    folder = Path(cfg.OUTPUT_DIR)
    if (folder / "model_final.pth").is_file():
        logger.info("%s: trained already", folder)
        return
    with atomic_write(folder / "config.yaml") as path:
        path.write_text(cfg.dump(), encoding="utf-8")
    logger.info("Training in %s", folder)
    cfg = cfg.clone()
    cfg.DATASETS.TEST = ()  # evaluated separately, so that it can be resumed separately
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()


def _evaluate(cfg: CfgNode, videos: int | None) -> dict[str, Scores]:
    """Scores by data set."""
    cfg = cfg.clone()
    cfg.DATASETS.TEST = [first_videos(name, videos) for name in cfg.DATASETS.TEST]
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR, "model_final.pth"))
    cfg.TEST.AUSM.RESUME = True
    model = Trainer.build_model(cfg)
    AUSMCheckpointer(model, complete=True).load(cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    names = cfg.DATASETS.TEST
    return {names[0]: results} if len(names) == 1 else results
