# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ausm_d2.checkpoint.reading import read_checkpoint
from ausm_d2.cli.main import main
from ausm_d2.config import load_config
from ausm_d2.errors import UserError
from ausm_d2.finetune import run as module
from ausm_d2.finetune import trainer
from ausm_d2.finetune.recipe import write_start
from ausm_d2.finetune.scores import without_gain
from ausm_d2.finetune.trainer import Pace, measure_pace
from ausm_d2.stopping import StopRequest
from ausm_d2.streaming.predictor import VideoPredictor
from tests.finetune.own import coco, write_coco, write_video
from tests.tiny import ONE_LAYER, write_tiny_config
from tests.video.clips import write_clip

pytestmark = pytest.mark.usefixtures("restored_loggers")


@pytest.fixture(scope="module", autouse=True)
def small_pool() -> Iterator[None]:
    """Fewer clips are recorded before the first iteration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "POOL", 6)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with proposals, whose clips are small too."""
    opts = ["MODEL.AUSM.PIXEL_DECODER.QUERIES", "proposals", "DATALOADER.NUM_WORKERS", 0, "DATASETS.TEST", []]
    opts += ["INPUT.MIN_SIZE_TRAIN", [32], "INPUT.PSEUDO.MIN_SIZE_TRAIN", [32], "INPUT.MIN_SIZE_TEST", 32]
    opts += ["INPUT.SAMPLING_FRAME_NUM", 2, *ONE_LAYER]
    return write_tiny_config(tmp_path_factory.mktemp("model"), *opts)


@pytest.fixture(scope="module")
def teach(base: Path) -> Callable[..., int]:
    """Run ``ausm train`` from the tiny model."""

    def teach(*arguments: Any) -> int:
        start = [] if "--resume" in arguments else ["--from", str(base)]
        return main(["train", *start, *map(str, arguments)])

    return teach


@pytest.fixture(scope="module")
def taught(teach: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two iterations on five images."""
    folder = tmp_path_factory.mktemp("own")
    labels, images = write_coco(folder, coco(5))
    assert teach("--coco", labels, "--images", images, "--iterations", 2, "-o", folder / "out") == 0
    return folder / "out"


def test_what_a_run_leaves(taught: Path) -> None:
    assert {path.name for path in taught.iterdir()} == {
        *("labels", "start.pth", "train.yaml", "training", "model.pth", "config.yaml", "scores.json")
    }
    assert [path.name for path in (taught / "training").glob("*.pth")] == ["model_final.pth"]
    scores = json.loads((taught / "scores.json").read_text())
    assert set(scores) == {"before", "after", "iterations"}
    assert set(scores["before"]) == set(scores["after"]) == {"cup", "spoon", "any class"}
    assert scores["before"]["cup"]["AP50"] is not None
    start, end = (read_checkpoint(taught / name)["model"] for name in ("start.pth", "model.pth"))
    assert start.keys() <= end.keys()
    changed = {name for name in start if (start[name] != end[name]).any()}
    assert {f"pixel_decoder.class_embed.own.{name}" for name in ("weight", "bias")} <= changed
    assert all(name.startswith(("pixel_decoder.", "frame_encoder.proposal_pyramid.")) for name in changed)
    assert any("proposals" in name for name in changed)
    assert end["pixel_decoder.class_embed.own.bias"].shape == (3,)


def test_the_result_tracks_under_its_own_names_wherever_it_is(taught: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    subprocess.run(["cp", "-r", taught, moved], check=True)
    predictor = VideoPredictor(load_config(str(moved / "config.yaml")))
    assert str(moved / "model.pth") == predictor.cfg.MODEL.WEIGHTS
    assert predictor.label_set == "own" and predictor.class_names("own") == ["cup", "spoon"]
    clip, out = write_clip(tmp_path / "a.mp4", 2), tmp_path / "out"
    every = ["--opts", "TEST.AUSM.FG_THRESHOLD", "0.0"]
    config = ["--config", str(moved / "config.yaml")]
    assert main(["track", str(clip), "-o", str(out), *config, "--save", "mot", *every]) == 0
    tracks = json.loads((out / "tracks.json").read_text())["tracks"]
    assert tracks and {track["class"] for track in tracks} <= {"cup", "spoon"}


def test_a_new_class_begins_as_an_object_of_the_base(base: Path, taught: Path) -> None:
    """Of three classes each has a third of the probability, and background has what it had."""
    keys = ["MODEL.AUSM.LABEL_SETS", [["synthvis", 6], ["object", 1], ["own", ["a", "b", "c"]]]]
    write_start(load_config(str(base)), load_config(str(base), keys), taught / "other.pth")
    state = read_checkpoint(taught / "other.pth")["model"]
    (taught / "other.pth").unlink()
    x = torch.randn(5, 32)
    own, object_ = (
        (x @ state[f"pixel_decoder.class_embed.{name}.weight"].float().T
         + state[f"pixel_decoder.class_embed.{name}.bias"].float()).softmax(dim=1)
        for name in ("own", "object")
    )  # fmt: skip
    torch.testing.assert_close(own[:, -1], object_[:, -1], atol=2e-3, rtol=0)
    torch.testing.assert_close(own[:, 0], object_[:, 0] / 3, atol=2e-3, rtol=0)


def test_a_stopped_training_is_of_use_and_goes_on(
    teach: Callable[..., int],
    taught: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C after the first of two iterations, which are as many as fit into a minute."""
    out, where = tmp_path / "out", ["--coco", taught.parent / "labels.json", "--images", taught.parent / "images"]

    def stop(self: StopRequest) -> bool:
        if not self._seen.is_set():
            self._note(signal.SIGINT, None)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "__call__", stop)
        patch.setattr(module, "FEWEST", 1)
        patch.setattr(module, "measure_pace", lambda cfg: Pace(start=0.0, iteration=30.0))
        assert teach(*where, "--minutes", 1, "-o", out) == 130
    said = capsys.readouterr()
    assert "an iteration takes 30.00 s, the time before the first one 0 s: 2 in 1 minutes" in said.out
    assert "stopped after 1 of 2 iterations" in said.out and said.err == "stopped; --resume goes on\n"
    assert [path.name for path in (out / "training").glob("*.pth")] == ["model_0000000.pth"]
    assert VideoPredictor(load_config(str(out / "config.yaml"))).label_set == "own"
    assert teach("-o", out, "--resume") == 0
    assert "| cup " in capsys.readouterr().out
    one, other = (read_checkpoint(path / "model.pth")["model"] for path in (out, taught))
    assert all(torch.equal(one[name], other[name]) for name in one), "as if it had not been stopped"


def test_the_pace_of_a_training_is_measured(taught: Path) -> None:
    pace = measure_pace(load_config(str(taught / "train.yaml")), count=1)
    assert 0 < pace.start < 60 and 0 < pace.iteration < 60
    assert Pace(start=30, iteration=2).iterations(minutes=1) == 15 and Pace(90, 2).iterations(1) == 0


def test_classes_without_gain_are_said() -> None:
    before = {"cup": {"AP50": 3.0}, "spoon": {"AP50": 3.0}, "fork": {"AP50": None}, "any class": {"AP50": 9.0}}
    after = {"cup": {"AP50": 3.1}, "spoon": {"AP50": 3.0}, "fork": {"AP50": None}, "any class": {"AP50": 1.0}}
    assert without_gain(before, after) == ["spoon"]


def test_a_video_is_learned_from(teach: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames, masks = write_video(tmp_path, 5)
    names = ["--names", "1=cup", "2=spoon"]
    small = ["--opts", "SOLVER.IMS_PER_BATCH", "1", "INPUT.SAMPLING_FRAME_NUM", "2"]
    where = ["--video", frames, "--masks", masks, "-o", tmp_path / "out"]
    assert teach(*where, *names, "--iterations", 1, *small) == 0
    said = capsys.readouterr().out
    assert "to train on: 4 pictures (cup 1, spoon 1)" in said and "| spoon " in said
    assert load_config(str(tmp_path / "out" / "train.yaml")).SOLVER.IMS_PER_BATCH == 1


def test_nothing_is_written_where_something_is_wrong(teach: Callable[..., int], taught: Path, tmp_path: Path) -> None:
    where = ["--coco", taught.parent / "labels.json", "--images", taught.parent / "images", "--iterations", 1]
    for out, options, message in (
        (tmp_path / "out", ["--classes", "fork"], "--classes"),
        (tmp_path / "out", ["--opts", "SOLVER.MAX_ITR", "3"], "MAX_ITR"),
        (tmp_path / "out", ["--opts", "SOLVER.NON_FINITE", "maybe"], "NON_FINITE: 'maybe' found; stop or skip"),
        (tmp_path / "out", ["--opts", "DATASETS.LEAVE_OUT", "['nowhere']"], r"LEAVE_OUT: \['nowhere'\]: no such data"),
        (tmp_path / "out", ["--opts", "MODEL.AUSM.HIDDEN_DIM", "64"], "do not fit the config"),
        (taught, [], "holds a training already; --resume goes on with it"),
        (taught.parent, [], "a new or empty folder expected"),
    ):
        with pytest.raises(UserError, match=message):
            teach(*where, "-o", out, *options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="holds no training"):
        teach("-o", tmp_path, "--resume")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected either --coco JSON with --images DIR, or --video DIR with --masks DIR"),
        (["--coco", "a", "--video", "b"], "expected either"),
        (["--coco", "a"], "--coco needs --images DIR too"),
        (["--video", "a"], "--video needs --masks DIR too"),
        (["--video", "a", "--masks", "b", "--boxes-as-masks"], "--boxes-as-masks does not go with --video"),
        (["--coco", "a", "--images", "b", "--names", "1=c"], "--names does not go with --coco"),
        (["--coco", "a", "--images", "b", "--val-images", "c"], "--val-images goes with --val"),
        (["--video", "a", "--masks", "b", "--names", "1=c", "1=d"], "an object has two classes"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(["train", "-o", "nowhere", *options])


@pytest.mark.parametrize(
    ("option", "value"),
    [("--minutes", "0"), ("--iterations", "1.5"), ("--held-out", "1"), ("--names", "cup"), ("--minutes", "nan")],
)
def test_values_that_are_none(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as code:
        main(["train", "-o", "nowhere", option, value])
    assert code.value.code == 2 and f"argument {option}: '{value}', expected" in capsys.readouterr().err


def test_the_command_needs_no_torch_to_refuse() -> None:
    code = "import sys; from ausm_d2.cli.main import main\ntry:\n    main(['train', '-o', 'x'])\nexcept ValueError:\n"
    code += "    print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"
