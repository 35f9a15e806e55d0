# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The paper's recipe: the configs have its numbers, and its stages run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

import train_net
from ausm_d2.config import load_config
from ausm_d2.engine import Trainer, check_datasets
from ausm_d2.errors import cli
from ausm_d2.training.targets import ClipTargets
from ausm_d2.training.teacher_forcing import preprocess
from tests.checkpoint.small import as_mask2former
from tests.tiny import tiny_model, tiny_sizes

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "configs" / "paper"
VIDEO_SETS = ["mose_train", "sav_train", "ytvis_2019_train", "ytvis_2021_train", "ovis_train"]
TEST_SETS = ["davis_2017_val", "mose_val", "youtubevos_2018_val", "youtubevos_2019_val"]
TEST_SETS += ["ytvis_2019_val", "ytvis_2021_val", "ovis_val", "coco_2017_val"]
COCO_AGAIN = ["coco2ytvis2019_train", "coco2ytvis2021_train", "coco2ovis_train", "coco2object_train"]
DEFORMABLE = ["MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", 1, "MODEL.AUSM.FRAME_ENCODER.NUM_HEADS", 4]
ALL = [f"{stage}_swin_{size}" for stage in ("stage1_coco", "stage2_mixed", "stage3_long", "eval") for size in "tb"]


def config(name: str) -> CfgNode:
    return load_config(str(PAPER / f"{name}.yaml"))


@pytest.mark.parametrize("name", ALL)
def test_the_numbers_common_to_all_stages(name: str) -> None:
    cfg = config(name)
    ausm, swin = cfg.MODEL.AUSM, cfg.MODEL.SWIN
    # Sec. 2 and 3
    assert (ausm.HIDDEN_DIM, ausm.NUM_ID, ausm.PIXEL_DECODER.NUM_DET) == (256, 100, 100)
    assert (ausm.COMPRESSOR.LAYERS, ausm.DECODER.LAYERS, ausm.PIXEL_DECODER.LAYERS) == (6, 6, 9)
    assert (ausm.SPATIAL_REDUCTION, ausm.DECODER.SELF_ATTENTION, ausm.FRAME_ENCODER.ENC_LAYERS) == (1, True, 6)
    sizes = {"t": (96, [2, 2, 6, 2], [3, 6, 12, 24], 7), "b": (128, [2, 2, 18, 2], [4, 8, 16, 32], 12)}
    assert sizes[name[-1]] == (swin.EMBED_DIM, swin.DEPTHS, swin.NUM_HEADS, swin.WINDOW_SIZE)
    # Sec. 4
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (1024, 2048)
    assert (cfg.TEST.AUSM.FG_THRESHOLD, cfg.TEST.AUSM.TOPK) == (0.5, 0)
    # Sec. 6, and the recipes of the VIS projects where it is silent
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (16, 1e-4)  # the optimiser is always AdamW
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (0.05, 0.0)
    assert (solver.BACKBONE_MULTIPLIER, solver.WARMUP_ITERS, solver.GAMMA) == (0.1, 10, 0.1)
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE) == (True, "full_model", 0.01, 2.0)
    loss = cfg.MODEL.MASK_FORMER
    assert (loss.CLASS_WEIGHT, loss.MASK_WEIGHT, loss.DICE_WEIGHT, loss.NO_OBJECT_WEIGHT) == (2.0, 5.0, 5.0, 0.1)
    points = (loss.TRAIN_NUM_POINTS, loss.OVERSAMPLE_RATIO, loss.IMPORTANCE_SAMPLE_RATIO)
    assert points == (12544, 3.0, 0.75)
    for keys in (cfg.INPUT, cfg.INPUT.PSEUDO):
        assert list(keys.MIN_SIZE_TRAIN) == list(range(288, 513, 32)) and keys.MAX_SIZE_TRAIN == 768
        assert keys.MIN_SIZE_TRAIN_SAMPLING == "choice_by_clip"
        assert (keys.CROP.TYPE, list(keys.CROP.SIZE)) == ("absolute_range", [384, 600])
    assert cfg.INPUT.CROP.ENABLED and cfg.INPUT.RANDOM_FLIP == "flip_by_clip"
    assert (cfg.INPUT.CROP.PROB, list(cfg.INPUT.CROP.RESIZE), cfg.INPUT.CROP.DRIFT) == (0.5, [400, 500, 600], 1.0)
    assert list(cfg.INPUT.PSEUDO.AUGMENTATIONS) == ["rotation"] and cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53] and cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]


@pytest.mark.parametrize("size", ["t", "b"])
def test_the_numbers_of_each_stage(size: str) -> None:
    one, two, three = (config(f"{stage}_swin_{size}") for stage in ("stage1_coco", "stage2_mixed", "stage3_long"))
    assert [cfg.INPUT.SAMPLING_FRAME_NUM for cfg in (one, two, three)] == [3, 5, 16]
    assert [cfg.SOLVER.MAX_ITER for cfg in (one, two, three)] == [147500, 32000, 40000]
    assert pytest.approx(20, rel=0.01) == one.SOLVER.MAX_ITER * one.SOLVER.IMS_PER_BATCH / 118287  # epochs
    assert [list(cfg.SOLVER.STEPS) for cfg in (one, two, three)] == [[131000, 142000], [28000], [36000]]
    assert list(one.DATASETS.TRAIN) == ["coco_2017_train"]
    assert list(two.DATASETS.TRAIN) == ["coco_2017_train", *VIDEO_SETS, *COCO_AGAIN]
    assert list(three.DATASETS.TRAIN) == ["coco_2017_train", *VIDEO_SETS, "davis_2017_train", *COCO_AGAIN]
    assert (two.DATASETS.DATASET_RATIO, three.DATASETS.DATASET_RATIO) == ([1.0] * 10, [1.0] * 11)
    assert two.INPUT.SAMPLING_FRAME_RANGES == [0, 20, 20, 20, 8, 8, 0, 0, 0, 0]
    assert three.INPUT.SAMPLING_FRAME_RANGES == [0, 20, 20, 20, 16, 16, 20, 0, 0, 0, 0]
    lsj = one.INPUT.LSJ_AUG
    assert (lsj.ENABLED, lsj.IMAGE_SIZE, lsj.MIN_SCALE, lsj.MAX_SCALE) == (True, 1024, 0.1, 2.0)
    assert [cfg.INPUT.LSJ_AUG.ENABLED for cfg in (two, three)] == [False, False]
    assert [cfg.INPUT.PSEUDO.CROP.ENABLED for cfg in (one, two, three)] == [False, True, True]
    assert [cfg.MODEL.AUSM.FRAME_ENCODER.FREEZE_AT for cfg in (one, two, three)] == ["none", "none", "backbone"]
    assert not any(cfg.DATASETS.TEST for cfg in (one, two, three))
    checkpoint = {"t": "model_final_86143f.pkl", "b": "model_final_83d103.pkl"}[size]
    assert Path(one.MODEL.WEIGHTS).name == checkpoint
    for cfg, before in ((two, one), (three, two), (config(f"eval_swin_{size}"), three)):
        assert f"{before.OUTPUT_DIR}/model_final.pth" == cfg.MODEL.WEIGHTS
    assert len({cfg.OUTPUT_DIR for cfg in (one, two, three)}) == 3


@pytest.mark.parametrize("size", ["t", "b"])
def test_the_classifiers_of_the_video_benchmarks_see_coco_and_that_of_objects_sees_background(size: str) -> None:
    """As in VITA and GenVIS; and with the letter overlay, the paper's data sets alone (docs/deviations.md, 21)."""
    for stage, davis, ranges in (
        ("stage2_mixed", [], [0, 20, 20, 20, 8, 8]),
        ("stage3_long", ["davis_2017_train"], [0, 20, 20, 20, 16, 16, 20]),
    ):
        cfg = config(f"{stage}_swin_{size}")
        images: dict[str, float] = {}
        videos: dict[str, float] = {}
        for name, ratio in zip(cfg.DATASETS.TRAIN, cfg.DATASETS.DATASET_RATIO, strict=True):
            data = MetadataCatalog.get(name)
            kind = images if data.task == "image" else videos
            kind[data.label_set] = kind.get(data.label_set, 0.0) + ratio
            assert data.exhaustive or data.label_set == "object"
        assert set(images) == {name for name, _ in cfg.MODEL.AUSM.LABEL_SETS}  # every classifier
        assert all(images[name] == videos[name] for name in ("ytvis_2019", "ytvis_2021", "ovis"))
        assert sum(videos.values()) >= sum(images.values())
        plain = load_config(str(PAPER / f"{stage}_swin_{size}.yaml"), overlays=[str(PAPER / "letter.yaml")])
        assert list(plain.DATASETS.TRAIN) == ["coco_2017_train", *VIDEO_SETS, *davis]
        assert [1.0] * len(plain.DATASETS.TRAIN) == plain.DATASETS.DATASET_RATIO
        assert ranges == plain.INPUT.SAMPLING_FRAME_RANGES


def test_the_evaluation_is_of_the_papers_data_sets_with_label_set_task_and_topk_of_each() -> None:
    cfg = config("eval_swin_t")
    assert list(cfg.DATASETS.TEST) == TEST_SETS and cfg.TEST.AUSM.FG_THRESHOLDS == [["coco_2017_val", 0.9]]
    found = {}
    for name in TEST_SETS:
        data = MetadataCatalog.get(name)
        found[name] = (data.task, data.label_set, None if data.task == "vos" else data.topk)
    vos, label_sets = ("vos", "object", None), dict(cfg.MODEL.AUSM.LABEL_SETS)
    expected = dict.fromkeys(TEST_SETS[:4], vos) | {"coco_2017_val": ("image", "coco", 100)}
    expected |= {f"ytvis_{year}_val": ("vis", f"ytvis_{year}", 10) for year in (2019, 2021)}
    assert found == expected | {"ovis_val": ("vis", "ovis", 20)}
    assert {name: label_sets[name] for _, name, _ in found.values()} == label_sets


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run train_net.py in this process; it must succeed."""

    def run(*arguments: Any) -> None:
        monkeypatch.setattr(sys, "argv", ["train_net.py", *map(str, arguments)])
        try:
            cli(train_net.main)
        except SystemExit as end:
            assert not end.code

    return run


@pytest.fixture
def coco(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a small COCO and nothing else."""
    root = tmp_path / "data"
    (root / "coco" / "annotations").mkdir(parents=True)
    for split, count in (("train2017", 20), ("val2017", 2)):
        data = json.loads((shared_data / f"coco_mini/annotations/instances_{split}.json").read_text())
        data["images"] = data["images"][:count]
        kept = {image["id"] for image in data["images"]}
        data["annotations"] = [each for each in data["annotations"] if each["image_id"] in kept]
        (root / f"coco/annotations/instances_{split}.json").write_text(json.dumps(data))
        (root / "coco" / split).symlink_to(shared_data / "coco_mini" / split)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return root


@pytest.mark.usefixtures("restored_loggers", "quick_setup")
def test_the_stages_start_from_each_other_and_are_scored_on_existing_data_sets(
    run: Callable[..., None], coco: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README's command for stage 1 at a small size, starting from a small Mask2Former with random weights."""
    monkeypatch.chdir(tmp_path)  # where the outputs go
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"^python train_net\.py .*(configs/paper/stage1\S+\.yaml) MODEL\.WEIGHTS (\S+)$", readme, re.M)
    assert command
    torch.manual_seed(5)
    weights = as_mask2former(tiny_model("MODEL.AUSM.LABEL_SETS", [["coco", 80], ["object", 1]], *DEFORMABLE))
    torch.save({"model": weights}, tmp_path / command[2])
    small = [*tiny_sizes(), *DEFORMABLE, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0, "SEED", 1]
    small += ["SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", [], "INPUT.LSJ_AUG.IMAGE_SIZE", 64]
    for keys in ("INPUT", "INPUT.PSEUDO"):
        small += [f"{keys}.MIN_SIZE_TRAIN", [64], f"{keys}.CROP.SIZE", [48, 64]]
    small += ["INPUT.CROP.RESIZE", [64]]

    run("--config-file", ROOT / command[1], "MODEL.WEIGHTS", command[2], *small)
    images = ["DATASETS.LEAVE_OUT", [*VIDEO_SETS, "davis_2017_train"]]  # COCO is there, for all label sets
    for stage in ("stage2_mixed", "stage3_long"):
        run("--config-file", PAPER / f"{stage}_swin_t.yaml", *small, *images)
    for number, frames in ((1, 3), (2, 5), (3, 16)):
        out = tmp_path / f"output/paper/stage{number}_swin_t"
        assert torch.load(out / "model_final.pth", weights_only=False)["iteration"] == 1
        assert f"SAMPLING_FRAME_NUM: {frames}\n" in (out / "config.yaml").read_text()

    lists = coco / "DAVIS" / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("dog\n")
    for kind in ("JPEGImages", "Annotations"):
        folder = coco / "DAVIS" / kind / "480p" / "dog"
        folder.mkdir(parents=True)
        for path in sorted((shared_data / "davis_dev" / kind / "480p" / "dog").iterdir())[:4]:
            (folder / path.name).symlink_to(path)
    small += ["INPUT.MIN_SIZE_TEST", 64, "TEST.SKIP_MISSING", True]
    results: dict[str, Any] = {}
    test = Trainer.test
    monkeypatch.setattr(Trainer, "test", lambda *args: results.update(test(*args)) or results)
    run("--eval-only", "--config-file", PAPER / "eval_swin_t.yaml", *small)
    assert set(results) == {"davis_2017_val", "coco_2017_val"}
    table = (tmp_path / "output/paper/eval_swin_t/table.md").read_text().splitlines()
    [ours] = [line for line in table[4:] if line.startswith("| AUSM")]
    cells = [cell.strip() for cell in ours.split("|")[2:-1]]
    davis, image = results["davis_2017_val"]["vos"]["J&F"], results["coco_2017_val"]["segm"]["AP"]
    assert cells == [f"{davis:.1f}", *["-"] * 6, f"{image:.1f}"]


def documented() -> dict[int, tuple[str, str]]:
    """The rows of docs/deviations.md by number: our choice and the paper's reading."""
    lines = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if re.match(r"\| \d+ \|", line)]
    assert all(len(row) == 4 for row in rows)
    return {int(number): (ours, paper) for number, _, ours, paper in rows}


def letter() -> dict[str, int]:
    """The keys of the overlay, each with the number of the deviation it switches."""
    keys: dict[str, int] = {}
    above: list[str] = []
    for line in (PAPER / "letter.yaml").read_text(encoding="utf-8").splitlines():
        found = re.match(r"^( *)(\w+):(.*?)(?:  # (\d+))?$", line)
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        assert found, line
        above = [*above[: len(found[1]) // 2], found[2]]
        if found[3].strip():
            assert found[4], f"{line}: no number"
            keys[".".join(above)] = int(found[4])
    return keys


def test_the_letter_switches_every_deviation_that_has_another_reading_in_the_paper() -> None:
    rows, keys = documented(), letter()
    assert list(rows) == list(range(1, len(rows) + 1))
    silent = {number for number, (_, paper) in rows.items() if paper.startswith("Not said")}
    assert set(keys.values()) == set(rows) - silent
    for key, number in keys.items():
        ending = ".".join(key.split(".")[-2:])
        assert any(name in " ".join(rows[number]) for name in (key, ending, f"`{key.split('.')[-1]}")), (key, number)


@pytest.mark.parametrize("name", ALL)
def test_the_letter_is_an_overlay_of_every_config_of_the_paper(name: str) -> None:
    plain = config(name)
    cfg = load_config(str(PAPER / f"{name}.yaml"), overlays=[str(PAPER / "letter.yaml")])
    check_datasets(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    switched = {1, 2, 5, 7, 10, 12, 14, 21}  # the others are of light models and ablations: these configs are none
    for key, number in letter().items():
        before, after = plain, cfg
        for part in key.split("."):
            before, after = before[part], after[part]
        if number in switched and key not in ("MODEL.AUSM.TRAIN.MODE", "MODEL.AUSM.TRAIN.OWN_PASSES"):
            assert before != after, key
        else:
            assert before == after, key


def test_with_the_letter_overlay_the_row_of_a_hidden_object_leaves() -> None:
    """In training: visible, hidden, visible, visible; found in the first frame."""
    cfg = load_config(str(PAPER / "stage2_mixed_swin_t.yaml"), overlays=[str(PAPER / "letter.yaml")])
    assert cfg.MODEL.AUSM.TRAIN.HIDDEN_ROWS == "leave"
    masks = torch.zeros(1, 4, 1, 8, 8, dtype=torch.bool)
    masks[0, [0, 2, 3]] = True
    every = torch.ones(1, 4, dtype=torch.bool)
    targets = ClipTargets(masks, torch.zeros(1, 1, dtype=torch.int64), every[:, :1], every, every[:, 0], ~every[:, 0])
    switch = torch.zeros(1, 1, dtype=torch.int64)
    kept, left = preprocess(targets, switch), preprocess(targets, switch, keep_hidden=False)
    assert kept.in_use.flatten().int().tolist() == [0, 1, 1, 1]
    assert left.in_use.flatten().int().tolist() == [0, 1, 0, 1]
    assert left.track.flatten().int().tolist() == [0, 1, 0, 1]
    assert not left.detect[0, 1:].any()  # y_det is only before the switch
    assert torch.equal(left.history, kept.history)

    model = tiny_model("MODEL.AUSM.TRAIN.HIDDEN_ROWS", "leave", "MODEL.AUSM.TRAIN.PROMPT_PROB", 1.0)
    _, _, forcing = model._preprocess(targets)
    assert torch.equal(forcing.in_use, left.in_use)
