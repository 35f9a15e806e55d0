# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What the parts of the page refuse, besides what its requests reach (test_server.py)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra [app] is not installed")

from ausm_d2.app import plan as plans
from ausm_d2.app.clip import Clip
from ausm_d2.app.downloads import make_download
from ausm_d2.app.follower import Follower, Turns
from ausm_d2.app.library import Library
from ausm_d2.app.limits import Limits, Refused
from ausm_d2.app.plan import Plan, box, point
from ausm_d2.app.project import Project
from ausm_d2.app.records import Records
from ausm_d2.cli.main import main
from ausm_d2.errors import UserError
from ausm_d2.video.results import ResultFolder
from tests.video.clips import write_clip

SIZE = (50, 70)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return Clip(write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", 3), "a.mp4", max_frames=9)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(None, Turns(), tmp_path / "session", Limits())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: point(5, 60, 1, SIZE), "a click at 5, 60 is outside of the frame of 70x50 pixels"),
        (lambda: point(5, -1, 1, SIZE), "a click at 5, -1 is outside"),
        (lambda: point(5, 6, True, SIZE), r"label True, expected 1 \(on the object\) or 0 \(where it is not\)"),
        (lambda: point(5, 6, 7, SIZE), r"label 7, expected 1 \(on the object\) or 0 \(where it is not\)"),
        (lambda: box("1234", SIZE), "a box is left, top, right, bottom"),
        (lambda: box([5, 5, 6, 40], SIZE), "the box holds nothing of the frame"),
        (lambda: box([5, 5, 40, 6], SIZE), "the box holds nothing of the frame"),
    ],
)
def test_clicks_and_boxes_that_cannot_be_used(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_a_video_that_is_refused_goes_by_the_name_that_the_user_gave_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^'my\.mp4': 3 frames, at most 2 are taken \(--max-frames\)$"):
        Clip(write_clip(tmp_path / "a.mp4", 3), "my.mp4", max_frames=2)


def test_clicks_and_objects_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_PROMPTS", 2)
    monkeypatch.setattr(plans, "_OBJECTS", 2)
    plan, click = Plan(), point(5, 6, 1, SIZE)
    for object_id in (None, None, 1):
        plan.add(0, object_id, click)
    with pytest.raises(UserError, match="object 1 has 2 clicks in this frame already"):
        plan.add(0, 1, click)
    with pytest.raises(UserError, match="2 objects are followed already"):
        plan.add(0, None, click)
    for object_id in (0, 3):
        with pytest.raises(UserError, match=f"there is no object {object_id}"):
            plan.add(0, object_id, click)


def test_nothing_to_follow(clip: Clip, tmp_path: Path) -> None:
    follower = Follower(None, Turns(), clip, Plan(), Records(tmp_path / "records"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="nothing to follow yet"):
        next(follower.run(lambda: False))


class _Session:
    """Object 2 is not there any more."""

    def __init__(self) -> None:
        self.added: list[int] = []

    def add_all(self, given: dict[int, Any]) -> None:
        raise UserError("no object 2")

    def add(self, object_id: int, prompts: Any) -> None:
        if object_id == 2:
            raise UserError("no object 2")
        self.added.append(object_id)


def test_a_correction_of_an_object_that_is_gone_is_left_out_and_said(
    clip: Clip, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan()
    for _ in range(2):
        plan.add(1, None, point(5, 6, 1, SIZE))
    follower = Follower(None, Turns(), clip, plan, Records(tmp_path / "records"))  # type: ignore[arg-type]
    session = _Session()
    follower._give(session, 1)  # type: ignore[arg-type]
    assert session.added == [1] and caplog.messages == ["frame 1: a correction is left out: no object 2"]
    follower._editing = 1
    with pytest.raises(UserError, match="no object 2"):
        follower._give(session, 1)  # type: ignore[arg-type]


def _download(clip: Clip, folder: Path, frames: int, progress: Callable[[int], bool] = lambda _: True) -> Path:
    plan = Plan()
    plan.add(0, None, point(5, 6, 1, SIZE))
    return make_download("masks", folder / "made", clip, plan, Records(folder / "records"), frames, ["x"], progress)


def test_downloads_of_nothing_that_are_stopped_or_cannot_be_written(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="nothing was followed yet"):
        _download(clip, tmp_path, 0)
    with pytest.raises(UserError, match="stopped"):
        _download(clip, tmp_path, 3, lambda _: False)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    (tmp_path / "b").mkdir()
    monkeypatch.setattr(ResultFolder, "write", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        _download(clip, tmp_path / "b", 3)


def test_a_download_without_an_object_says_so(clip: Clip, tmp_path: Path) -> None:
    plan = Plan()
    plan.add(0, None, point(5, 6, 1, SIZE))
    with pytest.raises(UserError, match="no object is in sight in these frames"):
        make_download("cutouts", tmp_path / "m", clip, plan, Records(tmp_path / "r"), 3, ["x"], lambda _: True)


def test_videos_of_the_folder_that_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(bytes(2000))
    with pytest.raises(Refused, match=r"'a\.mp4' is not in the folder"):
        Library(Limits(), tmp_path).in_folder("a.mp4")
    with pytest.raises(Refused, match=r"'a\.mp4': .*at most .* are taken \(--max-mb\)"):
        Library(Limits(folder=tmp_path, max_bytes=1000), tmp_path).in_folder("a.mp4")


def test_an_upload_that_cannot_be_stored_says_why(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    with pytest.raises(UserError, match=r"'a\.mp4': cannot be stored: No such file or directory"):
        asyncio.run(Library(Limits(), tmp_path).upload("a.mp4", None, chunks(), tmp_path / "gone"))


def test_one_video_is_opened_at_a_time(project: Project) -> None:
    with (
        project.incoming(),
        pytest.raises(Refused, match="another video is being opened"),
        project.incoming(),
    ):
        pass


def test_a_session_without_a_video_and_one_that_has_ended(project: Project) -> None:
    with pytest.raises(Refused, match="no video is open"):
        project.check_frame(0)
    with pytest.raises(Refused, match="nothing to follow yet"):
        project.run()
    project.close()
    with pytest.raises(Refused, match="the session has ended"):
        project.run()


def test_frames_and_files_that_are_not_there(project: Project, clip: Clip, tmp_path: Path) -> None:
    project._clip = clip
    for frame in (-1, 3):
        with pytest.raises(UserError, match=f"frame {frame}: the video has frames 0 to 2"):
            project.check_frame(frame)
    made = {"number": 2, "name": "a.zip"}
    for state, path, number in ((None, tmp_path, 2), (made, None, 2), (made, tmp_path, 1)):
        project._download, project._download_file = state, path
        with pytest.raises(Refused, match="there is no such file any more"):
            project.downloaded(number)
    project._clip = None


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_the_command_names_a_package_that_is_missing(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ausm_d2 import cli

    class Gone:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "ausm_d2.cli.serving":
                raise ModuleNotFoundError(name=package)

    monkeypatch.delitem(sys.modules, "ausm_d2.cli.serving", raising=False)
    monkeypatch.delattr(cli, "serving", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Gone(), *sys.meta_path])
    with pytest.raises(UserError, match=rf"{package} is not installed; pip install 'ausm_d2\[app\]'"):
        main(["app"])
    assert not capsys.readouterr().out


@pytest.mark.parametrize("port", ["65536", "1" * 5000, "-1", "a"])
def test_a_port_that_is_none(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["app", "--port", port])
    assert "expected a whole number from 0 to 65535" in capsys.readouterr().err.replace("\n", " ")


def test_numbers_of_a_request_are_whole_numbers() -> None:
    from ausm_d2.app.server import _number

    for value in (1.5, "1", None, True):
        with pytest.raises(Refused, match=r"frame: .*, expected a whole number"):
            _number(json.loads(json.dumps({"frame": value})), "frame")
