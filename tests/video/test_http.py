# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import pytest

from ausm_d2.errors import UserError
from ausm_d2.video.inputs import open_source
from tests.video.clips import SIZE, write_clip


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a server of tmp_path that sends whole files only."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_file_at_an_address_is_read_to_its_end(web: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", 4)
    source = open_source(f"{web}/a.mp4?x=1")
    assert source.name == "a.mp4" and not source.live
    assert [each.image.shape for each in source] == [(*SIZE, 3)] * 4
    with pytest.raises(UserError, match=r"/b\.mp4: cannot be opened: Server returned 404"):
        open_source(f"{web}/b.mp4")


def test_a_file_that_needs_a_better_server(web: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 100, noise=True)
    with av.open(str(clip)) as old, av.open(str(tmp_path / "b.mp4"), "w") as new:  # its index is at the end
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux():
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    with pytest.raises(UserError, match=r"/b\.mp4: cannot be decoded before the first frame: .*download it first$"):
        list(open_source(f"{web}/b.mp4"))
