# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from ausm_d2.errors import UserError
from ausm_d2.recorded import recorder
from ausm_d2.recorded.decoder import AUSMDecoder
from ausm_d2.recorded.frames import Frame, RecordedBatches
from ausm_d2.recorded.recorder import PooledBatches, Recorder, record
from ausm_d2.recorded.trainer import DecoderTrainer
from ausm_d2.training import forms
from tests.checkpoint.test_reading import Evil
from tests.tiny import clip, tiny_cfg

PROPOSALS = ["MODEL.AUSM.PIXEL_DECODER.QUERIES", "proposals"]


def small_cfg(*opts: Any) -> CfgNode:
    """The tiny model on clips of two small frames of synthvis."""
    cfg = tiny_cfg(*PROPOSALS, "DATASETS.TRAIN", ("synthvis_val",), "SEED", 3, "SOLVER.IMS_PER_BATCH", 2)
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "INPUT.SAMPLING_FRAME_NUM", 2, "INPUT.MIN_SIZE_TRAIN", [48]])
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recorded frames of synthvis."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "_SHARD", 4)
        record(small_cfg(), folder, 8)
    return folder


def same(one: list[Frame], other: list[Frame]) -> bool:
    names = ("g", "ids", "masks", "track")
    return len(one) == len(other) and all(
        torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in names
    )


@pytest.mark.parametrize("opts", [PROPOSALS, ["MODEL.AUSM.START", "residual"]])
def test_the_decoder_predicts_the_same_from_recorded_frames(opts: list[str]) -> None:
    """With the residual start it reads levels of its own, not G_t alone."""
    torch.manual_seed(0)
    model = AUSMDecoder(tiny_cfg(*opts)).eval()
    items = [clip(3, 2, seed=1)]
    torch.manual_seed(1)
    frames = list(model.record(items))
    found, targets = model._decode(frames)
    torch.manual_seed(1)
    images, wanted = model.collate(items)
    ids, _, forcing = model._preprocess(wanted)
    with torch.no_grad():
        layers = forms.parallel(model, images, ids, forcing, ["synthvis"]).layers
    kept = (forcing.track | forcing.detect).flatten(0, 1).any(dim=1)
    expected = layers[-1].mask_logits[kept]
    assert (found[-1].mask_logits - expected).norm() < 0.02 * expected.norm()  # stored in half precision
    assert torch.equal(targets.masks, wanted.masks.flatten(0, 1)[kept])


def test_the_cells_alone_can_be_trained(folder: Path, tmp_path: Path) -> None:
    frames = next(iter(RecordedBatches([folder], [1.0], batch=2, seed=3)))
    torch.manual_seed(0)
    model = AUSMDecoder(tiny_cfg(*PROPOSALS)).train()
    whole = model(frames)
    model.cells_only = True
    cells = model(frames)
    assert set(cells) == {"loss_heat", "loss_box", "loss_coarse"}
    for name, loss in cells.items():
        torch.testing.assert_close(loss, whole[name])
    sum(cells.values()).backward()
    trained = {name for name, value in model.named_parameters() if value.grad is not None}
    assert "pixel_decoder.proposals.heat.weight" in trained
    assert all(name.startswith(AUSMDecoder.added_modules) for name in trained)
    learned = AUSMDecoder(tiny_cfg()).train()
    learned.cells_only = True
    with pytest.raises(UserError, match="QUERIES: learned, expected proposals"):
        learned(frames)


def test_training_starts_from_the_frames_and_leaves_the_rest_as_it_was(folder: Path, tmp_path: Path) -> None:
    frozen = [["frame_encoder.proposal_pyramid", 1.0], ["pixel_decoder", 1.0], ["", 0.0]]
    cfg = tiny_cfg(*PROPOSALS, "SOLVER.MULTIPLIERS", frozen, "SOLVER.MAX_ITER", 2, "SEED", 3, "DATASETS.TEST", ())
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path), "SOLVER.IMS_PER_BATCH", 2, "TEST.EVAL_PERIOD", 0])
    torch.manual_seed(0)
    trainer = DecoderTrainer(cfg, RecordedBatches([folder, folder], [1.0, 2.0], batch=2, seed=3))
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
    assert same(next(iter(resumed)), batches[2])
    assert all(len({frame["size"][1:] for frame in batch}) == 1 for batch in batches)


def test_a_pool_is_renewed_and_its_batches_are_those_of_the_iteration() -> None:
    torch.manual_seed(0)
    pooled = PooledBatches(small_cfg(), pool=3, fresh=1)
    pooled.continue_from(0, 5)
    before = torch.random.get_rng_state()
    batches = list(islice(pooled, 4))
    assert torch.equal(torch.random.get_rng_state(), before), "recording does not change what the training draws"
    pooled.continue_from(3, 5)
    assert same(next(iter(pooled)), batches[3])
    seen = [list(islice(pooled._recorder.clips(start, 5), 3)) for start in (0, 3)]
    held = [[frame["g"].sum().item() for of_clip in clips for frame in of_clip] for clips in seen]
    assert not set(held[0]) & set(held[1])
    assert all(frame["g"].sum().item() in held[0] for frame in batches[0])
    assert all(frame["g"].sum().item() in held[1] for frame in batches[3])
    assert all(len(batch) == 2 for batch in batches)


def test_a_clip_is_recorded_the_same_wherever_recording_begins() -> None:
    torch.manual_seed(0)
    recording = Recorder(small_cfg())
    first = list(islice(recording.clips(0, 5), 3))
    assert same(next(recording.clips(2, 5)), first[2])


def test_labels_with_nothing_to_learn_end_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_BARREN", 3)
    cfg = small_cfg("MODEL.AUSM.TRAIN.DETECT_CELLS", 10**6, "INPUT.SAMPLING_FRAME_NUM", 1)
    with pytest.raises(UserError, match="synthvis_val: 3 clips in a row without an object to learn; one of 1000000"):
        list(Recorder(cfg).clips(0, 5))


def test_a_folder_without_frames_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recorded frames"):
        RecordedBatches([tmp_path], [1.0], batch=1, seed=0)


def test_files_that_hold_no_frames_are_refused_and_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
