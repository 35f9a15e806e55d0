# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ausm_d2.cli import main as module
from ausm_d2.cli import track
from ausm_d2.cli.main import build_parser, main
from ausm_d2.cli.progress import ProgressBar
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import decode
from ausm_d2.video.results import DEFAULT_OUTPUTS, OUTPUTS
from tests.tiny import write_tiny_config
from tests.video.clips import half, write_clip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_config(tmp_path_factory.mktemp("model")))


def test_the_help_lists_the_existing_outputs() -> None:
    assert tuple(OUTPUTS) == track.OUTPUTS
    defaults = build_parser().parse_args(["track", "a", "-o", "b"])
    assert {*defaults.save, "tracks"} == set(DEFAULT_OUTPUTS)


def test_the_help_names_every_command_and_imports_no_torch() -> None:
    code = "import sys; from ausm_d2.cli.main import build_parser; print(build_parser().format_help()); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert all(f"    {name} " in done.stdout for name in module.COMMANDS) and done.stdout.endswith("False\n")


def test_every_example_of_the_help_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["track", "--help"])
    text = capsys.readouterr().out
    lines = [line.split("  #")[0] for line in text.splitlines() if line.startswith("  ausm track ")]
    assert len(lines) > 5
    for line in lines:
        words = line.strip().replace("'", "").split("  ")[0].split()[1:]
        assert build_parser().parse_args(words).command == "track"


def test_one_video(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(tmp_path / "a.mp4", 3)
    assert main(["track", str(clip), "-o", str(tmp_path / "out"), "--config", config, "--save", "mot"]) == 0
    found = capsys.readouterr()
    assert found.out.startswith("3 frames, ") and "%|" not in found.err  # standard error is no terminal: no bar
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["mot.txt", "tracks.json"]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_workers_are_for_a_folder(config: str, tmp_path: Path, workers: str) -> None:
    clip = write_clip(tmp_path / "a.mp4", 1)
    with pytest.raises(UserError, match=f"--workers: {workers} for one video, expected a folder of videos"):
        main(["track", str(clip), "-o", str(tmp_path / "out"), "--config", config, "--workers", workers])
    assert not (tmp_path / "out").exists()


def test_prompts_of_the_command_line(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, out = write_clip(tmp_path / "a.mp4", 4), tmp_path / "out"
    (tmp_path / "p.json").write_text(
        '{"objects": [{"id": 4, "name": "ball", "prompts": [{"frame": 1, "points": [[40, 30]]}]}]}'
    )
    given = [
        "--box",
        "7:10,10,30,30",
        "--point",
        "7:12,12,0",
        "--box",
        "9@2:5,5,20,20",
        "--prompts",
        tmp_path / "p.json",
    ]
    arguments = ["track", clip, "-o", out, "--config", config, "--save", "mot", *given]
    assert main([str(each) for each in arguments]) == 0
    data = json.loads((out / "tracks.json").read_text())
    tracks = {track["id"]: track for track in data["tracks"]}
    assert sorted(tracks) == [4, 7, 9] and data["prompted"] is True
    assert [tracks[i]["frames"][0] for i in (7, 4, 9)] == [0, 1, 2]
    assert tracks[4]["class"] == "ball" and tracks[7]["class"] == "object"
    mask = decode(tracks[7]["segmentations"][0])
    assert not mask[12, 12]
    capsys.readouterr()
    with pytest.raises(UserError, match="given at frame 9, the video has frames 0 to 3"):
        main(["track", str(clip), "-o", str(out), "--config", config, "--box", "1@9:1,1,5,5"])


def test_a_folder_with_one_bad_video(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    write_clip(tmp_path / "in" / "a.mp4", 2)
    half(write_clip(tmp_path / "in" / "b.mkv", 100, fps=10, noise=True))
    assert main(["track", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--config", config]) == 1
    out = capsys.readouterr().out
    assert "| a.mp4" in out and "1 done, 1 failed" in out and "cut off" in out


def test_ctrl_c_in_a_folder_is_exit_code_130(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / "in" / name, 2)
    command = ["track", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--config", config, "--save", "masks"]
    with monkeypatch.context() as patch:  # after the first video
        patch.setattr(ProgressBar, "__call__", lambda self, done, total: os.kill(os.getpid(), signal.SIGINT))
        assert main(command) == 130
    assert "1 done, 0 failed, 1 not done: the same command continues" in capsys.readouterr().out
    assert main(command) == 0
    assert "2 done, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--box", "10,20,30,40"], "expected object:left,top,right,bottom"),
        (["--box", "0:10,20,30,40"], "expected object:left,top,right,bottom"),
        (["--point", "1:5,5,2"], "label 2, expected 1 or 0"),
        (["--point", "1:5"], "expected object:x,y"),
        (["--save", "gif"], "invalid choice: 'gif'"),
        (["--fps", "0"], "expected frames a second"),
        (["--raw", "640"], "expected width and height"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_mistake_in_the_command_line_is_exit_code_2(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["track", "a.mp4", "-o", "out", *more])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_data_set_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "synthvis_val", "--max-videos", "1"]) == 0
    assert "synthvis_val" in capsys.readouterr().out


def test_evaluate_has_the_flags_of_detectron2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--help"])
    assert stop.value.code == 0 and "usage: ausm evaluate" in capsys.readouterr().out
