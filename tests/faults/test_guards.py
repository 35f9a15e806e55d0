# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What is refused by checks that the tests of their own modules do not reach."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.checkpoint.reading import read_checkpoint, require_whole
from ausm_d2.data.augmentation.geometry import ResizeShortestEdge
from ausm_d2.data.build import check_train_config
from ausm_d2.data.catalog.images import load_masked_images
from ausm_d2.data.catalog.sav import _load_frames
from ausm_d2.data.catalog.vos import load_folder_tree
from ausm_d2.data.clip_sampler import ClipSampler
from ausm_d2.data.synthvis.records import SynthVis
from ausm_d2.errors import UserError
from ausm_d2.evaluation.vos_folders import score_folders
from ausm_d2.jobs.prompt_file import read_prompt_file
from ausm_d2.masks.drawn import box_mask
from ausm_d2.video.frame import Source
from ausm_d2.video.inputs import with_first
from ausm_d2.video.tracked import Journal
from tests.data.disk import square, write_frame, write_labels
from tests.tiny import tiny_cfg


def _masks(folder: Path, *names: str) -> Path:
    """Files that are masks if their suffix is .png."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        if name.endswith(".png"):
            write_labels(folder / name, square(0).astype(int))
    return folder


def _frames(folder: Path) -> Path:
    write_frame(folder / "a" / "00000.jpg")
    return folder


def _prompts(folder: Path, data: object) -> Path:
    (folder / "p.json").write_text(json.dumps(data))
    return folder / "p.json"


def _train_cfg(*opts: object) -> object:
    cfg = tiny_cfg(*opts)
    cfg.DATASETS.TRAIN = ("synthvis_train",)
    return cfg


Refused = Callable[[Path], object]
REFUSED: dict[str, tuple[Refused, str]] = {
    "sizes by an unknown rule": (
        lambda _: ResizeShortestEdge([1, 2, 3], 9, "range"),
        r"INPUT\.MIN_SIZE_TRAIN\(_SAMPLING\): cannot draw a size by 'range' from \[1, 2, 3\]",
    ),
    "clips of no frame": (lambda _: ClipSampler(num_frames=0), r"INPUT\.SAMPLING_FRAME_\*: .*found 0, "),
    "a learning rate below 0": (
        lambda _: check_train_config(_train_cfg("SOLVER.BASE_LR", -1.0), 1),
        r"SOLVER\.BASE_LR: -1\.0 found; 0 or more expected",
    ),
    "iterations below 0": (
        lambda _: check_train_config(_train_cfg("SOLVER.MAX_ITER", -1), 1),
        r"SOLVER\.MAX_ITER: -1 found; 0 or more expected",
    ),
    "embedded videos of one frame": (lambda _: SynthVis(3, 1, 1), "synthvis: videos of 1 frames, expected 2 or more"),
    "images without any mask": (
        lambda path: load_masked_images(_frames(path / "i") / "a", _masks(path / "m")),
        r"m: no mask \(\.png\) found",
    ),
    "a video without any mask": (
        lambda path: load_folder_tree(_frames(path / "i"), _masks(path / "m", "a/notes.jpg"))[0].height,
        r"m/a: no masks; <frame>\.png expected, such as 00000\.png",
    ),
    "an object of SA-V in two folders": (
        lambda path: (
            _load_frames("", _frames(path / "i"), _masks(path / "m", "a/1/00000.png", "a/001/00000.png"))[0].height
        ),
        "a: two folders for one object, '0*1' and '0*1'",
    ),
    "nothing to score": (
        lambda path: score_folders(_masks(path / "t"), _masks(path / "p"), workers=0),
        r"t: no masks: expected <video>/<frame>\.png",
    ),
    "a video with nothing to score": (
        lambda path: score_folders(_masks(path / "t", "a/0.jpg"), _masks(path / "p", "a/0.jpg"), workers=0),
        r"a: no masks: expected <frame>\.png or <object>/<frame>\.png",
    ),
    "a true object in two folders": (
        lambda path: score_folders(_masks(path / "t", "a/1/0.png", "a/01/0.png"), _masks(path / "p"), workers=0),
        "a: two folders for one object, '0*1' and '0*1'",
    ),
    "find that is no yes or no": (
        lambda path: read_prompt_file(_prompts(path, {"objects": [], "find": "all"})),
        r"p\.json: find: 'all', expected true or false",
    ),
    "an id that is none": (
        lambda path: read_prompt_file(_prompts(path, {"objects": [{"id": 0, "prompts": []}]})),
        r"p\.json: objects\[0\]\.id: ",
    ),
    "a box that is turned round": (lambda _: box_mask((9, 9), (5, 1, 2, 4)), "a box is x0, y0, x1, y1 with x0 <= x1"),
    "a video without a frame": (
        lambda _: with_first(Source("a.mp4", iter([]), 0, Fraction(25))),
        "a.mp4: no frame can be decoded",
    ),
    "a journal of fewer frames": (
        lambda path: Journal(path / "frames.jsonl", 3),
        r"frames\.jsonl: holds 0 frames, 3 expected; start again without --resume",
    ),
    "a file that is not there": (lambda path: require_whole(path / "no.pth"), r"no\.pth: cannot be read: No such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name: str, tmp_path: Path) -> None:
    call, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        call(tmp_path)


def test_an_error_within_a_checkpoint_names_its_file(tmp_path: Path) -> None:
    weight = torch.tensor([1.5, 2.5, 3.5])
    torch.save({"model": {"w": weight}}, tmp_path / "a.pth")
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[data.index(weight.numpy().tobytes())] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    for read in (read_checkpoint, require_whole):
        with pytest.raises(UserError, match=r"^.*a\.pth: damaged: the checksum of .* does not fit$"):
            read(tmp_path / "a.pth")


def test_weights_that_do_not_fit_name_their_file(tmp_path: Path) -> None:
    torch.save({"model": {"nothing.of.this": torch.zeros(3)}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"^.*a\.pth"):
        AUSMCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).load(str(tmp_path / "a.pth"))


def test_a_frame_that_cannot_be_read_is_named_with_its_video(tmp_path: Path) -> None:
    record = load_folder_tree(_frames(tmp_path / "i"), _masks(tmp_path / "m", "a/00000.png"))[0]
    assert record.height and record.read_frame(0).shape == (24, 36, 3)
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(tmp_path / "i" / "a" / "00000.jpg")
    with pytest.raises(UserError, match=r"^video a, frame 00000: .*6"):
        record.read_frame(0)
    (tmp_path / "i" / "a" / "00000.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"^video a, frame 00000: .*the file is empty"):
        record.read_frame(0)
