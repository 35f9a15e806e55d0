# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn

from ausm_d2.data.synthvis import CLASSES, SynthVis
from ausm_d2.engine import Trainer, check_datasets, results_table
from ausm_d2.errors import UserError
from ausm_d2.evaluation import vos
from ausm_d2.evaluation.paper import paper_table
from ausm_d2.evaluation.references import FlowMask
from ausm_d2.masks.rle import decode, to_rle
from ausm_d2.processes import leave_together
from tests.tiny import ONE_LAYER, tiny_cfg, tiny_model

NAMES = ("tiny_val", "tiny_val_vos")


@pytest.fixture(autouse=True)
def _tiny_val() -> Iterator[None]:
    """Two short synthetic videos, unprompted and prompted."""
    records = list(SynthVis(3, 2, 5, complete=True))
    for name, task in zip(NAMES, ("vis", "vos"), strict=True):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(
            thing_classes=list(CLASSES),
            evaluator_type="vos" if task == "vos" else "ytvis",
            task=task,
            label_set="synthvis",
        )
    yield
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def cfg_for(output_dir: Path, *opts: Any) -> CfgNode:
    cfg = tiny_cfg("DATASETS.TEST", NAMES, "OUTPUT_DIR", str(output_dir), "MODEL.AUSM.PROMPT_LABEL_SET", "synthvis")
    cfg.merge_from_list([*ONE_LAYER, "DATALOADER.NUM_WORKERS", 0, *opts])
    return cfg


class Counting(nn.Module):
    """A model that records the videos it gets; like DistributedDataParallel, it has the model in ``module``."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.module = tiny_model(*ONE_LAYER, "MODEL.AUSM.PROMPT_LABEL_SET", "synthvis")
        self.seen: list[tuple[str, int]] = []

    def forward(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert not self.training and not torch.is_grad_enabled()
        self.seen += [(item["dataset_name"], item["record"].video_id) for item in items]
        return self.module(items)


ALL_VIDEOS = [(name, video) for name in NAMES for video in (0, 1)]


def test_every_data_set_is_evaluated_and_the_references_with_it(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path, "TEST.AUSM.BASELINES", True)
    model = Counting(cfg)
    results = Trainer.test(cfg, model)

    assert sorted(model.seen) == ALL_VIDEOS
    assert model.training, "the model's mode is restored"
    references = ["tiny_val/frame_by_frame", "tiny_val_vos/first_mask", "tiny_val_vos/optical_flow"]
    assert sorted(results) == sorted([*NAMES, *references])
    for name, scores in results.items():
        assert set(scores) == {"segm" if name.split("/")[0] == "tiny_val" else "vos", "reappearance"}
    records = DatasetCatalog.get("tiny_val_vos")
    flow = FlowMask()([{"record": record} for record in records])
    expected = vos.summary([vos.score_record(r, out["objects"]) for r, out in zip(records, flow, strict=True)])
    assert results["tiny_val_vos/optical_flow"]["vos"] == pytest.approx(expected)

    table = (tmp_path / "table.md").read_text()
    assert [line.split("|")[2].strip() for line in table.splitlines()[2:]] == [
        "AUSM",
        "frame by frame, IoU linking",
        "AUSM",
        "first mask copied",
        "mask carried by DIS optical flow",
    ]
    assert f"{expected['J&F']:.1f}" in table.splitlines()[-1]
    json.dumps(results)  # plain numbers


def test_without_references(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path)
    assert list(Trainer.test(cfg, Counting(cfg))) == list(NAMES)


class Lengths(DatasetEvaluator):
    """A user's own evaluator: how many frames the videos have."""

    def reset(self) -> None:
        self.frames = 0.0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        assert len(inputs) == len(outputs)
        self.frames += sum(item["record"].length for item in inputs)

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"lengths": {"frames": self.frames}}


def test_given_evaluators_are_used(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path)
    expected = {name: {"lengths": {"frames": 10.0}} for name in NAMES}
    assert Trainer.test(cfg, Counting(cfg), evaluators=[Lengths(), Lengths()]) == expected
    assert Trainer.test(cfg, Counting(cfg), [Trainer.build_evaluator(cfg, name) for name in NAMES]).keys() == set(NAMES)
    with pytest.raises(ValueError, match=r"1 evaluators, expected one for each of \['tiny_val', 'tiny_val_vos'\]"):
        Trainer.test(cfg, Counting(cfg), [Lengths()])


def test_one_data_set_alone_is_not_nested(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path, "DATASETS.TEST", NAMES[1:])
    assert list(Trainer.test(cfg, Counting(cfg))) == ["vos", "reappearance"]


def _resume_on_a_machine(rank: int, folder: Path, iterations: Sequence[int | None]) -> None:
    """One of two machines that share no disk, with a checkpoint of this iteration or none."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    comm.create_local_process_group(1)
    cfg = cfg_for(folder / str(rank), "SOLVER.MAX_ITER", 4, "SOLVER.IMS_PER_BATCH", 2)
    cfg.DATASETS.TRAIN = NAMES[:1]
    trainer = Trainer(cfg)
    iteration = iterations[rank]
    if iteration is not None:
        trainer.iter, trainer.storage = iteration, EventStorage(iteration)
        trainer.checkpointer.save_to_disk = True
        trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    try:
        trainer.resume_or_load()
    except UserError as error:
        (folder / f"{rank}.txt").write_text(str(error))
    leave_together(20)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("iterations", "message"),
    [
        ((1, None), "1 of 2 processes find a checkpoint to resume"),
        ((1, 2), "the processes would begin with the iterations [2, 3]"),
    ],
)
def test_machines_that_would_resume_from_different_iterations_are_refused(
    tmp_path: Path, iterations: Sequence[int | None], message: str
) -> None:
    arguments = (tmp_path, iterations)
    torch.multiprocessing.start_processes(_resume_on_a_machine, arguments, nprocs=2, start_method="fork")
    for rank in (0, 1):
        assert (tmp_path / f"{rank}.txt").read_text() == (
            f"{tmp_path / str(rank)}: {message}; all machines need the same checkpoints (a shared folder, or copies)"
        )


def test_resume_runs_only_what_is_missing(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path, "TEST.AUSM.RESUME", True, "TEST.AUSM.BASELINES", True)
    first = Trainer.test(cfg, Counting(cfg))
    again = Counting(cfg)
    assert Trainer.test(cfg, again) == first
    assert again.seen == []

    (tmp_path / "inference" / "tiny_val_vos" / "videos" / "1.json").unlink()
    rest = Counting(cfg)
    assert Trainer.test(cfg, rest) == first
    assert rest.seen == [("tiny_val_vos", 1)]

    cfg.TEST.AUSM.RESUME = False
    everything = Counting(cfg)
    Trainer.test(cfg, everything)
    assert sorted(everything.seen) == ALL_VIDEOS


def test_data_sets_that_do_not_fit_the_config() -> None:
    with pytest.raises(UserError, match=r"data set 'no_such' is not registered; registered: .*synthvis_val"):
        check_datasets(tiny_cfg(), ["no_such"])
    with pytest.raises(UserError, match=r"'tiny_val' needs the label set 'synthvis' \(6 classes\)"):
        check_datasets(tiny_cfg("MODEL.AUSM.LABEL_SETS", [["object", 1]]), ["tiny_val"])
    with pytest.raises(
        UserError, match=r"'tiny_val' has 6 classes, MODEL.AUSM.LABEL_SETS gives its label set 'synthvis' 4"
    ):
        check_datasets(tiny_cfg("MODEL.AUSM.LABEL_SETS", [["synthvis", 4]]), ["tiny_val"])
    named = ["synthvis", list(reversed(CLASSES))]
    with pytest.raises(UserError, match=r"'tiny_val' has the classes .*label set 'synthvis' \['.*in this order"):
        check_datasets(tiny_cfg("MODEL.AUSM.LABEL_SETS", [named]), ["tiny_val"])
    cfg = tiny_cfg("MODEL.AUSM.LABEL_SETS", [["synthvis", 4]])
    cfg.DATASETS.TRAIN = ("tiny_val",)
    with pytest.raises(UserError, match=r"'tiny_val' has 6 classes, MODEL\.AUSM"):
        Trainer.build_train_loader(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [("TEST.AUSM.FG_THRESHOLDS", [["tiny_va", 0.9]]), ("DATASETS.LABEL_SETS", [["tiny_va", "object"]])],
)
def test_settings_of_unknown_data_sets_are_refused(key: str, value: list) -> None:
    with pytest.raises(UserError, match=rf"{key}: \['tiny_va'\]: no such data sets; registered: .*tiny_val"):
        check_datasets(tiny_cfg(key, value), ["tiny_val"])


def test_a_users_data_sets_are_registered(tmp_path: Path) -> None:
    annotations = {
        "videos": [{"id": 1, "height": 8, "width": 8, "length": 1, "file_names": ["a/0.jpg"]}],
        "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [],
    }
    (tmp_path / "own.json").write_text(json.dumps(annotations))
    own = ["test_engine_own", str(tmp_path / "own.json"), str(tmp_path), "object"]
    with pytest.raises(
        UserError, match=r"'test_engine_own' has 2 classes, MODEL.AUSM.LABEL_SETS gives its label set 'object' 1"
    ):
        check_datasets(tiny_cfg("DATASETS.YTVIS_STYLE", [own]), ["test_engine_own"])


def test_table() -> None:
    unprompted = {"segm": {"AP": 51.26, "AP50": 70.0, "APs": 1.0}, "reappearance": {"hidden": 7.0, "back": 5.0}}
    prompted = {"vos": {"J&F": 80.0, "J": 78.94, "F": 81.06}}
    assert results_table([("a_val", "AUSM", unprompted), ("b", "flow", prompted)]).splitlines() == [
        "| Data set | Method | AP   | AP50 | J&F  | J    | F    | Hidden objects back on their track |",
        "| -------- | ------ | ---- | ---- | ---- | ---- | ---- | ---------------------------------- |",
        "| a_val    | AUSM   | 51.3 | 70.0 |      |      |      | 5 of 7                             |",
        "| b        | flow   |      |      | 80.0 | 78.9 | 81.1 |                                    |",
    ]


def paper_sets(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """A data root that has DAVIS's validation set, two videos of it, and nothing else."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    lists = root / "DAVIS" / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("0\n1\n")
    for video, record in enumerate(DatasetCatalog.get(NAMES[1])):
        images, masks = (root / "DAVIS" / kind / "480p" / str(video) for kind in ("JPEGImages", "Annotations"))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for t in range(record.length):
            cv2.imwrite(str(images / f"{t:05d}.jpg"), record.frames[t][..., ::-1])
            labels = np.zeros((record.height, record.width), np.uint8)
            for object_id, mask in record.masks.read(t).items():
                labels[decode(to_rle(mask, record.height, record.width))] = object_id
            Image.fromarray(labels).save(masks / f"{t:05d}.png")


def test_missing_data_sets_are_left_out_on_request_and_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paper_sets(monkeypatch, tmp_path / "data")
    cfg = cfg_for(tmp_path / "out", "DATASETS.TEST", ["davis_2017_val", "mose_val", "ytvis_2019_val"])
    with pytest.raises(UserError, match=r"mose_val: no folder found; looked for .*data/mose/valid"):
        Trainer.test(cfg, Counting(cfg))
    cfg.TEST.SKIP_MISSING = True
    with caplog.at_level(logging.WARNING, "ausm_d2"):
        for _ in range(2):  # a training may evaluate again and again
            scores = Trainer.test(cfg, Counting(cfg))
    assert "J&F" in scores["vos"]
    left_out = [text for text in caplog.messages if "SKIP_MISSING" in text]
    assert len(left_out) == 2 and "mose_val" in left_out[0] and "ytvis_2019_val" in left_out[1]

    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    [titles, _, ours, swin_t, swin_b] = table[4:9]
    assert titles.split("|")[2:4] == [" DAVIS17 J&F ", " MOSE J&F "]
    assert [cell.strip() for cell in ours.split("|")[1:4]] == ["AUSM", f"{scores['vos']['J&F']:.1f}", "-"]
    assert [cell.strip() for cell in swin_t.split("|")[1:4]] == ["the paper, Swin-T", "76.4", "58.8"]
    assert [cell.strip() for cell in swin_b.split("|")[-2:-1]] == ["34.2"]


def test_a_data_set_without_public_labels_says_submission_in_the_papers_table() -> None:
    table = paper_table({"mose_val": {}, "ovis_val": {"segm": {"AP": 39.44}}}, "AUSM").splitlines()
    cells = [cell.strip() for cell in table[2].split("|")[1:-1]]
    assert cells == ["AUSM", "-", "submission", "-", "-", "-", "-", "39.4", "-"]
    assert paper_table({"synthvis_val": {"segm": {"AP": 80.0}}}, "AUSM") == ""
