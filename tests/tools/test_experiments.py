# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""tools.sweep_threshold and tools.experiment with a tiny model on two short videos."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ausm_d2.config import load_config
from ausm_d2.data.build import get_records
from ausm_d2.data.synthvis import CLASSES, SynthVis
from ausm_d2.data.video import VideoRecord
from ausm_d2.engine import Trainer
from ausm_d2.errors import UserError
from ausm_d2.evaluation.results import ResultFolder
from ausm_d2.evaluation.tracks import true_masks
from ausm_d2.streaming.segmenter import segment_video
from ausm_d2.streaming.settings import VideoSettings
from tests.data.stubs import moving_square
from tests.streaming.opened import open_stream
from tests.tiny import ONE_LAYER, tiny_cfg, tiny_model, tiny_yaml
from tools import experiment, sweep_threshold

VIS, VOS = "three_val", "three_val_vos"


@pytest.fixture(scope="module")
def records() -> list[VideoRecord]:
    """Three short synthetic videos."""
    return list(SynthVis(3, 3, 4, complete=True))


@pytest.fixture(autouse=True)
def data_sets(records: list[VideoRecord]) -> Iterator[None]:
    """The videos, unprompted and prompted, and no views of them that outlive the test."""
    before = set(DatasetCatalog.list())
    for name, task, kind in ((VIS, "vis", "ytvis"), (VOS, "vos", "vos")):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(
            thing_classes=list(CLASSES), evaluator_type=kind, task=task, label_set="synthvis", exhaustive=True
        )
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    torch.save({"model": tiny_model(*ONE_LAYER).state_dict()}, tmp_path / "random.pth")
    keys = ["MODEL.AUSM.PROMPT_LABEL_SET", "synthvis", "MODEL.WEIGHTS", str(tmp_path / "random.pth"), *ONE_LAYER]
    keys += ["DATASETS.TRAIN", [VIS], "DATASETS.TEST", [VIS, VOS], "DATALOADER.NUM_WORKERS", 0]
    keys += ["INPUT.MIN_SIZE_TRAIN", [48], "INPUT.SAMPLING_FRAME_NUM", 2]
    keys += ["SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", [], "SOLVER.CHECKPOINT_PERIOD", 1]
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_yaml(*keys))
    return path


@pytest.fixture
def run(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Run a command; returns the rows of its table."""
    monkeypatch.setattr("tools.experiments.setup.setup_logger", lambda **_: None)  # its handlers would outlive the test

    def run(main: Callable[[], None], *arguments: Any) -> list[dict[str, Any]]:
        first = [arguments[0]] if main is experiment.main else []
        rest = [*arguments[len(first) :]]
        out = tmp_path / "out"
        command = [*first, "--config-file", config, "--output", out, *rest]
        monkeypatch.setattr(sys, "argv", ["command", *map(str, command)])
        main()
        assert (out / "plot.png").stat().st_size > 1000
        table = json.loads((out / "table.json").read_text())
        assert all(row["setting"] in (out / "table.md").read_text() for row in table["rows"])
        return table["rows"]

    return run


def thresholds_between(foreground: list[float]) -> list[float]:
    """Four thresholds among these probabilities, which are sums of rounded numbers and may exceed 1."""
    return np.quantile(foreground, [0.2, 0.4, 0.6, 0.8]).clip(max=1).tolist()


def test_sweep_shares_streams_and_equals_one_pass_per_threshold() -> None:
    """Slots run out as well: 8 of them, 6 detections a frame at the lowest threshold."""
    cfg = tiny_cfg("TEST.AUSM.TOPK", 100)
    model = tiny_model().eval()
    with torch.no_grad():
        model.pixel_decoder.class_embed["synthvis"].weight.mul_(2)  # foregrounds that differ between frames
    records = get_records(VIS)

    stream = open_stream(model, fg_threshold=0.0)
    foreground = torch.cat([stream.step(frame).probabilities.sum(-1) for frame in records[0].frames]).tolist()
    thresholds = sorted({0.0, *thresholds_between(foreground), 1.0})
    sweep = sweep_threshold.ThresholdSweep(model, VideoSettings.from_config(cfg), thresholds)
    found = set()
    for record in records:
        item = {"record": record, "dataset_name": VIS, "task": "vis", "label_set": "synthvis"}
        swept = sweep.segment(item)
        assert list(swept) == thresholds
        for threshold in thresholds:
            cfg.TEST.AUSM.FG_THRESHOLD = threshold
            alone = segment_video(model, item, VideoSettings.from_config(cfg))
            assert json.dumps(swept[threshold]) == json.dumps(alone)
            found.add(len(alone["tracks"]))
    assert len(found) > 3, "the thresholds make a difference"
    assert sweep.frames == 12
    assert 12 * 2 < sweep.steps < 12 * len(thresholds)


def test_agreeing_thresholds_cost_one_stream() -> None:
    model = tiny_model().eval()
    sweep = sweep_threshold.ThresholdSweep(model, VideoSettings.from_config(tiny_cfg()), [1.0, 1.1, 1.2])
    item = {"record": get_records(VIS)[0], "dataset_name": VIS, "label_set": "synthvis", "topk": 10}
    results = sweep.segment(item)
    assert [result["tracks"] for result in results.values()] == [[], [], []]
    assert (sweep.frames, sweep.steps) == (4, 4)


def test_sweep_command(run: Callable[..., list[dict[str, Any]]], config: Path, tmp_path: Path) -> None:
    rows = run(sweep_threshold.main, "--thresholds", 0.9, 0.3, "--videos", 2, "--opts", "TEST.AUSM.TOPK", 50)
    assert [(row["dataset"], row["setting"]) for row in rows] == [(f"{VIS}_first2", "0.3"), (f"{VIS}_first2", "0.9")]
    opts = ["DATASETS.TEST", [f"{VIS}_first2"], "TEST.AUSM.TOPK", 50, "TEST.AUSM.FG_THRESHOLD", 0.3]
    cfg = load_config(str(config), [*opts, "OUTPUT_DIR", str(tmp_path / "plain")])
    assert rows[0]["scores"] == Trainer.test(cfg, tiny_model(*ONE_LAYER).eval())
    note = json.loads((tmp_path / "out" / "table.json").read_text())["notes"][0]
    assert "for 8 frames (one pass per threshold: 16)" in note


def test_an_interrupted_sweep_is_resumed(
    run: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--thresholds", 0.5, "--videos", 2, "--opts", "TEST.AUSM.RESUME", True]
    segment, seen = sweep_threshold.ThresholdSweep.segment, []

    def interrupted(self: sweep_threshold.ThresholdSweep, item: dict[str, Any]) -> Any:
        seen.append(item["record"].video_id)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return segment(self, item)

    monkeypatch.setattr(sweep_threshold.ThresholdSweep, "segment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(sweep_threshold.main, *arguments)
    rows = run(sweep_threshold.main, *arguments)
    assert len(seen) == 3 and seen[1] == seen[2] != seen[0]  # what is done is not done again
    assert [row["setting"] for row in rows] == ["0.5"]
    assert run(sweep_threshold.main, *arguments) == rows and len(seen) == 3


def test_repeat_command(run: Callable[..., list[dict[str, Any]]], config: Path, tmp_path: Path) -> None:
    arguments = ["--repeats", 1, 3, "--stills", "--image-threshold", 0.5, "--videos", 1]
    scores = {(row["dataset"], row["setting"]): row["scores"] for row in run(experiment.main, "repeat", *arguments)}
    vis, vos = f"{VIS}_first1", f"{VOS}_first1"
    shown = [(name, times) for name in (vis, vos) for times in ("x1", "x3")]
    assert list(scores) == [*shown, *((f"{vis}_stills", setting) for setting in ("x1", "x3", "traversal"))]
    opts = ["OUTPUT_DIR", str(tmp_path / "plain"), "TEST.AUSM.REPEAT", 3, "DATASETS.TEST", [vis, vos]]
    cfg = load_config(str(config), opts)
    plain = Trainer.test(cfg, experiment.repeat.load_model(cfg))
    assert scores[vos, "x3"] == plain[vos] and scores[vis, "x3"] == plain[vis]
    assert scores[vos, "x1"] != scores[vos, "x3"]


def test_stills_are_the_middle_frames_with_what_is_visible() -> None:
    name = experiment.repeat.stills(VIS)
    assert MetadataCatalog.get(name).task == "image" and MetadataCatalog.get(name).evaluator_type == "coco"
    for still, record in zip(get_records(name), get_records(VIS), strict=True):
        assert record.masks is not None and still.masks is not None
        assert (still.length, list(still.frames.names)) == (1, ["00002"])
        assert np.array_equal(still.frames[0], record.frames[2])
        visible = record.masks.read(2)
        assert [each.instance_id for each in still.instances] == sorted(visible)
        assert all(np.array_equal(still.masks.read(0)[i], mask) for i, mask in visible.items())


def test_clip_length_trainings_differ_in_the_clips_only_and_run_once(
    run: Callable[..., list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["clip-length", "--frames", 1, 2, "--seeds", 5, "--videos", 1]
    rows = run(experiment.main, *arguments)
    names = [f"{VIS}_first1", f"{VOS}_first1"]
    assert [(row["dataset"], row["setting"]) for row in rows] == [(name, each) for name in names for each in "12"]
    folders = [tmp_path / "out" / name for name in ("1_seed5", "2_seed5")]
    short, long = (load_config(str(folder / "config.yaml")) for folder in folders)
    assert (short.INPUT.SAMPLING_FRAME_NUM, short.SOLVER.IMS_PER_BATCH, short.SEED) == (1, 2, 5)
    assert (long.INPUT.SAMPLING_FRAME_NUM, long.SOLVER.IMS_PER_BATCH, long.SEED) == (2, 1, 5)

    # What is trained stays, also from other evaluations, and gives the same numbers.
    monkeypatch.setattr(Trainer, "train", lambda self: pytest.fail("trained again"))
    assert run(experiment.main, *arguments) == rows
    assert len(run(experiment.main, *arguments[:-2], "--opts", "DATASETS.TEST", [VIS])) == 2
    # Results of other settings are not taken for these.
    with pytest.raises(UserError, match=r"1_seed5: holds a run of other settings \(SOLVER.MAX_ITER 2 there, 3 asked"):
        run(experiment.main, *arguments, "--opts", "SOLVER.MAX_ITER", 3)


def test_clips_that_do_not_divide_the_frames_of_an_iteration_come_close(
    run: Callable[..., list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment.variants, "_train", lambda cfg: None)
    monkeypatch.setattr(experiment.variants, "_evaluate", lambda cfg, videos: {VIS: {"segm": {"AP": cfg.SEED}}})
    with monkeypatch.context() as patch:
        sizes = []
        patch.setattr(
            experiment.variants,
            "_check_folder",
            lambda cfg: sizes.append((cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.SAMPLING_FRAME_NUM)),
        )
        run(experiment.main, "clip-length", "--frames-per-iteration", 16, "--seeds", 1, 4)
    assert sizes == [(3, 5), (3, 5), (1, 16), (1, 16)]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "iterations of 15 or 16 frames" in table
    assert [line.split("|")[2].strip() for line in table.splitlines() if line.startswith(f"| {VIS}")] == [
        f"{frames}, {which}" for frames in (5, 16) for which in ("seed 1", "seed 4", "2 seeds")
    ]
    assert " 2.5 " in table  # the mean of APs 1 and 4


def test_an_interrupted_training_is_resumed(
    run: Callable[..., list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["noise", "--videos", 1]
    step, iterations = Trainer.run_step, []

    def interrupted(self: Trainer) -> None:
        iterations.append(self.iter)
        if len(iterations) == 2:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Trainer, "run_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(experiment.main, *arguments)
    assert len(run(experiment.main, *arguments)) == 4
    assert iterations == [0, 1, 1, 0, 1]
    curves = json.loads((tmp_path / "out" / "table.json").read_text())["notes"][1].splitlines()
    assert [line.split(" | ")[0] for line in curves[2:]] == ["| with history noise, seed 1", "| without, seed 1"]
    assert all(float(line.split(" | ")[3]) >= 0 for line in curves[2:])  # of the last of two iterations


def test_rules_of_tracks_are_those_of_the_config(run: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    opts = ["TEST.AUSM.TOPK", 50, "TEST.AUSM.FG_THRESHOLD", 0.3]
    names = ["default", "maximum", "hidden below 0.7", "new to IoU 0.3"]
    rows = run(experiment.main, "rules", "--videos", 2, "--rules", *names, "--opts", *opts)
    assert [row["setting"] for row in rows] == names

    def folder(rule: str) -> ResultFolder:
        return ResultFolder(tmp_path / "out" / rule.replace(" ", "_") / "inference" / f"{VIS}_first2" / "videos")

    keys = {"default": [], "maximum": ["TRACK_SCORE", "max"], "hidden below 0.7": ["HIDE_BELOW", 0.7]}
    for row in rows[:3]:
        own = [f"TEST.AUSM.{keys[row['setting']][0]}", keys[row["setting"]][1]] if keys[row["setting"]] else []
        data = ["DATASETS.TEST", [f"{VIS}_first2"], "OUTPUT_DIR", str(tmp_path / "plain")]
        cfg = load_config(str(tmp_path / "tiny.yaml"), [*data, *opts, *own])
        model = tiny_model(*ONE_LAYER, *opts, *own).eval()
        tracks = row["scores"].pop("tracks")
        assert row["scores"] == Trainer.test(cfg, model)
        shown = [result.best_classes() for result in map(folder(row["setting"]).read, get_records(f"{VIS}_first2"))]
        assert (tracks["shown"], tracks["frames"]) == (sum(map(len, shown)), 8) and tracks["false"] <= tracks["shown"]


def test_a_track_is_false_if_no_object_has_half_of_it(tmp_path: Path) -> None:
    [record] = get_records(VIS)[:1]
    true = true_masks(record)
    own, other = list(true.values())[:2]
    nothing = [None] * record.length
    entries = [
        {"track_id": i, "category_id": 0, "score": 1.0, "segmentations": of} for i, of in enumerate((own, other))
    ]
    half = [*own[:1], *nothing[1:]]  # one of four frames
    entries += [{**entries[0], "track_id": 2, "segmentations": half}, {**entries[0], "category_id": 1, "score": 0.5}]
    text = json.dumps({"tracks": entries}, default=lambda each: each.decode())
    results = ResultFolder(tmp_path)
    results.write(record, text)
    counts = experiment.rules.count_tracks([record], results)
    assert counts == {"shown": 3, "false": 1, "frames": record.length}


def test_rules_are_judged_on_clips_of_images_with_a_mean_over_seeds(
    run: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    DatasetCatalog.register("pictures", lambda: [moving_square(i, length=1) for i in range(2)])
    metadata = MetadataCatalog.get("pictures")
    metadata.set(thing_classes=list(CLASSES), evaluator_type="coco", task="image", label_set="synthvis")
    metadata.exhaustive = True
    opts = ["DATASETS.TEST", ["pictures"], "INPUT.PSEUDO.MIN_SIZE_TRAIN", [48]]
    arguments = ["--clips", 1, "--seeds", 3, 4, "--rules", "default", "mask confidence", "--opts", *opts]
    rows = run(experiment.main, "rules", *arguments)
    assert [(row["dataset"], row["setting"], row["seed"]) for row in rows] == [
        ("pictures_clips", rule, seed) for rule in ("default", "mask confidence") for seed in (3, 4)
    ]
    assert all(row["scores"]["tracks"]["frames"] == 15 for row in rows)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| default, 2 seeds" in table and "| false per 100 frames |" in table


def test_rules_of_tracks_can_be_judged_without_classes(run: Callable[..., list[dict[str, Any]]]) -> None:
    sets = ["MODEL.AUSM.LABEL_SETS", [["object", 1]], "MODEL.AUSM.PROMPT_LABEL_SET", "object"]  # not the data set's
    [row] = run(experiment.main, "rules", "--videos", 1, "--as-objects", "--rules", "all new", "--opts", *sets)
    assert row["dataset"] == f"{VIS}_first1_objects"
    assert [name for name in row["scores"]["segm"] if name.startswith("AP-")] == ["AP-object"]
    [record], classed = get_records(row["dataset"]), get_records(VIS)[0]
    assert [each.instance_id for each in record.instances] == [each.instance_id for each in classed.instances]
    assert {each.category_id for each in record.instances} == {0} != {each.category_id for each in classed.instances}
    assert MetadataCatalog.get(row["dataset"]).label_set == "object"


@pytest.mark.parametrize(
    ("command", "differ", "settings", "seeds"),
    [
        (
            "marker",
            {"MODEL.META_ARCHITECTURE": ("AUSM", "AUSMObjectVectors")},
            ("History_Marker", "object_vectors"),
            [1],
        ),
        ("start", {"MODEL.AUSM.START": ("lookup", "residual")}, ("lookup", "residual"), [1]),
        (
            "noise",
            {"MODEL.AUSM.TRAIN.HISTORY_NOISE.ENABLED": (True, False)},
            ("with_history_noise", "without"),
            [1, 2],
        ),
    ],
)
def test_ablations_differ_in_one_key_and_start_from_random_weights(
    command: str,
    differ: dict[str, tuple[Any, Any]],
    settings: tuple[str, str],
    seeds: list[int],
    run: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(experiment.variants, "_evaluate", lambda cfg, videos: {VIS: {"segm": {"AP": 1.0}}})
    rows = run(experiment.main, command, "--seeds", *seeds, "--opts", "SOLVER.MAX_ITER", 1)
    assert [row["seed"] for row in rows] == ([*seeds, *seeds] if len(seeds) > 1 else [None, None])
    with_it, without = (
        experiment.variants._learning(load_config(str(tmp_path / "out" / f"{setting}_seed1" / "config.yaml")))
        for setting in settings
    )
    assert {name: (value, without[name]) for name, value in with_it.items() if without[name] != value} == differ
    assert with_it["MODEL.WEIGHTS"] == ""


def test_the_start_can_be_compared_from_weights_that_detect_and_know_no_history(
    run: Callable[..., list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment.variants, "_evaluate", lambda cfg, videos: {VIS: {"segm": {"AP": 1.0}}})
    no_history = ["MODEL.AUSM.COMPRESSOR.LAYERS", 0, "MODEL.AUSM.DECODER.LAYERS", 0]
    detector = tiny_model(*ONE_LAYER, "MODEL.AUSM.START", "residual", *no_history)
    torch.save({"model": detector.state_dict()}, tmp_path / "detector.pth")
    opts = ["MODEL.WEIGHTS", tmp_path / "detector.pth", "SOLVER.MAX_ITER", 1, "SOLVER.BASE_LR", 0.0]
    run(experiment.main, "start", "--detector", "--opts", *opts)
    given = detector.state_dict()
    for start in ("lookup", "residual"):
        trained = torch.load(tmp_path / "out" / f"{start}_seed1" / "model_final.pth", weights_only=True)["model"]
        kept = [name for name in given if name.startswith(("frame_encoder.", "pixel_decoder."))]
        different = {name for name in kept if not torch.equal(given[name], trained[name])}
        assert different == {"pixel_decoder.track_embed.weight"}  # the position of tracked rows is not a detector's
        silent = not trained["decoder.layers.0.cross_attn.out_proj.weight"].any()
        assert silent == ("mask_gate" in trained) == (start == "residual")
    with pytest.raises(UserError, match=r"MODEL.WEIGHTS: empty, expected the weights of a detector"):
        run(experiment.main, "start", "--detector", "--opts", "MODEL.WEIGHTS", "")


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (experiment.main, ["clip-length", "--frames", 3], "no number of clips of 3 has about the 2 frames of an it"),
        (experiment.main, ["clip-length", "--frames", 0], "no number of clips of 0 has about the 2 frames of an it"),
        (experiment.main, ["repeat", "--videos", 0], "--videos: 0, expected 1 or more"),
        (experiment.main, ["repeat", "--repeats", 1, 0], "--repeats: 0, expected 1 or more"),
        (sweep_threshold.main, ["--thresholds", 1.5], "expected probabilities"),
        (sweep_threshold.main, ["--opts", "DATASETS.TEST", [VOS]], "only unprompted data sets have a threshold"),
        (sweep_threshold.main, ["--opts", "MODEL.WEIGHTS", ""], "MODEL.WEIGHTS: empty"),
        (sweep_threshold.main, ["--opts", "DATASETS.TEST", []], "DATASETS.TEST: empty"),
    ],
)
def test_invalid_arguments_are_refused(
    main: Callable[[], None],
    arguments: list[Any],
    message: str,
    run: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=message):
        run(main, *arguments)
    assert not (tmp_path / "out").exists()
