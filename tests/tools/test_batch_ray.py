# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A local Ray with actors that are killed. The work is a stand-in that writes a file: no actor loads a model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ausm_d2.errors import UserError
from ausm_d2.jobs.report import Row
from ausm_d2.jobs.store import MARKER
from tools.batch_ray import start_ray, track_on_ray, videos_below


class StandIn:
    """``b`` kills its actor the first time, ``c`` is a bad file, ``z`` takes long the first time; every call leaves a
    trace."""

    def __init__(self, traces: Path) -> None:
        self._traces = traces

    def __call__(self) -> Callable[[str, str, Path], Row]:
        def work(name: str, path: str, folder: Path) -> Row:
            number = sum(trace.name.startswith(name) for trace in self._traces.iterdir())
            (self._traces / f"{name}{number}").touch()
            folder.mkdir(parents=True)
            (folder / "tracks.json").write_text(path)
            if name == "b" and number == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "z" and number == 0:
                time.sleep(60)
            return Row(name, "failed", error="bad") if name == "c" else Row(name, "done", 3, 1)

        return work


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'ausm_d2[ray]'")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    start_ray(None, cpus=2)
    yield
    ray.shutdown()


def test_every_video_has_one_result_whatever_is_killed(local_ray: None, tmp_path: Path) -> None:
    traces, out = tmp_path / "traces", tmp_path / "out"
    traces.mkdir()
    videos = {name: f"/videos/{name}" for name in "abc"}
    report = track_on_ray(videos, str(out), StandIn(traces), workers=1, cpus=1, gpus=0, retries=1)
    status = {name: row.status for name, row in report.rows.items()}
    assert status == {"a": "done", "b": "done", "c": "failed"} and report.rows["c"].error == "bad"
    written = json.loads((out / "report.json").read_text())
    assert (written["done"], written["failed"], written["waiting"]) == (2, 1, 0)
    assert sorted(path.parent.name for path in out.rglob(MARKER)) == ["a", "b"]
    assert (out / "b" / "tracks.json").read_text() == "/videos/b"
    assert sorted(path.name for path in traces.iterdir()) == ["a0", "b0", "b1", "c0"]
    done = {name: videos[name] for name in "ab"}
    track_on_ray(done, str(out), StandIn(traces), workers=1, cpus=1, gpus=0, retries=1)
    assert len(list(traces.iterdir())) == 4  # nothing is done twice


def test_after_a_killed_driver_the_same_command_does_what_is_left(local_ray: None, tmp_path: Path) -> None:
    import ray

    traces, out = tmp_path / "traces", tmp_path / "out"
    traces.mkdir()
    videos = {name: f"/videos/{name}" for name in "ayz"}
    code = "import sys\nfrom pathlib import Path\nfrom tests.tools.test_batch_ray import StandIn\n"
    code += "from tools.batch_ray import start_ray, track_on_ray\nstart_ray(sys.argv[1])\n"
    code += f"track_on_ray({videos}, sys.argv[2], StandIn(Path(sys.argv[3])), workers=1, cpus=1, gpus=0, retries=1)"
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen([sys.executable, "-c", code, address, str(out), str(traces)])
    try:
        end = time.monotonic() + 300
        while not (traces / "z0").exists() and driver.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    assert sorted(path.parent.name for path in out.rglob(MARKER)) == ["a", "y"], "z was at work"
    before = {name: (out / name / MARKER).stat().st_mtime_ns for name in "ay"}
    report = track_on_ray(videos, str(out), StandIn(traces), workers=1, cpus=1, gpus=0, retries=1)
    assert {name: row.status for name, row in report.rows.items()} == dict.fromkeys("ayz", "done")
    assert sorted(path.parent.name for path in out.rglob(MARKER)) == ["a", "y", "z"]
    assert before == {name: (out / name / MARKER).stat().st_mtime_ns for name in "ay"}, "not done again"
    assert sorted(path.name for path in traces.iterdir()) == ["a0", "y0", "z0", "z1"]
    assert not (out / ".attempts").exists() or not any((out / ".attempts").iterdir())


def test_videos_are_those_of_ausm_track(tmp_path: Path) -> None:
    for name in ("a.mp4", "sub/b.mkv", "c.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("x")
    expected = {"a.mp4": str(tmp_path / "in/a.mp4"), "sub/b.mkv": str(tmp_path / "in/sub/b.mkv")}
    assert videos_below(str(tmp_path / "in"), str(tmp_path / "out")) == expected
    found = videos_below(f"file://{tmp_path}/in", "memory://out")
    assert found == {name: f"file:/{path}" for name, path in expected.items()}
    with pytest.raises(UserError, match="'memory://empty' holds no videos"):
        videos_below("memory://empty", "memory://out")
