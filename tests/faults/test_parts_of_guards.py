# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Conditions of checks, each of which alone leads to the error."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ausm_d2 import launch
from ausm_d2.checkpoint import reading
from ausm_d2.config.checks import check_model_config
from ausm_d2.config.label_sets import label_sets
from ausm_d2.data.augmentation.geometry import RandomCrop, ResizeShortestEdge, Shrink
from ausm_d2.data.build import check_train_config, scored_records
from ausm_d2.data.catalog.base import chosen_label_sets, read_list
from ausm_d2.data.clip_sampler import ClipSampler
from ausm_d2.data.frames import VideoFile
from ausm_d2.data.synthvis import SynthVis
from ausm_d2.errors import UserError
from ausm_d2.masks.drawn import box_mask
from ausm_d2.masks.rle import to_rle
from tests.tiny import tiny_cfg
from tests.video.clips import write_clip


def _cfg(*opts: Any, of: Callable[[Any], object] = check_model_config) -> Callable[[], object]:
    return lambda: of(tiny_cfg(*opts))


def _training(*options: Any) -> Callable[[], object]:
    def call() -> object:
        cfg = tiny_cfg(*options)
        cfg.DATASETS.TRAIN = ("synthvis_train",)
        return check_train_config(cfg, 1)

    return call


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "no channels": (_cfg("MODEL.AUSM.HIDDEN_DIM", 0), "HIDDEN_DIM: 0, expected a multiple of 4"),
    "heads of no channel": (_cfg("MODEL.AUSM.DECODER.HEAD_DIM", 0), r"DECODER\.HEAD_DIM: 0 does not divide"),
    "passes below 0": (_cfg("MODEL.AUSM.TRAIN.OWN_PASSES", -1), "OWN_PASSES: -1, expected 0 or"),
    "passes in another mode": (
        _cfg("MODEL.AUSM.TRAIN.OWN_PASSES", 1, "MODEL.AUSM.TRAIN.MODE", "iterative"),
        "OWN_PASSES: 1, expected 0 or",
    ),
    "no stride": (_cfg("MODEL.AUSM.PIXEL_DECODER.MEMORY_STRIDES", []), r"MEMORY_STRIDES: \[\], expected some of"),
    "another stride": (_cfg("MODEL.AUSM.PIXEL_DECODER.MEMORY_STRIDES", [4]), r"MEMORY_STRIDES: \[4\], expected"),
    "one label set that is none": (
        _cfg("MODEL.AUSM.LABEL_SETS", [["object", 1], ["other"]], of=label_sets),
        r"MODEL\.AUSM\.LABEL_SETS: .*\['other'\]\], expected \[\[name, number of classes",
    ),
    "a learning rate that is no number": (_training("SOLVER.BASE_LR", float("nan")), r"SOLVER\.BASE_LR: nan found"),
    "an infinite learning rate": (_training("SOLVER.BASE_LR", float("inf")), r"SOLVER\.BASE_LR: inf found"),
    "batches of no clip": (_training("SOLVER.IMS_PER_BATCH", 0), r"SOLVER\.IMS_PER_BATCH: 0 found; a multiple of 1"),
    "workers below 0": (_training("DATALOADER.NUM_WORKERS", -1), r"DATALOADER\.NUM_WORKERS: -1 found; 0 or more"),
    "a rate of 0, by which the cosine divides": (
        _training("SOLVER.BASE_LR", 0.0, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
        r"SOLVER\.BASE_LR: 0\.0 found; above 0 expected with WarmupCosineLR",
    ),
    "a warm-up below 0": (_training("SOLVER.WARMUP_ITERS", -1), r"SOLVER\.WARMUP_ITERS: -1 found; 0 or more"),
    "checkpoints never": (_training("SOLVER.CHECKPOINT_PERIOD", 0), r"SOLVER\.CHECKPOINT_PERIOD: 0 found; 1 or more"),
    "steps that do not ascend": (_training("SOLVER.STEPS", (5, 3)), r"SOLVER\.STEPS: \[5, 3\] found; ascending"),
    "another scheduler": (_training("SOLVER.LR_SCHEDULER_NAME", "Nope"), r"LR_SCHEDULER_NAME: 'Nope' found; one of W"),
    "one mean": (_training("MODEL.PIXEL_MEAN", [1.0]), r"MODEL\.PIXEL_MEAN: \[1\.0\], expected three finite numbers"),
    "a mean that is none": (_cfg("MODEL.PIXEL_MEAN", [1.0, float("inf"), 1.0]), r"PIXEL_MEAN: \[1\.0, inf, 1\.0\]"),
    "divided by 0": (_cfg("MODEL.PIXEL_STD", [1.0, 0.0, 1.0]), r"PIXEL_STD: .*, expected three finite numbers above 0"),
    "sizes by another rule": (lambda: ResizeShortestEdge([1, 2], 9, "any"), r"cannot draw a size by 'any' from \[1, 2"),
    "a range of three sizes": (lambda: ResizeShortestEdge([1, 2, 3], 9, "range"), r"by 'range' from \[1, 2, 3\]"),
    "no size": (lambda: ResizeShortestEdge([], 9), r"by 'choice' from \[\]"),
    "another crop": (lambda: RandomCrop("round", [1, 2]), r"INPUT\.CROP\.TYPE: 'round' with SIZE \[1, 2\]"),
    "a crop of one number": (lambda: RandomCrop("absolute", [1]), r"INPUT\.CROP\.TYPE: 'absolute' with SIZE \[1\]"),
    "shrunk to nothing": (lambda: Shrink(0.0), r"INPUT\.SHRINK\.SMALLEST: 0\.0 found"),
    "grown": (lambda: Shrink(1.5), r"INPUT\.SHRINK\.SMALLEST: 1\.5 found"),
    "a range below 0": (lambda: ClipSampler(num_frames=1, frame_range=-1), "found 1, -1, "),
    "a stride below 0": (lambda: ClipSampler(num_frames=1, frame_range=1, stride=-1), "found 1, 1, -1, "),
    "reversed too often": (lambda: ClipSampler(num_frames=1, frame_range=1, reverse=1.5), r"found 1, 1, 0, 1\.5"),
    "reversed less than never": (lambda: ClipSampler(num_frames=1, frame_range=1, reverse=-1), "found 1, 1, 0, -1"),
    "every frame but none": (lambda: scored_records(tiny_cfg("TEST.AUSM.EVERY_NTH", 0), "x"), "EVERY_NTH: 0, expected"),
    "a box turned round": (lambda: box_mask((9, 9), (1, 4, 2, 2)), "a box is x0, y0, x1, y1 with"),
    "a box of three": (lambda: box_mask((9, 9), (1, 4, 2)), "a box is x0, y0, x1, y1 with"),
    "a box of no numbers": (lambda: box_mask((9, 9), (1, 1, 2, float("nan"))), "a box is x0, y0, x1, y1 with"),
    "a box to the left": (lambda: box_mask((9, 9), (-5, 1, -3, 2)), "lies outside of the frame of 9x9"),
    "a box above": (lambda: box_mask((9, 9), (1, -5, 2, -3)), "lies outside of the frame of 9x9"),
    "a box to the right": (lambda: box_mask((9, 9), (10, 1, 12, 2)), "lies outside of the frame of 9x9"),
    "a box below": (lambda: box_mask((9, 9), (1, 10, 2, 12)), "lies outside of the frame of 9x9"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_condition_alone_is_refused(name: str) -> None:
    call, message = CASES[name]
    with pytest.raises(UserError, match=message):
        call()


def test_an_output_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"OUTPUT_DIR: '.*file/out' cannot be written: Not a directory"):
        launch._run(Namespace(eval_only=False), tiny_cfg("OUTPUT_DIR", str(tmp_path / "file" / "out")))


@pytest.mark.parametrize("entry", ["ab", ["a"], ["a", 1], ["a", "b", "c"]])
def test_label_sets_of_data_sets_are_pairs_of_names(entry: Any) -> None:
    cfg = tiny_cfg()
    cfg.DATASETS.LABEL_SETS = [entry]
    with pytest.raises(UserError, match=r"DATASETS\.LABEL_SETS: .* found; \[data set, label set\] expected"):
        chosen_label_sets(cfg)


@pytest.mark.parametrize("polygon", [["a"] * 6, [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1e7] * 6, "123456"])
def test_polygons_that_are_none(polygon: Any) -> None:
    with pytest.raises(ValueError, match="expected polygons as lists of x, y pairs"):
        to_rle([polygon], 9, 9)


def test_places_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frame to draw a clip from"):
        ClipSampler(num_frames=1, frame_range=1)([], np.random.default_rng(0))
    data = SynthVis(3, 1, 2)
    for index in (-1, 1):
        with pytest.raises(IndexError, match=f"video {index} of 1"):
            data[index]
    for frame in (-1, 2):
        with pytest.raises(IndexError, match=f"frame {frame} of a video of 2 frames"):
            data[0].frames[frame]
    video = VideoFile(str(write_clip(tmp_path / "a.mp4", 2)), "rgb24")
    for frame in (-1, 2):
        with pytest.raises(UserError, match=f"frame {frame} requested, the video has 2"):
            video[frame]


@pytest.mark.parametrize("value", [torch.zeros(2).to_sparse(), 3, np.array(["a"])])
def test_weights_are_dense_tensors_of_a_name(value: Any) -> None:
    with pytest.raises(UserError, match=r"f: 'w' is a \w+, expected a dense tensor or an array of numbers"):
        reading._tensor("f", "w", value)
    with pytest.raises(UserError, match="f: '7' is a Tensor, expected"):
        reading._tensor("f", 7, torch.zeros(2))


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes("a\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"l\.txt: the list cannot be read"):
        read_list(tmp_path / "l.txt")
