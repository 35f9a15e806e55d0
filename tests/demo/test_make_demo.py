# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import torch

from ausm_d2.data.build import get_records
from ausm_d2.errors import UserError
from ausm_d2.evaluation.results import Output
from ausm_d2.jobs.prompt_file import read_prompts
from ausm_d2.masks.png import write_mask_png
from ausm_d2.masks.rle import encode
from ausm_d2.video.movie import MovieWriter
from demo import make_demo
from tests.tiny import tiny_cfg, tiny_model

RLE = encode(np.eye(4, dtype=bool))


def test_the_embedded_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command, with an untrained model."""
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "tiny.pth")
    names = ("synthvis_val", "synthvis_val_vos")
    cfg = tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "tiny.pth"), "OUTPUT_DIR", str(tmp_path / "out"))
    cfg.merge_from_list(
        ["DATASETS.TEST", names, "MODEL.AUSM.PROMPT_LABEL_SET", "synthvis", "DATALOADER.NUM_WORKERS", 0]
    )
    make_demo.embedded_videos(cfg, 1)
    record = get_records("synthvis_val")[0]
    folder = tmp_path / "out" / "videos"
    assert sorted(path.name for path in folder.iterdir()) == [f"{record.name}.mp4", f"{record.name}.png"]
    with av.open(str(folder / f"{record.name}.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.frames == record.length and stream.height > 3 * 4 * record.height
    assert cv2.imread(str(folder / f"{record.name}.png")).shape[1] > 6 * 2 * record.width
    told = capsys.readouterr().out
    assert "| synthvis_val_first1 " in told and "| J&F" in told and str(folder) in told


def test_the_clips_that_come_with_it() -> None:
    """Small files that browsers play, with a mask of the first frame each."""
    clips = sorted(make_demo._CLIPS.glob("*.mp4"))
    assert [clip.stem for clip in clips] == ["cars", "person"]
    assert sum(clip.stat().st_size for clip in clips) < 2e6
    for clip, objects in zip(clips, ([1, 2], [1]), strict=True):
        with av.open(str(clip)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
            prompts = read_prompts(clip.with_suffix(".png"))
            assert [*prompts] == objects
            assert all(mask.shape == (stream.height, stream.width) for mask in prompts.values())
    notice = (make_demo._ROOT / "NOTICE").read_text(encoding="utf-8")
    assert all(text in notice for text in ("cars.mp4", "person.mp4", "CC BY 4.0", "intel-iot-devkit/sample-videos"))


def test_real_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is taken twice, here by a model that has learned nothing."""
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "tiny.pth")
    cfg = tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "tiny.pth"), "MODEL.AUSM.PROMPT_LABEL_SET", "synthvis")
    with pytest.raises(UserError, match=r"expected videos \(\*\.mp4\), found none"):
        make_demo.real_clips(cfg, tmp_path / "out", tmp_path)
    with MovieWriter(tmp_path / "a.mp4", 10) as video:
        for value in (40, 80):
            video.write(np.full((32, 48, 3), value, np.uint8))
    labels = np.zeros((32, 48), np.uint8)
    labels[8:24, 8:24] = 3
    write_mask_png(tmp_path / "a.png", labels)
    make_demo.real_clips(cfg, tmp_path / "out", tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_followed", "a_found", "sheet.jpg"]
    tracks = json.loads((tmp_path / "out" / "a_followed" / "tracks.json").read_text())
    assert tracks["prompted"] and [track["id"] for track in tracks["tracks"]] == [3]
    assert cv2.imread(str(tmp_path / "out" / "sheet.jpg")).shape[1] > 2 * 448
    assert "Real clips: 4 frames" in capsys.readouterr().out


def test_what_is_drawn_of_an_output() -> None:
    track = {"track_id": 4, "segmentations": [RLE, None]}
    tracks = [{**track, "category_id": 1, "score": 0.9}, {**track, "category_id": 0, "score": 0.4}]
    tracks.append({"track_id": 5, "segmentations": [RLE, RLE], "category_id": 0, "score": 0.1})
    assert make_demo.drawn_output(Output({"tracks": tracks}), ["a", "b"]) == ({4: [RLE, None]}, {4: "4 b 0.90"})
    prompted = Output({"objects": {"7": [None, RLE]}})
    assert make_demo.drawn_output(prompted, ["a", "b"]) == ({7: [None, RLE]}, {7: "7"})


@pytest.mark.parametrize("scored", [False, True])
def test_the_curve(tmp_path: Path, scored: bool) -> None:
    losses = [f"loss_{rows}_{kind}" for rows in ("trk", "det") for kind in ("dice", "mask", "ce")]
    lines = [{"iteration": i, "stage": i // 50, **dict.fromkeys(losses, 4 / (i + 1))} for i in range(0, 100, 20)]
    if scored:
        scores = {"synthvis_val/segm/AP": 51.0, "synthvis_val_vos/vos/J&F": 76.0}
        lines.append({"iteration": 99, **scores, "synthvis_val_vos/optical_flow/vos/J&F": 40.0})
    metrics = tmp_path / "metrics.json"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_demo.draw_curve(metrics, tmp_path / "curve.png")
    picture = cv2.imread(str(tmp_path / "curve.png"))
    red = (picture[..., 2] > 180) & (picture[..., 1] < 80)
    assert picture.shape[1] > 800 and (red.sum() > 30) == scored


@pytest.mark.parametrize("prompt", [None, "first.png"])
def test_a_users_video_is_passed_to_the_demo(monkeypatch: pytest.MonkeyPatch, prompt: str | None) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command: (called.append(command), SimpleNamespace(returncode=3))[1])
    assert make_demo.user_video("some/clip.mp4", prompt) == 3
    command = called[0]
    assert command[0] == sys.executable and Path(command[1]).name == "demo.py"
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert Path(options.pop("--config-file")).is_file()
    assert options.pop("--prompt-masks", None) == prompt
    assert options == {"--input": "some/clip.mp4", "--output": str(Path("output/video/clip"))}


def test_invalid_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_demo.py", "--prompt", "first.png"])
    with pytest.raises(UserError, match=r"--prompt \(PROMPT=\.\.\.\) needs --video"):
        make_demo.main()
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS: empty"):
        make_demo.embedded_videos(tiny_cfg(), 1)
