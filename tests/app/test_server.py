# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra [app] is not installed")
from starlette.testclient import TestClient

from ausm_d2.app.limits import Limits
from ausm_d2.app.server import build_app
from ausm_d2.jobs.prompt_file import read_prompt_file
from ausm_d2.masks.rle import decode
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.video.results import OUTPUTS
from tests.app.conftest import FRAMES, until
from tests.video.clips import SIZE

HOME = "http://127.0.0.1:7860"


class Page:
    """A page with a session of its own."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.token = client.post("/sessions").json()["token"]

    def get(self, path: str) -> Any:
        return self.client.get(f"/s/{self.token}/{path}")

    def post(self, path: str, **body: Any) -> Any:
        return self.client.post(f"/s/{self.token}/{path}", json=body)

    def state(self) -> dict[str, Any]:
        return self.get("state").json()

    def open(self, name: str = "a.mp4") -> Any:
        return self.post("open", source="folder", name=name)

    def finished(self) -> dict[str, Any]:
        """The state once nothing runs any more."""
        return until(lambda: (state := self.state())["doing"] is None and state)

    def download(self, output: str) -> tuple[str, bytes]:
        assert self.post("download", output=output).status_code == 200
        made = self.finished()["download"]
        return made["name"], self.get(f"download/{made['number']}").content


@pytest.fixture
def serve(tiny_predictor: VideoPredictor, limits: Limits, tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    clients = []

    def make(**changes: Any) -> TestClient:
        scratch = tmp_path / f"scratch{len(clients)}"
        scratch.mkdir()
        app = build_app(tiny_predictor, replace(limits, **changes), scratch)
        clients.append(TestClient(app, base_url=HOME))
        clients[-1].__enter__()
        return clients[-1]

    yield make
    for client in clients:
        client.__exit__(None, None, None)
    assert not [path for path in tmp_path.glob("scratch*/*") if path.is_dir()]  # ended sessions leave no files


@pytest.fixture
def page(serve: Callable[..., TestClient]) -> Page:
    return Page(serve())


def error(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    return response.json()["error"]


def test_a_click_shows_a_mask_and_a_run_follows_it_to_the_end(page: Page) -> None:
    assert page.open().json()["video"] | {"fps": 0} == {
        "name": "a.mp4", "count": FRAMES, "fps": 0, "width": SIZE[1], "height": SIZE[0], "view": [SIZE[1], SIZE[0]],
    }  # fmt: skip
    assert error(page.post("run"), 409).startswith("nothing to follow yet")
    answer = page.post("click", frame=1, object=None, x=30, y=20, label=1).json()
    assert answer["object"] == 1
    [mask] = page.get("masks/1").json()
    assert mask["id"] == 1 and decode({"size": SIZE, "counts": mask["counts"]})[20, 30]
    assert page.state()["start"] == 1 and page.state()["done"] == 2
    assert page.post("run").status_code == 200
    state = page.finished()
    assert state["done"] == FRAMES and state["prompts"]["1"]["1"] == [{"points": [[30, 20]], "labels": [1]}]
    picture = cv2.imdecode(np.frombuffer(page.get("frames/3").content, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (*SIZE, 3)


def test_a_correction_is_shown_at_once_and_the_frames_behind_it_are_done_again(page: Page) -> None:
    page.open()
    page.post("box", frame=0, object=None, box=[10, 10, 40, 40])
    page.post("run")
    assert page.finished()["done"] == FRAMES
    before = page.get("masks/3").json()
    page.post("click", frame=3, object=1, x=60, y=45, label=1)
    assert page.state()["done"] == 4 and page.get("masks/3").json() != before
    refused = page.post("click", frame=2, object=None, x=1, y=1, label=0)
    assert refused.status_code == 400 and page.state()["done"] == 4  # what is refused makes nothing stale
    page.post("run")
    assert page.finished()["done"] == FRAMES
    page.post("undo", frame=3, object=1)
    assert page.state()["done"] == 4 and list(page.state()["prompts"]) == ["0"]
    page.post("click", frame=2, object=1, x=20, y=20, label=1)
    page.post("undo", frame=0, object=1)  # the first click of all: the video begins later
    state = page.state()
    assert (state["start"], state["done"]) == (2, 3) and page.get("masks/0").json() == []


def test_finding_everything_can_be_turned_off_again(page: Page) -> None:
    page.open()
    assert page.post("find", frame=2, on=True).status_code == 200
    assert page.state()["find"] and page.state()["start"] == 2
    page.post("run")
    assert page.finished()["done"] == FRAMES
    page.post("find", frame=0, on=False)
    assert page.state()["start"] is None and page.state()["objects"] == []


def test_names_are_kept_as_they_are_hidden_and_removed_objects_are_left_out(page: Page) -> None:
    page.open()
    for box in ([5, 5, 30, 30], [35, 20, 65, 45]):
        page.post("box", frame=0, object=None, box=box)
    assert page.post("object", object=1, name="<script>alert(1)</script>\u0000\n").status_code == 200
    assert page.state()["objects"][0]["name"] == "<script>alert(1)</script>"
    page.post("object", object=2, hidden=True)
    assert [each["hidden"] for each in page.state()["objects"]] == [False, True]
    page.post("run")
    page.finished()
    tracks = json.loads(page.download("tracks")[1])["tracks"]
    assert [(track["id"], track["class"]) for track in tracks] == [(1, "<script>alert(1)</script>")]
    page.post("object", object=1, removed=True)
    assert [each["id"] for each in page.state()["objects"]] == [2]
    assert {each["id"] for frame in range(FRAMES) for each in page.get(f"masks/{frame}").json()} == {2}
    assert error(page.post("object", object=1, name="a"), 404) == "there is no object 1"
    assert error(page.post("click", frame=0, object=1, x=9, y=9, label=1), 400) == "there is no object 1"
    page.post("click", frame=0, object=None, x=9, y=9, label=1)
    assert [each["id"] for each in page.state()["objects"]] == [2, 3]  # ids are not used twice


def test_every_output_can_be_downloaded(page: Page, tmp_path: Path) -> None:
    page.open()
    page.post("box", frame=1, object=None, box=[10, 10, 40, 40])
    page.post("run")
    page.finished()
    for output in OUTPUTS:
        name, data = page.download(output)
        assert data and name.startswith("a-")
        if name.endswith(".zip"):
            names = zipfile.ZipFile(BytesIO(data)).namelist()
            assert len(names) == (FRAMES if output == "masks" else len(names)) > 0
    name, data = page.download("prompts")
    (tmp_path / name).write_bytes(data)
    plan = read_prompt_file(tmp_path / name)
    assert list(plan.prompts) == [1] and list(plan.prompts[1]) == [1]


def test_paths_outside_of_the_folder_do_not_exist(page: Page) -> None:
    listed = page.get("videos").json()
    assert listed["folder"] == ["a.mp4", "empty.mp4", "playlist.mp4", "text.mp4", "below/one.mp4"]
    outside = ["../../etc/passwd", "/etc/passwd", "below/../../a.mp4", "link.mp4", ".hidden.mp4", "~/a.mp4"]
    for name in [*outside, "", "a\0.mp4", "below", "x" * 5000, "nothing.mp4"]:
        assert "is not in the folder" in error(page.open(name), 404)
    assert "is no clip" in error(page.post("open", source="clip", name="../a.mp4"), 404).replace("there is no", "is no")
    for path in ("../setup.py", "%2e%2e/setup.py", "page/../server.py", "app.py"):
        assert page.client.get(f"/{path}").status_code == 404
    assert page.open("below/one.mp4").status_code == 200


def test_files_that_are_no_videos_are_refused(page: Page) -> None:
    assert "not a video" in error(page.open("notes.txt"), 415)
    for name in ("text.mp4", "empty.mp4", "playlist.mp4"):
        message = error(page.open(name), 415)
        assert message.startswith(f"'{name}': ") and str(page.client) not in message and "/" not in message
    assert page.state()["video"] is None


def test_uploads_are_checked_by_size_name_and_content(page: Page, videos: Path) -> None:
    def send(name: str, data: Any, **headers: str) -> Any:
        return page.client.post(f"/s/{page.token}/upload", params={"name": name}, content=data, headers=headers)

    good = (videos / "a.mp4").read_bytes()
    assert send("../../x.mp4", good).json()["video"]["name"] == "x.mp4"
    assert "not a video" in error(send("a.exe", good), 415)
    assert "an empty file" in error(send("a.mp4", b""), 415)
    assert "no video" in error(send("a.mp4", b"text" * 100), 415)
    assert "at most 1 MB" in error(send("a.mp4", b"0", **{"content-length": str(4 << 30)}), 413)
    assert "at most 1 MB" in error(send("a.mp4", iter([bytes(1 << 19)] * 4)), 413)
    assert page.state()["video"]["name"] == "x.mp4"  # what was open stays open
    assert page.post("box", frame=0, object=None, box=[10, 10, 40, 40]).status_code == 200


def test_a_video_of_one_frame_and_one_of_too_many(page: Page, serve: Callable[..., TestClient]) -> None:
    page.open("below/one.mp4")
    page.post("box", frame=0, object=None, box=[10, 10, 40, 40])
    assert page.state()["done"] == 1
    assert page.download("overlay")[0] == "one-overlay.mp4"
    assert "6 frames, at most 5" in error(Page(serve(max_frames=5)).open(), 415)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("click", {"frame": 0, "x": 500, "y": 2}, "outside of the frame of 70x50"),
        ("click", {"frame": 0, "x": -1, "y": 2}, "outside of the frame"),
        ("click", {"frame": 0, "x": "a", "y": 2}, "expected numbers"),
        ("click", {"frame": 0, "x": 1, "y": 2, "label": 7}, "label 7, expected 1"),
        ("click", {"frame": 0, "x": 1, "y": 2, "label": 0}, "nothing was given that is on the object"),
        ("click", {"frame": 99, "x": 1, "y": 2}, "frames 0 to 5"),
        ("click", {"frame": True, "x": 1, "y": 2}, "expected a whole number"),
        ("click", {"frame": 0, "x": 1, "y": 2, "object": 4}, "no object 4"),
        ("box", {"frame": 0, "box": [80, 60, 90, 70]}, "holds nothing of the frame"),
        ("box", {"frame": 0, "box": [1, 2]}, "left, top, right, bottom"),
        ("box", {"frame": 0, "box": [1, 2, 3, None]}, "expected numbers"),
        ("box", {"frame": 99, "box": [1, 2, 30, 40]}, "frames 0 to 5"),
        ("undo", {"frame": 0, "object": 1}, "no click on object 1"),
        ("undo", {"frame": 99, "object": 1}, "frame 99: the video has frames 0 to 5"),
        ("find", {"frame": 99, "on": True}, "frames 0 to 5"),
        ("object", {"object": 3, "hidden": True}, "no object 3"),
        ("object", {"object": 3, "removed": True}, "no object 3"),
        ("find", {"frame": 0, "on": "yes"}, "expected true or false"),
        ("object", {"object": 3, "name": "a"}, "no object 3"),
        ("download", {"output": "gif"}, "no output 'gif'"),
        ("open", {"source": "folder"}, "expected text"),
    ],
)
def test_what_cannot_be_used_changes_nothing(page: Page, path: str, body: dict[str, Any], message: str) -> None:
    page.open()
    before = page.state()
    response = page.post(path, **body)
    assert 400 <= response.status_code < 500 and message in response.json()["error"]
    assert page.state() == before


def test_requests_that_are_no_json_or_come_before_a_video(page: Page) -> None:
    for data in (b"[1]", b"{", b"\xff", b"[" * 100_000):
        response = page.client.post(f"/s/{page.token}/click", content=data)
        assert "JSON object" in error(response, 400)
    assert "too large" in error(page.client.post(f"/s/{page.token}/click", content=b" " * (2 << 20)), 413)
    assert error(page.get("frames/0"), 409) == "no video is open"
    assert error(page.post("click", frame=0, x=1, y=1), 409) == "no video is open"
    page.open()
    assert error(page.get("frames/6"), 400) == "frame 6: the video has frames 0 to 5"
    assert page.get("frames/x").status_code == 404


def test_sessions_do_not_see_each_other_and_their_tokens_cannot_be_guessed(page: Page) -> None:
    other = Page(page.client)
    assert page.token != other.token and min(len(page.token), len(other.token)) >= 40
    page.open()
    assert other.state()["video"] is None
    for token in ("", "x", page.token[:-1], page.token.swapcase()):
        assert page.client.get(f"/s/{token}/state").status_code == 404
    number = (page.post("box", frame=0, object=None, box=[10, 10, 40, 40]), page.download("mot"))[1]
    assert number and other.get(f"download/{page.state()['download']['number']}").status_code == 404


def test_there_are_only_so_many_sessions_and_idle_ones_go(serve: Callable[..., TestClient]) -> None:
    client = serve()
    pages = [Page(client) for _ in range(3)]  # nobody listens to the first: it makes room
    assert [each.get("state").status_code for each in pages] == [404, 200, 200]
    sessions = client.app.state.sessions
    for each in pages[1:]:
        sessions.get(each.token).events._listeners.append((None, None))
    assert "2 sessions are in use" in error(client.post("/sessions"), 503)
    for each in pages[1:]:
        sessions.get(each.token).events._listeners.clear()
        sessions.get(each.token).used -= 1000
    sessions.sweep()
    assert error(pages[2].get("state"), 404) == "the session has ended"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:7860"},
        {"host": "192.168.0.7:7860"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_pages_of_other_sites_are_refused(page: Page, headers: dict[str, str]) -> None:
    assert page.client.post("/sessions", headers=headers).status_code == 403
    assert page.client.get(f"/s/{page.token}/state", headers=headers).status_code == 403


def test_the_page_loads_nothing_from_elsewhere(page: Page) -> None:
    for host in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860"):
        found = page.client.get("/", headers={"host": host, "origin": f"http://{host}"})
        assert found.status_code == 200
    assert "script-src 'self'" in found.headers["content-security-policy"]
    assert found.headers["referrer-policy"] == "no-referrer"
    for name in ("app.js", "app.css", "picture.js", "icon.svg"):
        text = page.client.get(f"/{name}").text.replace("http://www.w3.org/2000/svg", "")
        assert "//" in text or name.endswith(("svg", "css"))
        assert "http://" not in text and "https://" not in text and "innerHTML" not in text
    assert "<script>" not in found.text and "http" not in found.text.replace("https://", "http")


def test_where_a_key_is_asked_for_no_session_begins_without_it(
    tiny_predictor: VideoPredictor, limits: Limits, tmp_path: Path
) -> None:
    app = build_app(tiny_predictor, limits, tmp_path, host="0.0.0.0", key="secret")
    with TestClient(app, base_url="http://192.168.0.7:7860") as client:  # any address of the machine is its name
        for key in ({}, {"key": None}, {"key": "secre"}, {"key": ["secret"]}, {"key": "sécret"}):
            assert "the address that ausm app has printed" in error(client.post("/sessions", json=key), 403)
        assert client.post("/sessions", json={"key": "secret"}).status_code == 200
        assert client.post("/sessions", json={"key": "secret"}, headers={"host": "evil.example"}).status_code == 403


def test_the_drawn_clip_is_always_there(page: Page) -> None:
    clips = page.get("videos").json()["clips"]
    assert clips[-1] == "drawn shapes.mp4"
    assert page.post("open", source="clip", name=clips[-1]).json()["video"]["count"] == 48
