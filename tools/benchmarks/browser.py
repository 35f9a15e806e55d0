# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The page of `ausm app` in a headless Chromium: time from the press of the mouse to the painted mask."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ausm_d2.errors import UserError

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE = 120_000  # milliseconds
# `pressed` is the time stamp of the event. A callback of requestAnimationFrame runs before the next picture is painted:
# the second one after the masks were drawn runs when they are on the screen.
_WATCH = """() => {
  window.painted = [];
  let pressed = 0;
  document.addEventListener("pointerdown", (event) => { pressed = event.timeStamp; }, true);
  new MutationObserver(() => requestAnimationFrame(() => requestAnimationFrame((now) => {
    const asked = performance.getEntriesByType("resource").filter((each) => each.startTime >= pressed);
    const click = asked.find((each) => each.name.endsWith("/click"));
    window.painted.push([(now - pressed) / 1000, click.duration / 1000]);
  }))).observe(document.body, { attributes: true, attributeFilter: ["data-latency"] });
}"""


def chromium() -> str | None:
    """Path of an installed Chromium or Chrome; None: there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


def clicks(video: Path, config: str, places: list[tuple[float, float]], repeats: int) -> dict[str, list[list[float]]]:
    """Click on an object, again and again, each time in a new session of a server of its own process.

    Args:
        video: a file.
        config: of `ausm app`.
        places: x, y of the clicks, in shares of width and height.
        repeats: sessions.

    Returns:
        By what was clicked: seconds from the press to the painted mask, and seconds of the request that holds the
        model's work.

    Raises:
        UserError: Playwright or Chromium is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("playwright is not installed; pip install 'ausm_d2[dev]'") from None
    path = chromium()
    if path is None:
        raise UserError(f"none of {', '.join(_NAMES)} is installed")
    found: dict[str, list[list[float]]] = {"first after the start": [], "first in a frame": [], "more in a frame": []}
    with _server(video.parent, config) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for repeat in range(repeats + 1):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(_PATIENCE)
            page.goto(address)
            page.locator("#folder").get_by_role("button", name=video.name, exact=True).click()
            page.locator("#picture[data-frame='0']").wait_for()
            page.evaluate(_WATCH)
            times = [_click(page, place, number) for number, place in enumerate(places, 1)]
            found["first in a frame" if repeat else "first after the start"].append(times[0])
            found["more in a frame"] += times[1:] if repeat else []
            page.close()
        browser.close()
    return found


def _click(page: Any, place: tuple[float, float], number: int) -> list[float]:
    box = page.locator("#picture").bounding_box()
    page.mouse.click(box["x"] + place[0] * box["width"], box["y"] + place[1] * box["height"])
    page.wait_for_function("(number) => window.painted.length === number", arg=number)
    times: list[float] = page.evaluate("window.painted.at(-1)")
    return times


@contextmanager
def _server(folder: Path, config: str) -> Iterator[str]:
    """`ausm app` in a process of its own; its address."""
    command = [sys.executable, "-m", "ausm_d2.cli.main", "app", "--folder", str(folder), "--port", "0"]
    with subprocess.Popen(
        [*command, "--config", config], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout is not None
        address = next((each[0] for line in process.stdout if (each := re.search(r"http://\S+", line))), None)
        if address is None:
            raise UserError(f"ausm app ended with exit code {process.wait()}")
        try:
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
