# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The benchmarks run and measure what they claim, at tiny sizes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ausm_d2.errors import UserError
from ausm_d2.meta_arch import AUSM
from tools import benchmark
from tools.benchmarks import attention, measure, peers, quality, ssm, stream, train

NANO = Path(__file__).resolve().parents[2] / "configs" / "synth" / "ausm_nano.yaml"


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A config file of ausm_nano with one layer of each kind."""
    layers = {name: {"LAYERS": 1} for name in ("COMPRESSOR", "DECODER")}
    text = {"_BASE_": str(NANO), "MODEL": {"AUSM": {**layers, "PIXEL_DECODER": {"LAYERS": 3, "NUM_DET": 4}}}}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(text))
    return str(path)


def measured(module: ModuleType, *words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args(words))


def assert_drawn(module: ModuleType, figures: dict[str, Any], path: Path) -> None:
    module.plot(figures, path)
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 5000


def test_train(config: str, tmp_path: Path) -> None:
    words = f"--config-file {config} --size 64 96 --frames 1 2 --objects 2 --repeats 1 --cpu-time".split()
    figures = measured(train, *words, "--variants", *train.VARIANTS)
    assert [(row["T"], row["variant"]) for row in figures["rows"]] == [(t, v) for t in (1, 2) for v in train.VARIANTS]
    for row in figures["rows"]:
        assert row["ms"] > 0 and row["speed_over_iterative"] > 0
        assert (row["speed_over_iterative"] == 1) == (row["variant"] == "iterative")
    assert_drawn(train, figures, tmp_path / "train.png")


def test_quality(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A square that stands still: its copied mask and its flow are right, and a tracked box is nearly so."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[20:44, 30:60] = 1
    for kind, image in (("JPEGImages", picture), ("Annotations", mask)):
        (tmp_path / "DAVIS" / kind / "480p" / "still").mkdir(parents=True)
        for t in range(3):
            name = f"{t:05d}.{'jpg' if kind == 'JPEGImages' else 'png'}"
            Image.fromarray(image).save(tmp_path / "DAVIS" / kind / "480p" / "still" / name)
    (tmp_path / "DAVIS" / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "DAVIS" / "ImageSets" / "2017" / "val.txt").write_text("still\n")
    times = tmp_path / "peers.json"
    peer = {"objects": 1, "model": "other", "ms": 300.0}
    found = {"rows": [peer, {**peer, "model": "small"}, {**peer, "objects": 5}]}
    times.write_text(json.dumps({"arguments": {"size": 256, "config_file": ["x/small.yaml"]}, "peers": found}))
    words = ["--config-file", config, "--data", "davis_2017_val", "--times", str(times), "--opts", "MODEL.WEIGHTS", ""]
    figures = measured(quality, *words)
    scores = {row["model"]: row["J"] for row in figures["rows"]}
    assert list(scores)[:3] == ["small", quality.COPIED, quality.FLOW] and scores[quality.COPIED] == 100
    assert scores[quality.FLOW] > 95 and list(scores.values())[3] > 50
    assert all(row["ms"] > 0 for row in figures["rows"])
    assert [row["model"] for row in figures["peers"]] == ["other, 256 pixels"]
    assert_drawn(quality, figures, tmp_path / "quality.png")


def test_a_training_step_that_does_not_fit_is_left_out(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(name: str, frames: int, args: argparse.Namespace) -> Callable[[], None]:
        def run() -> None:
            if name == "iterative" and frames == 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        return run

    monkeypatch.setattr(train, "_step", step)
    figures = measured(train, "--config-file", config, "--frames", "1", "2", "--repeats", "1")
    assert [(row["T"], row["variant"]) for row in figures["rows"]] == [
        *((1, "iterative"), (1, "parallel")),
        (2, "parallel"),
    ]
    assert "speed_over_iterative" not in figures["rows"][-1]
    assert "T = 2, iterative: does not fit into the GPU's memory" in capsys.readouterr().out


def test_the_variants_train_the_same_model_on_the_same_clip(config: str) -> None:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(f"--config-file {config} --size 64 96 --objects 2".split())
    losses = {}
    for name in train.VARIANTS:
        step = train._step(name, 2, args)
        model = next(cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, torch.nn.Module))
        (item,) = next(cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, list))
        torch.manual_seed(0)
        losses[name] = sum(model([item]).values()).item()
        assert model.compressor.checkpointing == (name == train.CHECKPOINTED)
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert losses["parallel"] == pytest.approx(losses["iterative"], rel=1e-5)
    assert losses[train.CHECKPOINTED] == pytest.approx(losses["parallel"], rel=1e-6)


def test_attention(tmp_path: Path) -> None:
    words = ["--tokens", "128", "200", "--heads", "2", "--head-dim", "16", "--dtype", "float32", "--repeats", "1"]
    if not attention.has_kernel(*torch.zeros(3, 1, 2, 128, 16)):
        with pytest.raises(UserError, match="PyTorch's own"):
            measured(attention, *words)
        return
    figures = measured(attention, *words)
    assert [(row["tokens"], row["kernel"]) for row in figures["rows"]] == [
        (tokens, kernel) for tokens in (128, 200) for kernel in ("attention.cpp", "PyTorch")
    ]
    assert all(row["ms"] > 0 and row["pytorch_over_it"] > 0 for row in figures["rows"])
    assert_drawn(attention, figures, tmp_path / "attention.png")
    for few in (["--head-dim", "7"], ["--tokens", "31"]):
        with pytest.raises(UserError, match=rf"{' '.join(few)}.*PyTorch's own"):
            measured(attention, *few)


def test_a_step_as_it_is_trained_has_the_batch_and_the_own_passes_of_the_config(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = yaml.safe_load(Path(config).read_text())
    text["MODEL"]["AUSM"]["TRAIN"] = {"OWN_PASSES": 2}
    Path(config).write_text(yaml.safe_dump({**text, "SOLVER": {"IMS_PER_BATCH": 3}}))
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    seen: list[tuple[int, int]] = []
    forward = AUSM.forward

    def watched(model: AUSM, items: list[Any]) -> Any:
        seen.append((len(items), model.own_passes))
        return forward(model, items)

    monkeypatch.setattr(AUSM, "forward", watched)
    words = f"--config-file {config} --size 64 96 --objects 1"
    train._step("parallel", 2, parser.parse_args([*words.split(), "--as-trained"]))()
    train._step("parallel", 2, parser.parse_args(words.split()))()
    assert seen == [(3, 2)] * 4 + [(1, 0)]


@pytest.mark.parametrize("module", [attention, peers, ssm, stream, train], ids=lambda module: module.__name__)
@pytest.mark.parametrize("number", ["0", "-3", "1.5"])
def test_counts_below_one_are_refused(module: ModuleType, number: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        measured(module, "--repeats", number)
    assert f"argument --repeats: {number}, expected 1 or more" in (error := capsys.readouterr().err) or (
        f"argument --repeats: invalid positive value: '{number}'" in error
    )


def test_wrong_arguments_are_reported_in_one_line(config: str, tmp_path: Path) -> None:
    other = tmp_path / "rcnn.yaml"
    other.write_text("VERSION: 2\nMODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n")
    twice = tmp_path / "twice" / Path(config).name
    for module, words, message in [
        (peers, ["--size", "100"], "--size 100: expected a multiple of 32"),
        (peers, ["--config-file", config, str(twice)], "same file name"),
        (stream, ["--config-file", str(other), "--frames", "0"], "META_ARCHITECTURE is GeneralizedRCNN, expected AUSM"),
        (stream, ["--device", "gpu"], "--device gpu: expected cpu or cuda"),
        (stream, ["--cuda-graph", "--frames", "0"], "--cuda-graph: there is none on cpu"),
        (train, ["--config-file", config, "--objects", "200"], "--objects 200: .* follows 16"),
    ]:
        with pytest.raises(UserError, match=message):
            measured(module, *words)


def test_a_missing_device_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "new" / "out.json"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "ssm", "--device", "cuda", "--json", str(out)])
    with pytest.raises(UserError, match="no GPU"):
        benchmark.main()
    assert not out.parent.exists()


def test_unwritable_files_are_reported_before_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(args: argparse.Namespace) -> dict[str, Any]:
        raise AssertionError("was begun")

    monkeypatch.setattr(ssm, "run", work)
    monkeypatch.setitem(benchmark.SUBJECTS, "ssm", ssm)
    (tmp_path / "file").touch()
    for words in (
        ["--json", str(tmp_path)],
        ["--plot", str(tmp_path / "file" / "x.png")],
        ["--json", "x", "--plot", "x"],
    ):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", "ssm", *words])
        with pytest.raises(UserError, match=r"written|both are x"):
            benchmark.main()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_stream(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_SETTLED", 3)
    monkeypatch.setattr(stream, "_LATER", 4)
    words = f"--config-file {config} --size 64 96 --objects 1 3 --repeats 2 --frames 5".split()
    reduced = "MODEL.AUSM.SPATIAL_REDUCTION 4"
    figures = measured(stream, *words, "--variants", "", reduced)
    expected = [(name, n) for name in ("small", f"small {reduced}") for n in (1, 3)]
    assert [(row["model"], row["objects"]) for row in figures["frame"]] == expected
    for row in figures["frame"]:
        assert row["ms"] > 0 and row["masks_ms"] > 0 and row["fps"] > 0 and row["over_first"] > 0
    assert figures["frame"][0]["over_first"] == 1
    memory = figures["memory"][1]
    assert memory["state_1000_over_2"] == 1 and memory["state_mb"] > 0 and memory["frames"] == 5
    assert_drawn(stream, figures, tmp_path / "stream.png")


def test_frames_of_a_file_beside_live_ones(config: str) -> None:
    words = f"--config-file {config} --size 64 96 --objects 1 --repeats 1 --frames 0 --file 3"
    figures = measured(stream, *words.split())
    (row,) = figures["file"]
    assert row["model"] == "small"
    assert min(row["live_fps"], row["ahead_1_over_live"], row["ahead_over_live"]) > 0


def test_a_stream_too_short_to_watch_is_refused() -> None:
    with pytest.raises(UserError, match=r"--frames 500: .*1000"):
        measured(stream, "--frames", "500")


def test_peers(config: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    figures = measured(peers, *f"--config-file {config} --size 64 --objects 2 --repeats 1".split())
    models = ["small", peers.SAM2]
    expected = [(2, model) for model in models] + [(None, "small"), (None, peers.VIDEOMT)]
    assert [(row["objects"], row["model"]) for row in figures["rows"]] == expected
    assert all(row["ms"] > 0 and row["peer_over_it"] > 0 for row in figures["rows"])
    assert_drawn(peers, figures, tmp_path / "peers.png")


def test_peers_follow_the_same_objects() -> None:
    masks = stream.squares(3, (64, 96))
    assert list(masks) == [1, 2, 3]
    assert all(mask.shape == (64, 96) and mask.sum() == 16 * 24 for mask in masks.values())
    assert not (masks[1] & masks[3]).any()


def test_missing_configs_packages_and_devices_are_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        measured(peers, "--config-file", "nowhere.yaml", "--peers")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"transformers.*\[dev\]"):
        measured(peers)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"matplotlib.*\[demo\]"):
        measure.matplotlib_figure()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        measured(ssm, "--device", "cuda")


def test_the_command_line_writes_figures_machine_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, png = tmp_path / "out.json", tmp_path / "out.png"
    words = ["ssm", "--sequences", "8", "--frames", "2", "3", "--channels", "16", "--state", "4", "--repeats", "1"]
    monkeypatch.setattr(ssm.measure, "in_new_process", lambda function, *args: function(*args))
    monkeypatch.setitem(benchmark.SUBJECTS, "ssm", ssm)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words, "--json", str(out), "--plot", str(png)])
    benchmark.main()
    report = json.loads(out.read_text())
    assert report["machine"]["threads"] == torch.get_num_threads() and report["arguments"]["frames"] == [2, 3]
    assert {row["T"] for row in report["ssm"]["scan"]} == {2, 3} and report["ssm"]["step"]
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert "threads: " in capsys.readouterr().out


def test_figures_are_written_even_if_the_plot_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(figures: dict[str, Any], path: Path) -> None:
        raise RuntimeError("no picture")

    monkeypatch.setattr(ssm, "run", lambda args: {"rows": []})
    monkeypatch.setattr(ssm, "plot", fail)
    monkeypatch.setitem(benchmark.SUBJECTS, "ssm", ssm)
    out, png = tmp_path / "out.json", tmp_path / "out.png"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "ssm", "--json", str(out), "--plot", str(png)])
    with pytest.raises(RuntimeError, match="no picture"):
        benchmark.main()
    assert json.loads(out.read_text())["ssm"] == {"rows": []} and list(tmp_path.iterdir()) == [out]


def test_too_little_memory_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: argparse.Namespace) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ...")

    with pytest.raises(UserError, match="want of memory, or"):
        measure.in_new_process(os._exit, 1)
    monkeypatch.setattr(ssm, "run", fail)
    monkeypatch.setitem(benchmark.SUBJECTS, "ssm", ssm)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "ssm"])
    with pytest.raises(UserError, match=r"too small: .*2 GiB\.$"):
        benchmark.main()


def test_memory_is_measured_before_there_is_any_of_the_timing(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(measure, "in_new_process", lambda function, *args: order.append("memory") or 5_000_000)
    interleaved = measure.interleaved
    monkeypatch.setattr(measure, "interleaved", lambda *args, **kw: order.append("time") or interleaved(*args, **kw))
    words = f"--config-file {config} --size 64 96 --frames 1 2 --objects 1 --repeats 1 --memory --variants parallel"
    figures = measured(train, *words.split())
    assert [row["peak_mb"] for row in figures["rows"]] == [5.0, 5.0]
    assert order == ["memory", "memory", "time", "time"]
