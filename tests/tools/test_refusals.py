# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What the tools refuse, besides what the tests of each reach."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ausm_d2.errors import UserError
from tests.tiny import tiny_cfg
from tools import batch_ray, convert_weights, gallery, install_detectron2, measure_on_gpu, real_video
from tools.benchmarks import masks as masks_benchmark
from tools.benchmarks import quality
from tools.experiments import rules, variants


def _run(module: Any, *arguments: object) -> Callable[[pytest.MonkeyPatch], object]:
    def call(patch: pytest.MonkeyPatch) -> object:
        patch.setattr(sys, "argv", ["tool", *map(str, arguments)])
        return module.main()

    return call


REAL = ["--config-file", "no.yaml"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_run(real_video, *REAL, "--every", 0), "--every 0, --count 24: expected 1 or more"),
        (_run(real_video, *REAL, "--count", 0), "--every 1, --count 0: expected 1 or more"),
        (_run(real_video, *REAL, "--images", "x"), "the part images needs --images"),
        (_run(real_video, *REAL, "--parts", "images"), "the part images needs --images"),
        (_run(gallery, "nothing", "such"), "no such picture: nothing, such"),
        (_run(batch_ray, "in", "-o", "out", "--workers", 0), "--workers: 0, expected 1 or more"),
        (_run(batch_ray, "in", "-o", "out", "--cpus", 0), "--cpus: 0, expected 1 or more"),
    ],
)
def test_arguments_that_cannot_be_used(
    call: Callable[[pytest.MonkeyPatch], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        call(monkeypatch)


def test_an_empty_output_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        batch_ray.main(["in", "-o", ""])
    assert "-o/--output: empty, expected a path" in capsys.readouterr().err


def test_one_video_is_no_folder_of_videos(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match=r"a\.mp4' is one video; a folder of videos expected"):
        batch_ray.videos_below(str(tmp_path / "a.mp4"), str(tmp_path / "out"))


def test_ray_that_is_missing_or_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> None:
        raise ConnectionError("no cluster at this address\nmore")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=fails))
    with pytest.raises(UserError, match=r"--address far:1: no cluster at this address$"):
        batch_ray.start_ray("far:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = r"ray is not installed; pip install 'ausm_d2\[ray\]'"
    with pytest.raises(UserError, match=missing):
        batch_ray.start_ray(None)
    rows = batch_ray._rows({"a": "a.mp4"}, "out", lambda: None, workers=1, cpus=1, gpus=0, retries=0)  # type: ignore
    with pytest.raises(UserError, match=missing):
        next(rows)


def test_videos_that_methods_cannot_be_compared_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clip:
        name = "dog"

        def __init__(self, *masks: bool) -> None:
            self.masks = masks

        def __iter__(self) -> Any:
            return iter([(np.zeros((2, 2, 3), np.uint8), {1: np.full((2, 2), mask)}) for mask in self.masks])

    method = SimpleNamespace(start=lambda *_: None)
    for masks, message in (((False,), "set: 'dog' has no object in its first frame"), ((True,), "no video of two")):
        monkeypatch.setattr(quality, "video_clips", lambda *_, masks=masks: [(0, Clip(*masks))])
        with pytest.raises(UserError, match=message):
            quality._measured({"a": lambda: method}, Namespace(data="set", every=1, cpu_time=False))


def test_masks_of_kernels_need_a_device_and_two_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    args = Namespace(ways=["reference"], data="set", every=1, videos=1, frames=1)
    with pytest.raises(UserError, match="--ways reference: expected DEVICE:KERNELS"):
        masks_benchmark.run(args)
    monkeypatch.setattr(masks_benchmark, "_predictor", lambda *_: None)
    monkeypatch.setattr(masks_benchmark, "video_clips", lambda *_: [])
    with pytest.raises(UserError, match="--data set: no video of two frames or more with an object in its first"):
        masks_benchmark.run(args)


def test_data_sets_to_train_on_that_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN = ("nope",)
    monkeypatch.setattr(variants, "common_config", lambda *_: cfg)
    with pytest.raises(UserError, match="data set 'nope' is not registered"):
        variants._run_config(Namespace(opts=[]), {}, tmp_path)
    monkeypatch.setattr(measure_on_gpu, "load_config", lambda *_: cfg)
    assert "('synthvis_train',)" in measure_on_gpu.edge_options(tmp_path)
    assert "take the place of ['nope']: data set 'nope' is not registered" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", '{"arguments": {"size": 3}}', '{"arguments": 3}'])
def test_times_that_are_of_no_benchmark(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    for path in (tmp_path / "t.json", tmp_path / "no.json"):
        with pytest.raises(UserError, match=rf"--times {path}: not a file of python -m tools\.benchmark peers"):
            quality._peers(path)


def test_rules_of_tracks_need_an_unprompted_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = SimpleNamespace(DATASETS=SimpleNamespace(TEST=("synthvis_val_vos",)))
    monkeypatch.setattr(rules, "common_config", lambda *_: cfg)
    with pytest.raises(UserError, match=r"DATASETS\.TEST: \['synthvis_val_vos'\]; only unprompted data sets"):
        rules.run(Namespace(as_objects=False, videos=1, clips=1))
    with pytest.raises(UserError, match="--clips: 0, expected 1 or more"):
        rules.run(Namespace(as_objects=False, videos=1, clips=0))


def test_weights_of_two_kinds_name_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise UserError("no weights of a kind that is known")

    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "a.pth")
    monkeypatch.setattr(convert_weights, "convert", refuses)
    with pytest.raises(UserError, match=r"a\.pth: no weights of a kind that is known"):
        convert_weights._converted(str(tmp_path / "a.pth"), {})


def test_detectron2_that_is_broken_or_not_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_detectron2, "_pip", lambda *_: None)
    with pytest.raises(install_detectron2.InstallError, match="found 0 wheels in its output, expected 1"):
        install_detectron2.download(tmp_path)
    for error in (ModuleNotFoundError("no fvcore", name="fvcore"), RuntimeError("broken")):

        def fails(_: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(importlib, "import_module", fails)
        with pytest.raises(install_detectron2.InstallError, match=r"cannot be imported: .*(fvcore|broken)"):
            install_detectron2.installed()
