# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Runs ``ausm app`` after its command line is parsed by app.py, which has no slow imports."""

from __future__ import annotations

import argparse
import secrets
import sys
import webbrowser
from pathlib import Path

import numpy as np

from ausm_d2.app.events import noted
from ausm_d2.app.guard import is_loopback
from ausm_d2.app.limits import Limits
from ausm_d2.app.serve import listen, scratch_folder, serve
from ausm_d2.app.server import build_app
from ausm_d2.cli.model import model_config
from ausm_d2.errors import UserError
from ausm_d2.stopping import StopRequest
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.prompts import Box


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    folder = Path(options.folder)
    if not folder.is_dir():
        raise UserError(f"--folder: '{options.folder}' is not a folder")
    limits = Limits(
        folder=folder.resolve(),
        max_bytes=options.max_mb << 20,
        max_frames=options.max_frames,
        sessions=options.sessions,
        idle=60.0 * options.idle_minutes,
    )
    sock = listen(options.host, options.port)
    with sock, StopRequest() as stop, scratch_folder() as scratch:
        predictor = VideoPredictor(model_config(options))
        warm_up(predictor)
        key = None if is_loopback(options.host) else secrets.token_urlsafe(16)
        app = build_app(predictor, limits, scratch, host=options.host, key=key)
        name = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{name}:{sock.getsockname()[1]}/" + (f"?key={key}" if key else "")
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if not is_loopback(options.host):
            reach = f"warning: whoever has this address can use it, and see the videos in '{folder}'"
            print(reach, file=sys.stderr)
        if options.open:
            webbrowser.open(address)
        serve(app, sock, stop, app.state.sessions.close)
    return 0


def warm_up(predictor: VideoPredictor) -> None:
    """Track a box in an empty frame, so that the first click does not wait for kernels to be compiled and checked."""
    with noted():
        session = predictor.start(np.zeros((144, 256, 3), np.uint8), {})
        session.add(1, Box(50, 30, 150, 110))
