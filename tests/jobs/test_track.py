# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ausm_d2.config import load_config
from ausm_d2.errors import UserError
from ausm_d2.jobs import track as module
from ausm_d2.jobs.folder import find_videos, track_all
from ausm_d2.jobs.track import Request, Summary, track
from ausm_d2.stopping import StopRequest
from ausm_d2.streaming.ahead import EncodedFrame
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.session import Session
from ausm_d2.video import files
from ausm_d2.video.frame import Source
from ausm_d2.video.inputs import open_source
from ausm_d2.video.results import Earlier, ResultFolder
from tests.video.clips import SIZE, damaged, half, pictures, write_clip, write_folder
from tests.video.rtsp_server import RtspServer


@pytest.fixture(scope="module")
def predictor(config: Path) -> VideoPredictor:
    return VideoPredictor(load_config(str(config)))


def run(predictor: VideoPredictor, source: Any, output: Path, **more: Any) -> Summary:
    return track(lambda: predictor, Request(source, output, **more))


def tracks(output: Path) -> dict[str, Any]:
    return json.loads((output / "tracks.json").read_text())


def after(frames: int, action: Any) -> Any:
    """A progress callback."""
    return lambda done, total: action() if done == frames else None


def test_frames_are_read_while_they_are_needed_and_never_far_ahead(predictor: VideoPredictor, tmp_path: Path) -> None:
    read, written = [], []

    def frames() -> Iterator[np.ndarray]:
        for i, picture in enumerate(pictures(12)):
            read.append(i)
            assert len(read) - len(written) <= 8
            yield picture

    request = Request(frames(), tmp_path / "out")
    summary = track(lambda: predictor, request, progress=lambda done, total: written.append(done))
    assert written == list(range(1, 13)) and summary.frames == 12 and summary.complete


def test_a_resumed_video_equals_an_uninterrupted_one(predictor: VideoPredictor, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 9)
    run(predictor, clip, tmp_path / "whole")
    with StopRequest() as stop:
        request = Request(clip, tmp_path / "out")
        stopped = track(lambda: predictor, request, progress=after(4, stop.request), stopped=stop)
    assert not stopped.complete and stopped.frames == 4 and str(stopped).startswith("stopped after 4 frames")
    assert tracks(tmp_path / "out")["complete"] is False
    resumed = run(predictor, clip, tmp_path / "out", resume=True)
    assert resumed.complete and (resumed.frames, resumed.new) == (9, 5)
    assert tracks(tmp_path / "out") == tracks(tmp_path / "whole")
    again = run(predictor, clip, tmp_path / "out", resume=True)
    assert again.complete and (again.frames, again.new, again.objects) == (9, 0, resumed.objects)


def test_ctrl_c_and_sigterm_stop_a_run_cleanly(predictor: VideoPredictor, tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        with StopRequest() as stop:
            request = Request(write_clip(tmp_path / f"{number}.mp4", 6), tmp_path / str(number))
            kill = after(2, lambda number=number: os.kill(os.getpid(), number))
            summary = track(lambda: predictor, request, progress=kill, stopped=stop)
        assert stop.signal == number and summary.frames == 2 and not summary.complete
        assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_after_a_bad_frame_the_results_of_earlier_frames_are_complete(
    predictor: VideoPredictor, tmp_path: Path
) -> None:
    clip = damaged(write_clip(tmp_path / "a.mp4", 20, noise=True))
    with pytest.raises(UserError, match=r"cannot be decoded after frame \d+.*; the \d+ frames before are in '.*out'"):
        run(predictor, clip, tmp_path / "out")
    data = tracks(tmp_path / "out")
    assert data["complete"] is False and 0 < len(data["video"]["times"]) < 20
    earlier = ResultFolder(tmp_path / "out").earlier()
    assert earlier is not None and earlier.frames == len(data["video"]["times"])


def test_when_a_network_camera_is_lost_the_results_of_the_frames_before_are_complete(
    predictor: VideoPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_SILENCE", 0.7)
    shown = [picture[:48, :64] for picture in pictures(12)]
    with RtspServer(shown, 25, at_end="reset") as server:
        summary = run(predictor, server.address, tmp_path / "gone", save=["overlay"])
    lost = pytest.raises(UserError, match=r"nothing came for .*; the \d+ frames before are in '.*silent'$")
    with RtspServer(shown, 25, at_end="silence") as server, lost:
        run(predictor, server.address, tmp_path / "silent", save=["overlay"])
    assert summary.complete and tracks(tmp_path / "gone")["complete"] and not tracks(tmp_path / "silent")["complete"]
    for name in ("gone", "silent"):
        times = tracks(tmp_path / name)["video"]["times"]
        assert times and times == sorted(times), "of the frames that the model had time for"
        assert len(list(open_source(tmp_path / name / "overlay.mp4"))) >= len(times)


def test_after_a_full_disk_the_results_of_earlier_frames_are_complete(
    predictor: VideoPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "a.mp4", 6)
    write = ResultFolder.write

    def full(folder: ResultFolder, frame: Any) -> None:
        if frame.index == 3:
            raise OSError(28, "No space left on device")
        write(folder, frame)

    with monkeypatch.context() as patch:
        patch.setattr(ResultFolder, "write", full)
        with pytest.raises(UserError, match=r"out' cannot be written: No space left on device; the 3 frames before"):
            run(predictor, clip, tmp_path / "out")
    assert len(tracks(tmp_path / "out")["video"]["times"]) == 3
    assert run(predictor, clip, tmp_path / "out", resume=True).frames == 6  # begun anew: no state was saved behind it


def test_resume_refuses_results_of_other_settings(predictor: VideoPredictor, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 4)
    run(predictor, clip, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds results of another run"):
        run(predictor, clip, tmp_path / "out", save=["mot"], resume=True)
    with pytest.raises(UserError, match=r"holds results of another run"):  # it would be taken for complete
        run(predictor, clip, tmp_path / "out", frames=2, resume=True)
    run(predictor, clip, tmp_path / "out", save=["mot"])
    assert not (tmp_path / "out" / "overlay.mp4").exists()  # of the run before


def test_a_refused_request_leaves_the_output_folder_unchanged(predictor: VideoPredictor, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 3)
    with pytest.raises(UserError, match="does not exist"):
        run(predictor, tmp_path / "none.mp4", tmp_path / "new" / "out")
    with pytest.raises(UserError, match="frames: 0, expected 1 or more"):
        run(predictor, clip, tmp_path / "new" / "out", frames=0)
    with pytest.raises(UserError, match="the prompts: object 65535; ids up to 65534 fit into pictures of masks"):
        run(predictor, clip, tmp_path / "new" / "out", prompts={0: {65535: np.ones(SIZE, bool)}}, save=["masks"])
    assert [each.name for each in tmp_path.iterdir()] == ["a.mp4"]
    run(predictor, clip, tmp_path / "out")
    before = (tmp_path / "out" / "tracks.json").read_bytes()
    with pytest.raises(UserError, match="object 1"):
        run(predictor, clip, tmp_path / "out", prompts={0: {1: np.zeros(SIZE, bool)}})
    assert (tmp_path / "out" / "tracks.json").read_bytes() == before
    assert not (tmp_path / "out" / ".progress").exists()


def test_frames_that_do_not_come_or_cannot_be_given_an_object(
    predictor: VideoPredictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="no frame can be decoded"):
        run(predictor, iter(()), tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    mask = np.zeros(SIZE, bool)
    mask[4:20, 4:20] = True
    run(predictor, iter(pictures(2)), tmp_path / "a", prompts={0: {1: mask}, 9: {2: mask}})
    assert "the prompts: given at frame 9, which did not come" in caplog.text
    with pytest.raises(UserError, match=r": frame '0*1': .*object 2"):
        run(predictor, iter(pictures(2)), tmp_path / "b", prompts={0: {1: mask}, 1: {2: np.zeros(SIZE, bool)}})


def test_what_cannot_be_read_again_is_not_resumed(tmp_path: Path) -> None:
    camera = Source("camera 0", iter(()), None, Fraction(25))
    request = Request(None, tmp_path / "out", resume=True)
    with pytest.raises(UserError, match="camera 0: cannot be read again from the beginning, so --resume cannot"):
        module._require_same(Earlier("x", complete=False, frames=3), "x", {}, request, camera)


class FakeCamera:
    """Yields frames endlessly."""

    def __init__(self, number: int) -> None:
        self.released = False

    def isOpened(self) -> bool:
        return True

    def get(self, key: int) -> float:
        return float("nan")

    def read(self) -> tuple[bool, np.ndarray]:
        return True, pictures(1)[0]

    def release(self) -> None:
        self.released = True


def test_a_camera_runs_until_it_is_stopped(
    predictor: VideoPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    with StopRequest() as stop:
        request = Request("0", tmp_path / "out")
        summary = track(lambda: predictor, request, progress=after(3, stop.request), stopped=stop)
    assert summary.complete and summary.frames == 3
    data = tracks(tmp_path / "out")
    assert data["video"]["name"] == "camera 0" and data["video"]["fps"] == 24.0
    assert "camera 0: " in caplog.text and " frames that came while the model worked were left out" in caplog.text


def test_frames_of_a_file_are_encoded_ahead_where_a_core_is_free_with_the_same_result(
    predictor: VideoPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, step = write_clip(tmp_path / "a.mp4", 6), Session.step
    seen: list[bool] = []
    monkeypatch.setattr(
        Session, "step", lambda self, frame: seen.append(isinstance(frame, EncodedFrame)) or step(self, frame)
    )
    for cores in (1, 2):
        monkeypatch.setattr("ausm_d2.jobs.encoded.available_cores", lambda cores=cores: cores)
        run(predictor, clip, tmp_path / str(cores))
    assert seen == [False] * 5 + [True] * 5
    assert tracks(tmp_path / "1") == tracks(tmp_path / "2")


def test_the_state_is_saved_during_a_run(
    predictor: VideoPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHECKPOINT", 0.0)
    seen = []
    look = lambda done, total: seen.append([*(tmp_path / "out" / ".progress").glob("session-*.pth")])  # noqa: E731
    track(lambda: predictor, Request(write_clip(tmp_path / "a.mp4", 5), tmp_path / "out"), progress=look)
    assert [len(each) for each in seen] == [0, 1, 1, 1, 1]


# --------------------------------------------------------------------------------------------------------- many videos


def many(folder: Path) -> Path:
    write_folder(folder / "frames", ["1.png", "2.png", "10.png"])
    write_clip(folder / "b.mp4", 3)
    write_clip(folder / "a.mp4", 3)
    (folder / "sub").mkdir()
    write_clip(folder / "sub" / "a.mp4", 2)
    half(write_clip(folder / "bad.mkv", 100, fps=10, noise=True))
    (folder / "notes.txt").touch()
    return folder


def test_every_video_of_a_folder_is_found_by_name(tmp_path: Path) -> None:
    folder = many(tmp_path / "in")
    found = find_videos(str(folder), folder / "out")
    assert found is not None and list(found) == ["a.mp4", "b.mp4", "bad.mkv", "frames", "sub/a.mp4"]
    write_clip(folder / "sub" / "out.mp4", 2).rename(folder / "sub" / "x.mp4")
    assert find_videos(str(folder / "frames"), tmp_path / "out") is None
    assert find_videos(str(folder / "b.mp4"), tmp_path / "out") is None
    assert list(find_videos(f"{folder}/*.mp4", tmp_path / "out") or {}) == ["a.mp4", "b.mp4"]
    cv2.imwrite(str(folder / "x.png"), pictures(1)[0])
    with pytest.raises(UserError, match="holds pictures and videos side by side"):
        find_videos(str(folder), tmp_path / "out")


def test_a_bad_file_does_not_stop_the_others_and_each_video_is_done_once(config: Path, tmp_path: Path) -> None:
    folder = many(tmp_path / "in")
    cfg, asked = load_config(str(config)), Request("", tmp_path / "out", save=["masks"])
    videos = find_videos(str(folder), asked.output)
    assert videos is not None
    report = track_all(cfg, videos, asked)
    assert (report.count("done"), report.count("failed")) == (4, 1)
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["status"] for row in data["videos"]] == ["done", "done", "failed", "done", "done"]
    assert "cut off" in data["videos"][2]["error"] and data["videos"][3]["frames"] == 3
    assert "| bad.mkv" in (tmp_path / "out" / "report.md").read_text()
    written = (tmp_path / "out" / "sub" / "a.mp4" / "tracks.json").stat().st_mtime_ns
    again = track_all(cfg, videos, replace(asked))
    assert again.count("done") == 4 and again.rows["sub/a.mp4"].frames == 2
    assert (tmp_path / "out" / "sub" / "a.mp4" / "tracks.json").stat().st_mtime_ns == written


def test_if_a_worker_dies_only_its_video_fails(
    new_processes: ForkServerContext, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: new_processes)
    lengths = {"0.mp4": 2, "1.mp4": 200, "2.mp4": 2}
    (tmp_path / "in").mkdir()
    videos = {name: write_clip(tmp_path / "in" / name, frames) for name, frames in lengths.items()}
    others = set(multiprocessing.active_children())

    def kill(done: int, total: int | None) -> None:
        """After the first row: one process is idle, the other has begun the long video."""
        for process in set(multiprocessing.active_children()) - others if done == 1 else ():
            process.kill()
            process.join()

    asked = Request("", tmp_path / "out", save=["masks"])
    report = track_all(load_config(str(config)), videos, asked, workers=2, progress=kill)
    assert [report.rows[name].status for name in videos] == ["done", "failed", "done"]
    assert "its process ended with exit code -9" in report.rows["1.mp4"].error
    for name in ("0.mp4", "2.mp4"):
        assert len(tracks(tmp_path / "out" / name)["video"]["times"]) == 2
