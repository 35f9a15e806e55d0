# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The examples of datasets/README.md run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode

from ausm_d2.data import catalog
from ausm_d2.data.build import build_test_loader, build_train_loader, get_records, registered_names
from tests.data.disk import write_json, write_tree, write_ytvis, ytvis_data
from tests.data.stubs import small_cfg

README = (Path(__file__).resolve().parents[2] / "datasets" / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_ytvis(tmp_path / "birds", ytvis_data())
    for split in ("train", "val"):
        write_json(tmp_path / f"birds/{split}.json", ytvis_data())
    write_tree(tmp_path / "cells/images", tmp_path / "cells/masks", "a")
    (tmp_path / "cells/val.txt").write_text("a\n")


@pytest.mark.parametrize("index", [0, 1])
def test_lines_of_config(index: int) -> None:
    cfg = small_cfg()
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(blocks("yaml")[index])))
    (train,), (test,) = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    assert next(iter(build_train_loader(cfg)))[0]["dataset_name"] == train
    assert len(build_test_loader(cfg, test)) == len(get_records(test))


@pytest.mark.parametrize("index", [0, 1])
def test_lines_of_python(index: int) -> None:
    exec(blocks("python")[index])
    name = ("birds_train", "cells_train")[index]
    assert next(iter(build_train_loader(small_cfg(name))))[0]["dataset_name"] == name


def test_mixture_has_keys_that_exist() -> None:
    cfg = small_cfg()
    (mixture,) = (block for block in blocks("yaml") if "DATASET_RATIO" in block)
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(mixture)))
    assert len(cfg.DATASETS.TRAIN) == len(cfg.DATASETS.DATASET_RATIO) == len(cfg.INPUT.SAMPLING_FRAME_RANGES)
    assert set(cfg.DATASETS.TRAIN) <= set(registered_names())


def test_table_has_every_name() -> None:
    rows = README.split("| names |")[1].split("\n\n")[0].splitlines()[2:]
    table = "\n".join(row.split("|")[1] for row in rows)
    listed = set()
    for pattern in re.findall(r"`([a-z0-9_{},]+)`", table):
        parts = [part.split(",") for part in re.findall(r"\{(.*?)\}", pattern)]
        stems = [pattern]
        for options in parts:
            stems = [re.sub(r"\{.*?\}", option, stem, count=1) for stem in stems for option in options]
        listed.update(stems)
    benchmarks = ("ytvis_", "ovis_", "coco", "davis_", "youtubevos_", "mose_", "sav_")
    ours = set(registered_names()) - catalog._own.keys()  # other tests may have registered sets from configs
    assert listed == {name for name in ours if name.startswith(benchmarks)}
