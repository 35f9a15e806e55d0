# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, from an upload to a download."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra [app] is not installed")
pytest.importorskip("playwright", reason="Playwright is not installed")
from playwright.sync_api import Page, expect, sync_playwright

from ausm_d2.app.limits import Limits
from ausm_d2.app.serve import listen, serve
from ausm_d2.app.server import build_app
from ausm_d2.streaming.predictor import VideoPredictor
from tests.app.conftest import FRAMES
from tools.benchmarks.browser import chromium

expect.set_options(timeout=30_000)  # milliseconds; a busy machine needs more than the 5 seconds of the default
CHROMIUM = chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)")


@pytest.fixture
def address(tiny_predictor: VideoPredictor, limits: Limits, tmp_path: Path) -> Iterator[str]:
    """Of a server that answers."""
    end = threading.Event()
    with listen("127.0.0.1", 0) as sock:
        app = build_app(tiny_predictor, limits, tmp_path)
        thread = threading.Thread(target=serve, args=(app, sock, end.is_set, app.state.sessions.close))
        thread.start()
        home = f"http://127.0.0.1:{sock.getsockname()[1]}/"
        # What uvicorn imports in its thread creates loggers. Between a fixture and its test, pytest iterates over all
        # loggers, without a lock: one created meanwhile is a RuntimeError. All exist once the server answers.
        urllib.request.urlopen(home, timeout=60).close()
        yield home
        end.set()
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        made = browser.new_page(viewport={"width": 390, "height": 844})
        made.set_default_timeout(30_000)
        errors: list[Any] = []
        made.on("pageerror", lambda error: errors.append(error))
        made.on("dialog", lambda dialog: errors.append(dialog.message))
        made.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        yield made
        browser.close()
    assert errors == []


def looks(page: Page) -> np.ndarray:
    """The picture as it is on the screen, BGR."""
    return cv2.imdecode(np.frombuffer(page.locator("#picture").screenshot(), np.uint8), cv2.IMREAD_COLOR)


SMALL = """() => [...document.querySelectorAll("button, select, input[type=text], canvas, a")].filter((each) => {
  const { left, right, width, height } = each.getBoundingClientRect();
  return each.checkVisibility() && (width < 40 || height < 40 || left < 0 || right > innerWidth);
}).map((each) => each.outerHTML)"""


def message(page: Page) -> str:
    """The message that is shown, after a check that nothing lies above it and that its colour is not dimmed."""
    toast = page.locator("#toast")
    expect(toast).to_be_visible()
    box = toast.bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 844
    for part in (0.05, 0.5, 0.95):
        place = [box["x"] + part * box["width"], box["y"] + box["height"] / 2]
        assert page.evaluate("([x, y]) => document.elementFromPoint(x, y).id", place) == "toast"
    shown = cv2.imdecode(np.frombuffer(toast.screenshot(), np.uint8), cv2.IMREAD_COLOR)[4, 12, ::-1]  # beside the text
    colour = toast.evaluate("(each) => getComputedStyle(each).backgroundColor")
    assert colour == f"rgb({shown[0]}, {shown[1]}, {shown[2]})"
    return toast.inner_text()


def test_upload_click_run_correct_rename_and_download(page: Page, address: str, videos: Path, tmp_path: Path) -> None:
    page.goto(address)
    expect(page.locator("#limit")).to_contain_text("1 MB")
    page.set_input_files("#file", {"name": "large.mp4", "mimeType": "video/mp4", "buffer": bytes(2 << 20)})
    assert "'large.mp4' has 2 MB, at most 1 MB" in message(page)
    assert page.evaluate(SMALL) == []
    page.set_input_files("#file", videos / "a.mp4")
    expect(page.locator("#place")).to_contain_text(f"0 / {FRAMES - 1}")
    expect(page.locator("#run")).to_be_disabled()
    picture = page.locator("#picture")
    expect(picture).to_be_visible()
    box = picture.bounding_box()
    assert box is not None and box["width"] > 350  # on a phone too
    expect(page.locator("#toast")).to_be_hidden()
    page.get_by_role("radio", name="Take away").click()
    picture.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    page.get_by_role("button", name="Help").click()
    assert "Choose an object first" in message(page)  # a dialog that opens later does not hide it
    page.get_by_role("button", name="Close").click()
    assert "Choose an object first" in message(page)
    page.locator("#toast").click()
    expect(page.locator("#toast")).to_be_hidden()
    page.get_by_role("radio", name="Add").click()
    before = looks(page)
    picture.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    expect(page.locator("#objects li")).to_have_count(1)
    page.locator("body[data-latency]").wait_for()
    after = looks(page)
    assert np.abs(after.astype(int) - before).max() > 40  # the mask and the click are there

    page.get_by_role("button", name="Run").click()
    expect(page.locator("#progress")).to_have_text("done")

    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#place")).to_contain_text(f"3 / {FRAMES - 1}")
    page.locator("#picture[data-frame='3']").wait_for()  # clicks are on the frame that is shown
    picture.click(position={"x": box["width"] / 4, "y": box["height"] / 3})
    expect(page.locator("#progress")).to_have_text(f"4 of {FRAMES}")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#progress")).to_have_text("done")

    name = page.get_by_label("Name of object 1")
    name.fill("<script>alert(1)</script>")
    with page.expect_response("**/object"):
        name.press("Enter")
    page.reload()
    expect(name).to_have_value("<script>alert(1)</script>")

    expect(page.locator("#picture[data-frame='0']")).to_be_visible()
    assert page.evaluate(SMALL) == []
    page.get_by_label("What to download").select_option("tracks")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "tracks.json")
    [track] = json.loads((tmp_path / "tracks.json").read_text())["tracks"]
    assert track["class"] == "<script>alert(1)</script>" and track["frames"][0] == 0
    expect(page.locator("#saving a")).to_be_visible()
    assert page.evaluate(SMALL) == []

    remove = page.get_by_label("Remove object 1")
    remove.click()
    expect(remove).to_have_text("Remove?")
    name.click()  # anything else: it stays
    expect(remove).not_to_have_text("Remove?")
    remove.click()
    remove.click()
    expect(page.locator("#objects li")).to_have_count(0)
    page.goto("about:blank")  # before the server ends: what the page asks for then would fail
