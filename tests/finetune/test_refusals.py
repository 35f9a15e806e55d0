# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What fine-tuning refuses, besides what the tests of each module reach."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ausm_d2.errors import UserError
from ausm_d2.finetune import recipe as module
from ausm_d2.finetune import run, trainer
from ausm_d2.finetune.coco import read_coco
from ausm_d2.finetune.labels import Labels, Part
from tests.finetune.own import coco, write_coco, write_picture
from tests.tiny import tiny_cfg


def test_a_base_without_weights(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(tiny_cfg().dump())
    with pytest.raises(UserError, match=r"--from: '.*a\.yaml' has no MODEL\.WEIGHTS to begin with"):
        module.base_config(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.MAX_ITER"], r"--opts: \['SOLVER\.MAX_ITER'\], expected KEY VALUE pairs"),
        (["SOLVER.MAX_ITER.X", "3"], r"--opts: SOLVER\.MAX_ITER\.X: no such config key"),
    ],
)
def test_config_keys_that_cannot_be_changed(opts: list[str], message: str, tmp_path: Path) -> None:
    labels = Labels(["cup"], Part("COCO_STYLE", {}, tmp_path, 1, {"cup": 1}), None)
    with pytest.raises(UserError, match=message):
        module.recipe("ausm_nano", labels, tmp_path, opts, seed=1)


def test_a_base_without_the_classifier_of_given_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "a.pth")
    base = tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "a.pth"))
    cfg = tiny_cfg("MODEL.AUSM.LABEL_SETS", [["object", 1], [module.LABEL_SET, ["cup"]]])
    monkeypatch.setattr(module, "AUSM", lambda _: SimpleNamespace(state_dict=dict))
    with pytest.raises(UserError, match=r"a\.pth: no classifier pixel_decoder\.class_embed\.object\.\* to begin with"):
        module.write_start(base, cfg, tmp_path / "start.pth")
    assert not (tmp_path / "start.pth").exists()


def test_a_training_whose_data_are_unknown_does_not_go_on(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("DATASETS: {TRAIN: [nowhere]}\n")
    with pytest.raises(UserError, match="data set 'nowhere' is not registered"):
        run._load(tmp_path)


def test_a_training_that_is_stopped_keeps_what_it_has_learned() -> None:
    saved: list[str] = []
    checkpointer = SimpleNamespace(save=lambda name, iteration: saved.append(f"{name} {iteration}"))
    watch = trainer._Watch(lambda done, total: None, lambda: True)
    watch.trainer = SimpleNamespace(iter=3, max_iter=5, checkpointer=checkpointer)  # type: ignore[assignment]
    with pytest.raises(trainer._Stopped):
        watch.after_step()
    assert saved == ["model_0000003 3"]
    watch.trainer.iter = 4  # the last one ends by itself
    watch.after_step()
    assert len(saved) == 1


def test_other_labels_to_score_on_without_a_class_that_is_known(tmp_path: Path) -> None:
    table = coco(2)
    table["categories"] = [{"id": 7, "name": "fork"}, {"id": 12, "name": "knife"}]
    for image in table["images"]:
        image["file_name"] = f"other{image['file_name']}"
    path, images = write_coco(tmp_path / "val", table, pictures=False)
    for i in range(2):
        write_picture(images / f"other{i}.png", 100 + i)
    with pytest.raises(UserError, match=r"its categories are fork, knife; one of cup, spoon expected"):
        read_coco(*write_coco(tmp_path / "train", coco(3)), val=path, val_images=images)
