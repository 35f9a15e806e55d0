# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from ausm_d2.errors import UserError
from ausm_d2.training import forms
from tests.checkpoint.test_reading import Evil
from tests.tiny import clip, tiny_cfg, write_tiny_config
from tools import train_decoder
from tools.experiments import recorded_decoder
from tools.experiments.recorded_decoder import AUSMDecoder, DecoderTrainer, RecordedBatches, record

PROPOSALS = ["MODEL.AUSM.PIXEL_DECODER.QUERIES", "proposals", "MODEL.META_ARCHITECTURE", "AUSMDecoder"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recorded frames of synthvis."""
    folder = tmp_path_factory.mktemp("recorded")
    cfg = tiny_cfg(*PROPOSALS, "DATASETS.TRAIN", ("synthvis_val",), "SEED", 3, "SOLVER.IMS_PER_BATCH", 2)
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "INPUT.SAMPLING_FRAME_NUM", 2, "INPUT.MIN_SIZE_TRAIN", [48]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded_decoder, "_SHARD", 4)
        record(cfg, folder, 8)
    return folder


def test_the_decoder_predicts_the_same_from_recorded_frames() -> None:
    torch.manual_seed(0)
    model = AUSMDecoder(tiny_cfg(*PROPOSALS)).eval()
    items = [clip(3, 2, seed=1)]
    torch.manual_seed(1)
    frames = list(model.record(items))
    found, targets = model._decode_recorded(frames)
    torch.manual_seed(1)
    images, wanted = model.collate(items)
    ids, _, forcing = model._preprocess(wanted)
    with torch.no_grad():
        layers = forms.parallel(model, images, ids, forcing, ["synthvis"]).layers
    kept = (forcing.track | forcing.detect).flatten(0, 1).any(dim=1)
    expected = layers[-1].mask_logits[kept]
    assert (found[-1].mask_logits - expected).norm() < 0.02 * expected.norm()  # stored in half precision
    assert torch.equal(targets.masks, wanted.masks.flatten(0, 1)[kept])


def test_training_starts_from_the_frames_and_leaves_the_rest_as_it_was(folder: Path, tmp_path: Path) -> None:
    frozen = [["frame_encoder.proposal_pyramid", 1.0], ["pixel_decoder", 1.0], ["", 0.0]]
    cfg = tiny_cfg(*PROPOSALS, "SOLVER.MULTIPLIERS", frozen, "SOLVER.MAX_ITER", 2, "SEED", 3, "DATASETS.TEST", ())
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path), "SOLVER.IMS_PER_BATCH", 2, "TEST.EVAL_PERIOD", 0])
    DecoderTrainer.folders, DecoderTrainer.shares = [folder, folder], [1.0, 2.0]
    torch.manual_seed(0)
    trainer = DecoderTrainer(cfg)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("frame_encoder.proposal_pyramid", "pixel_decoder")) for name in changed)
    assert any("proposals" in name for name in changed)
    losses = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert losses["loss_heat"] > 0 and losses["loss_box"] > 0


def test_batches_are_those_of_the_iteration_and_of_one_size(folder: Path) -> None:
    batches = list(islice(RecordedBatches([folder], [1.0], batch=3, seed=5), 4))
    resumed = RecordedBatches([folder], [1.0], batch=3, seed=0)
    resumed.continue_from(2, 5)
    again = next(iter(resumed))
    assert [frame["masks"].tolist() for frame in again] == [frame["masks"].tolist() for frame in batches[2]]
    assert all(len({frame["size"][1:] for frame in batch}) == 1 for batch in batches)


def test_a_folder_without_frames_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recorded frames"):
        RecordedBatches([tmp_path], [1.0], batch=1, seed=0)


def test_files_that_hold_no_frames_are_refused_and_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            RecordedBatches([tmp_path], [1.0], batch=1, seed=0)

    (tmp_path / "a.pt").write_bytes(b"no frames")
    refused(r"a\.pt: cannot be read as recorded frames: \S")
    torch.save([{"g": torch.zeros(1)}], tmp_path / "a.pt")
    refused(r"a\.pt: expected recorded frames, a list of backbone, .*visible")
    torch.save([Evil()], tmp_path / "a.pt")
    refused(r"a\.pt: cannot be read as recorded frames: ")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["record", "-o", "recorded", "--frames", "0"], "--frames: 0, expected 1 or more"),
        (["train", "one", "two", "--shares", "1"], r"--shares: \[1\.0\], expected 2 numbers above 0"),
        (["train", "one", "--shares", "0"], r"--shares: \[0\.0\], expected 1 numbers above 0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_decoder", *arguments, "--config-file", str(write_tiny_config(tmp_path))])
    with pytest.raises(UserError, match=message):
        train_decoder.main()
    assert not (tmp_path / "recorded").exists()


def test_a_decoder_that_reads_more_than_the_history_is_not_recorded() -> None:
    model = AUSMDecoder(tiny_cfg("MODEL.AUSM.START", "residual"))
    with pytest.raises(UserError, match=r"MODEL\.AUSM\.START: residual, expected lookup"):
        list(model.record([clip(1, 1)]))
