# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

import train_net
from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.data import build, mixture
from ausm_d2.data.synthvis import CLASSES, SynthVis
from ausm_d2.errors import cli
from tests.new_process import run_python
from tests.tiny import ONE_LAYER, tiny_model, tiny_yaml

ROOT = Path(__file__).resolve().parents[1]


pytestmark = pytest.mark.usefixtures("restored_loggers", "quick_setup")


@pytest.fixture
def data_sets() -> Iterator[list[str]]:
    """Two short synthetic videos for training, one of them for unprompted and prompted evaluation."""
    records = list(SynthVis(3, 2, 4, complete=True))
    names = ["few_train", "few_val", "few_val_vos"]
    for name in names:
        task = "vos" if name.endswith("vos") else "vis"
        DatasetCatalog.register(name, partial(records.__getitem__, slice(2 if name.endswith("train") else 1)))
        MetadataCatalog.get(name).set(
            thing_classes=list(CLASSES),
            evaluator_type={"vis": "ytvis", "vos": "vos"}[task],
            task=task,
            label_set="synthvis",
            exhaustive=True,
        )
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A tiny model's YAML file, for data that is embedded; its OUTPUT_DIR is ``tmp_path / "out"``."""
    keys = ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.AUSM.PROMPT_LABEL_SET", "synthvis", *ONE_LAYER]
    keys += ["DATASETS.TRAIN", ["synthvis_train"], "DATASETS.TEST", ["synthvis_val"]]
    keys += ["INPUT.MIN_SIZE_TRAIN", [48], "INPUT.SAMPLING_FRAME_NUM", 2, "DATALOADER.NUM_WORKERS", 0]
    keys += ["SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", [], "SEED", 7]
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_yaml(*keys))
    return path


@pytest.fixture
def run(config: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run train_net.py with further arguments, in this process; returns its exit code."""

    def run(*arguments: Any) -> int:
        monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", str(config), *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli(train_net.main)
        return int(exit_.value.code)  # type: ignore[arg-type]

    return run


def metrics(output_dir: Path, name: str) -> dict[int, float]:
    """One value of metrics.json, by iteration."""
    lines = [json.loads(line) for line in (output_dir / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line[name] for line in lines if name in line}


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[mixture.Draw]:
    """Records of the training items."""
    made: list[mixture.Draw] = []
    make = build._TrainingItems.__getitem__

    def noted(self: build._TrainingItems, draw: mixture.Draw) -> dict[str, Any]:
        made.append(draw)
        return make(self, draw)

    monkeypatch.setattr(build._TrainingItems, "__getitem__", noted)
    return made


def test_train_resume_and_evaluate(
    run: Callable[..., int],
    data_sets: list[str],
    draws: list[mixture.Draw],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, *test = data_sets
    names = ["DATASETS.TRAIN", [train], "DATASETS.TEST", test]
    out = tmp_path / "out"

    assert run(*names, "TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 1) == 0
    assert {"model_0000000.pth", "model_0000001.pth", "model_final.pth", "config.yaml", "log.txt"} <= {
        path.name for path in out.iterdir()
    }
    assert list(out.glob("events.out.tfevents.*")), "TensorBoard"
    assert list(metrics(out, "total_loss")) == [1]
    for name in ("few_val/segm/AP", "few_val/reappearance/hidden", "few_val_vos/vos/J&F"):
        assert list(metrics(out, name)) == [0, 2], "in training, and at its end"
    checkpoint = torch.load(out / "model_final.pth", weights_only=False)
    assert checkpoint["iteration"] == 1

    # Two more iterations: those before are not run again, the optimiser goes on, and so do the clips.
    assert run("--resume", *names, "SOLVER.MAX_ITER", 4) == 0
    assert list(metrics(out, "total_loss")) == [1, 3]
    resumed = torch.load(out / "model_final.pth", weights_only=False)
    assert resumed["iteration"] == 3
    steps = {int(state["step"]) for state in resumed["trainer"]["_trainer"]["optimizer"]["state"].values()}
    assert max(steps) == 4
    assert draws == list(islice(mixture.MixtureSampler([2], [1.0], seed=7), 4))
    assert not torch.equal(checkpoint["model"]["x_start"], resumed["model"]["x_start"])

    # Again: there is nothing left, and that is said.
    capsys.readouterr()
    assert run("--resume", *names, "SOLVER.MAX_ITER", 4) == 0
    assert "has been through 4 iterations and SOLVER.MAX_ITER is 4: nothing is trained" in capsys.readouterr().out
    assert len(draws) == 4

    # Evaluation of the last checkpoint, by --resume and by name, gives what the training measured at its end.
    measured = metrics(out, "few_val_vos/vos/J&F")[4]
    expected = ["TEST.EXPECTED_RESULTS", [["vos", "J&F", measured, 1e-6]]]
    only = ["DATASETS.TRAIN", [], "DATASETS.TEST", test[1:], *expected]
    assert run("--eval-only", "--resume", *only) == 0
    assert run("--eval-only", *only, "MODEL.WEIGHTS", out / "model_final.pth", "OUTPUT_DIR", tmp_path / "again") == 0
    assert f"| {measured:.1f} " in (tmp_path / "again" / "table.md").read_text()


def test_averaged_weights_are_evaluated_and_resumed(
    run: Callable[..., int], data_sets: list[str], tmp_path: Path
) -> None:
    train, _, test = data_sets
    names = ["DATASETS.TRAIN", [train], "DATASETS.TEST", [], "MODEL_EMA.ENABLED", True]
    names += ["SOLVER.BASE_LR", 0.01, "SOLVER.CHECKPOINT_PERIOD", 1]
    assert run(*names, "SOLVER.MAX_ITER", 2) == 0
    cheap = ["TEST.EVAL_PERIOD", 1, "TEST.AUSM.EVERY_NTH", 3, "TEST.AUSM.J_BY_AREA", True]
    assert run("--resume", *names, "SOLVER.MAX_ITER", 3, "DATASETS.TEST", [test], *cheap) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert {key for line in lines for key in line if key.startswith("area/J<=")}, "J by area, in training"
    last = tmp_path / "out" / "model_final.pth"
    before, after = (torch.load(path, weights_only=False) for path in (last.with_name("model_0000001.pth"), last))
    assert (before["ema"]["steps"], after["ema"]["steps"]) == (2, 3)
    decay = (1 + 3) / (10 + 3)
    for name in ("x_start", "id_pool.embed.weight"):
        expected = decay * before["ema"][name] + (1 - decay) * after["model"][name]
        assert torch.allclose(after["ema"][name], expected, atol=1e-6) and not torch.equal(
            after["ema"][name], after["model"][name]
        )

    # What a checkpoint gives to an evaluation or another training is the average, which is what was measured.
    model = tiny_model(*ONE_LAYER)
    AUSMCheckpointer(model, complete=True).load(str(last))
    assert torch.equal(model.x_start, after["ema"]["x_start"])
    measured = list(metrics(tmp_path / "out", "vos/J&F").values())[-1]
    expected = ["DATASETS.TEST", [test], "TEST.EXPECTED_RESULTS", [["vos", "J&F", measured, 1e-6]]]
    assert run("--eval-only", "DATASETS.TRAIN", [], *cheap[2:], *expected, "MODEL.WEIGHTS", last) == 0


def test_a_resumed_evaluation_uses_the_current_weights(
    run: Callable[..., int], data_sets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TEST.AUSM.RESUME keeps results, but not those of a checkpoint that has been replaced since."""
    out = tmp_path / "out"
    arguments = ["--resume", "--eval-only", "DATASETS.TEST", data_sets[2:], "TEST.AUSM.RESUME", True]
    for name in ("model_0000001.pth", "model_0000003.pth"):
        out.mkdir(exist_ok=True)
        torch.save({"model": tiny_model(*ONE_LAYER).state_dict()}, out / name)
    (out / "last_checkpoint").write_text("model_0000001.pth")
    assert run(*arguments) == 0
    assert run(*arguments) == 0
    (out / "last_checkpoint").write_text("model_0000003.pth")
    assert run(*arguments) == 1
    assert "the results there are of other weights" in capsys.readouterr().err


def test_a_training_needs_test_sets_only_if_it_evaluates(
    run: Callable[..., int],
    data_sets: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "nowhere")
    common = ["MODEL.AUSM.LABEL_SETS", [["synthvis", 6], ["object", 1]], "SOLVER.MAX_ITER", 1]
    common += ["DATASETS.TRAIN", data_sets[:1]]
    assert run(*common, "DATASETS.TEST", []) == 0
    missing = ["DATASETS.TEST", ["davis_2017_val"], "OUTPUT_DIR", tmp_path / "again"]
    assert run(*common, *missing, "TEST.SKIP_MISSING", True) == 0
    capsys.readouterr()
    weights = ["MODEL.WEIGHTS", tmp_path / "out" / "model_final.pth"]
    assert run("--eval-only", *common, *missing, *weights, "TEST.SKIP_MISSING", True) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "DATASETS.TEST: none of its data sets is there" in line and "nowhere/DAVIS/ImageSets" in line


MISTAKES = {
    "unknown data set": (["DATASETS.TEST", ["no_such_val"]], "data set 'no_such_val' is not registered"),
    "unknown training set": (["DATASETS.TRAIN", ["no_such"]], "data set 'no_such' is not registered"),
    "unknown key": (["MODEL.AUSM.NUM_IDS", 3], "MODEL.AUSM.NUM_IDS"),
    "value of another type": (["SOLVER.MAX_ITER", "soon"], "soon"),
    "class count": (
        ["MODEL.AUSM.LABEL_SETS", [["synthvis", 5]]],
        "data set 'synthvis_val' has 6 classes, MODEL.AUSM.LABEL_SETS gives its label set 'synthvis' 5",
    ),
    "no label set": (["MODEL.AUSM.LABEL_SETS", [["object", 1]]], "needs the label set 'synthvis' (6 classes)"),
    "a choice that is none": (["MODEL.AUSM.TRAIN.MODE", "serial"], "MODEL.AUSM.TRAIN.MODE: 'serial' is not one of"),
    "missing weights": (["MODEL.WEIGHTS", "no/such.pth"], "MODEL.WEIGHTS: weights file 'no/such.pth' does not exist"),
    "missing weights to evaluate": (
        ["--eval-only", "MODEL.WEIGHTS", "no/such.pth"],
        "MODEL.WEIGHTS: weights file 'no/such.pth' does not exist",
    ),
    "no weights to evaluate": (["--eval-only"], "MODEL.WEIGHTS: empty"),
    "nothing to evaluate": (["--eval-only", "DATASETS.TEST", []], "DATASETS.TEST: empty"),
    "a ratio too few": (
        ["DATASETS.TRAIN", ["synthvis_train", "synthvis_val"], "DATASETS.DATASET_RATIO", [1.0]],
        "DATASETS.DATASET_RATIO: [1.0] found; expected one number from 0 on for each of "
        "['synthvis_train', 'synthvis_val'], not all 0",
    ),
    "a frame range too many": (["INPUT.SAMPLING_FRAME_RANGES", [3, 4]], "INPUT.SAMPLING_FRAME_RANGES: 2 numbers"),
    "more GPUs than there are": (["--num-gpus", 3], "--num-gpus: 3, but PyTorch finds 2 on this machine"),
    "fewer GPUs than none": (["--num-gpus", -1], "--num-gpus -1 --num-machines 1: expected 0 or more GPUs"),
    "clips that two processes cannot share": (
        ["--num-gpus", 2, "SOLVER.IMS_PER_BATCH", 3],
        "SOLVER.IMS_PER_BATCH: 3 found; a multiple of 2, the processes, expected",
    ),
    "no GPU on each of two machines": (
        ["--num-machines", 2, "--num-gpus", 0],
        "--num-gpus: 0 on each of 2 machines, expected 1 or more",
    ),
    "no address given for two machines": (
        ["--num-machines", 2],
        "--dist-url: not given; with several machines, tcp://HOST:PORT of machine 0 expected",
    ),
    "a machine too many": (
        ["--num-machines", 2, "--machine-rank", 2],
        "--machine-rank: 2, expected 0 to 1, another on each",
    ),
    "no address for two machines": (
        ["--num-machines", 2, "--dist-url", "auto"],
        "--dist-url: 'auto', expected tcp://HOST:PORT of machine 0",
    ),
    "an address without a port": (
        ["--num-machines", 2, "--dist-url", "tcp://here:p"],
        "--dist-url: 'tcp://here:p', expected tcp://HOST:PORT",
    ),
    "a time-out that is none": (["--timeout", 0], "--timeout: 0.0, expected a number of seconds above 0"),
    "an action that is none": (["SOLVER.NON_FINITE", "ignore"], "SOLVER.NON_FINITE: 'ignore' found; stop or skip"),
    "nothing to train on": (["DATASETS.TRAIN", []], "DATASETS.TRAIN: empty"),
    "training files that are not there": (
        ["DATASETS.TRAIN", ["coco_2017_train"], "MODEL.AUSM.LABEL_SETS", [["synthvis", 6], ["coco", 80]]],
        "coco_2017_train: no annotation file found; looked for nowhere/coco/annotations/instances_train2017.json",
    ),
    "test files that are not there": (
        ["DATASETS.TEST", ["davis_2017_val"], "MODEL.AUSM.LABEL_SETS", [["synthvis", 6], ["object", 1]]],
        "davis_2017_val: no folder found; looked for nowhere/DAVIS/ImageSets/2017/val.txt",
    ),
    "shipped weights that there are none of": (
        ["MODEL.WEIGHTS", "ausm://no.pth"],
        "weights file 'ausm://no.pth' does not",
    ),
    "weights of another config": (["MODEL.WEIGHTS", "ausm://ausm_nano.pth"], "do not fit the config"),
    "unknown model": (["MODEL.META_ARCHITECTURE", "Foo"], "MODEL.META_ARCHITECTURE: unknown 'Foo', expected AUSM"),
    "missing config": (["--config-file", "no/such.yaml"], "config file 'no/such.yaml' does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_errors_are_one_line_and_leave_no_files(
    mistake: str,
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "nowhere")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    arguments, message = MISTAKES[mistake]
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("error: ") and message in line
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_an_unwritable_output_folder_is_an_error(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run("OUTPUT_DIR", str(tmp_path / "file" / "out")) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: OUTPUT_DIR: ") and "cannot be written" in line


def test_a_missing_checkpoint_to_resume_from_is_an_error(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "last_checkpoint").write_text("model_0000499.pth")
    assert run("--resume") == 1
    message = f"{out}/last_checkpoint: the checkpoint 'model_0000499.pth' is not there, and there is no other one"
    assert message in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["last_checkpoint"]


def test_the_script_runs_as_a_command(new_processes: ForkServerContext, config: Path, tmp_path: Path) -> None:
    command = [ROOT / "train_net.py", "--config-file", config, "--eval-only", "MODEL.WEIGHTS", "gone.pth"]
    done = run_python(new_processes, command, tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: MODEL.WEIGHTS: weights file 'gone.pth' does not exist\n"
