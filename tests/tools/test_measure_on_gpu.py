# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The command that measures everything that needs a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ausm_d2.config import load_config
from ausm_d2.engine import check_datasets
from ausm_d2.errors import UserError
from tools import measure_on_gpu
from tools.benchmark import make_parser
from tools.benchmarks.train import VARIANTS


def main(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["measure_on_gpu", "--out", str(out), *arguments])
    measure_on_gpu.main()


def test_every_command_of_the_benchmarks_is_valid(tmp_path: Path) -> None:
    files = []
    for part in measure_on_gpu.BENCHMARKS:
        for _, arguments, figures in measure_on_gpu.commands(part, tmp_path):
            assert arguments[:2] == ["-m", "tools.benchmark"]
            args = make_parser().parse_args(arguments[2:])
            assert args.json == figures
            files.append(args.json.stem)
            for config in (
                [args.config_file]
                if isinstance(getattr(args, "config_file", []), str)
                else getattr(args, "config_file", [])
            ):
                load_config(config, ["MODEL.DEVICE", "cpu"])
    assert {target.file for target in measure_on_gpu.TARGETS} <= set(files)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        main(monkeypatch, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_does_not_end_the_others_and_figures_that_are_there_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []

    def run(arguments: list[str], log: Path, seconds: float | None) -> bool:
        ran.append(log.stem)
        assert (seconds is not None) == (log.stem == "edge")
        return log.stem not in ("tests", "train")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(measure_on_gpu, "run", run)
    figures = {"frame": [{"model": "stage3_long_swin_t", "ms": 5.25}]}
    report = {"machine": {"accelerator": "some GPU"}, "arguments": {}, "stream": figures}
    (tmp_path / "stream_360.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="failed: tests train; logs are in"):
        main(monkeypatch, tmp_path)
    assert ran == ["tests", "masks_nano", "masks_edge", "ssm", "stream_1024", "train", "edge"]
    table = (tmp_path / "targets.md").read_text()
    assert "| Swin-T, 640 x 360, streaming, ms | <= 6 | 5.25 (some GPU) |" in table
    assert table.count("not measured") == len(measure_on_gpu.TARGETS) - 1


def test_a_kernel_that_was_left_out_is_left_out_of_the_table(tmp_path: Path) -> None:
    scan = {"scan": [], "step": [{"what": "triton", "gb_per_s": 3200.0}]}
    (tmp_path / "ssm.json").write_text(json.dumps({"machine": {"accelerator": "X"}, "arguments": {}, "ssm": scan}))
    table = measure_on_gpu.table(tmp_path)
    assert "Triton, GB/s | >= 3010 on an H200 | 3200 (X) |" in table and "mamba_ssm, GB/s |  | left out |" in table


def test_the_names_in_the_table_are_those_of_the_benchmarks() -> None:
    used = measure_on_gpu.BENCHMARKS["train"]["train"]
    assert all(name in used for name in VARIANTS)
    row = {"model": f"stage3_long_swin_t {measure_on_gpu.REDUCED}", "ms": 3}
    assert measure_on_gpu._ms(measure_on_gpu.REDUCED)({"frame": [row]}) == 3


def test_ausm_edge_is_trained_on_embedded_videos_where_there_is_no_other_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    options = measure_on_gpu.edge_options(tmp_path / "out")
    assert "take the place of ['davis_2017_train', 'coco2super_train']" in capsys.readouterr().out
    place = options.index("MODEL.DEVICE")
    assert options[place : place + 4] == ["MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", "True"]
    cfg = load_config(options[1], [*options[2:place], *options[place + 4 :], "MODEL.DEVICE", "cpu"])
    check_datasets(cfg, cfg.DATASETS.TRAIN)
    assert cfg.DATASETS.TRAIN == ("synthvis_train",) and cfg.MODEL.WEIGHTS == "ausm://ausm_edge.pth"


def test_the_output_goes_to_a_file_and_a_training_is_ended_when_its_time_is_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert measure_on_gpu.run(["-c", "print('done')"], log, None) and log.read_text() == "done\n"
    assert not measure_on_gpu.run(["-c", "raise SystemExit(3)"], log, None)
    assert measure_on_gpu.run(["-S", "-c", "import time; time.sleep(60)"], log, 0.3)
