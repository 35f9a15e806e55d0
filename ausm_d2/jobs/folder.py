# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Tracks all videos of a folder, in one or several processes, and writes a report."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from detectron2.config import CfgNode

from ausm_d2.errors import UserError
from ausm_d2.jobs.report import Report, Row, write_into
from ausm_d2.jobs.track import Request, track
from ausm_d2.names import files_below, natural_order
from ausm_d2.stopping import StopRequest
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.video.inputs import matches
from ausm_d2.video.pictures import PICTURES

MOVIES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".flv", ".ts", ".mts", ".mpg", ".mpeg", ".wmv", ".3gp",
          ".ogv", ".y4m")  # fmt: skip


def find_videos(text: str, output: Path) -> dict[str, Path] | None:
    """The videos of a folder or pattern, by the names of their results; None if the input is a single video.

    A folder that contains images is one video. Otherwise every video file in it or below, and every folder below that
    contains images, is a video.

    Args:
        text: the input as the user gave it.
        output: folder of the results; it is skipped if it lies in the input folder.

    Raises:
        UserError: if a folder contains neither images nor videos, or both.
    """
    root = Path(text)
    if not root.is_dir():
        files = None if root.exists() else matches(text)
        if files is None or len(files) < 2 or all(path.suffix.lower() in PICTURES for path in files):
            return None
        return _unique(files)
    found: dict[str, Path] = {}
    pictures: dict[Path, int] = {}
    out = output.resolve()
    for path in files_below(root):
        if path.name.startswith(".") or path.resolve().is_relative_to(out):
            continue
        if path.suffix.lower() in MOVIES:
            found[path.relative_to(root).as_posix()] = path
        elif path.suffix.lower() in PICTURES:
            pictures[path.parent] = pictures.get(path.parent, 0) + 1
    if root in pictures:
        if any(path.parent == root for path in found.values()):
            raise UserError(f"'{root}' holds pictures and videos side by side; a folder of frames, or one of videos")
        return None
    found.update({folder.relative_to(root).as_posix(): folder for folder in pictures})
    if not found:
        raise UserError(f"the folder '{root}' holds no videos ({' '.join(MOVIES)}) and no pictures")
    return dict(sorted(found.items(), key=lambda item: natural_order(item[0])))


def _unique(files: Sequence[Path]) -> dict[str, Path]:
    """Files by the names of their results: the file names, or the paths if file names are not unique."""
    names = [path.name for path in files]
    if len(set(names)) == len(names):
        return dict(zip(names, files, strict=True))
    return {path.resolve().as_posix().lstrip("/"): path for path in files}


def track_one_of_many(predictor: VideoPredictor, name: str, asked: Request, stopped: Callable[[], bool]) -> Row:
    """Track one video. Errors are returned in its row."""
    try:
        summary = track(lambda: predictor, asked, stopped=stopped)
    except UserError as error:
        return Row(name, "failed", error=str(error))
    except Exception as error:  # one bad file must not stop the others
        return Row(name, "failed", error=f"{type(error).__name__}: {error}".splitlines()[0])
    status = "done" if summary.complete else "stopped"
    return Row(name, status, summary.frames, summary.objects, round(summary.seconds, 2))


def track_all(
    cfg: CfgNode,
    videos: dict[str, Path],
    asked: Request,
    *,
    workers: int = 1,
    progress: Callable[[int, int | None], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Report:
    """Track every video into a folder of its own below ``asked.output``. Completed videos are skipped.

    Args:
        videos: by the names of their results.
        asked: the request for each video; source, output and resume are replaced.
        workers: number of processes; 1: this process.
        progress: called with the number of processed videos and the number of all.
        stopped: polled; True stops all videos cleanly.

    Raises:
        UserError: if the output folder is not writable.
    """
    if workers < 1:
        raise UserError(f"--workers: {workers}, expected 1 or more")
    try:
        asked.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"'{asked.output}' cannot be written: {error.strerror}") from None
    requests = {
        name: replace(asked, source=str(path), output=asked.output / name, resume=True) for name, path in videos.items()
    }
    report = Report(list(videos), write_into(asked.output))
    many = workers > 1 and len(videos) > 1
    rows = _in_processes(cfg, requests, min(workers, len(videos)), stopped) if many else _here(cfg, requests, stopped)
    for row in rows:
        report.add(row)
        if progress is not None:
            progress(len(report.rows), len(videos))
    return report


def _here(cfg: CfgNode, requests: dict[str, Request], stop: Callable[[], bool]) -> Iterator[Row]:
    predictor = VideoPredictor(cfg)
    for name, asked in requests.items():
        if stop():
            return
        yield track_one_of_many(predictor, name, asked, stop)


class _Worker:
    """A process with its own predictor."""

    def __init__(self, cfg: CfgNode, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(cfg, theirs, threads), daemon=True)
        # Ctrl-C reaches all processes, but the parent stops its workers itself. They inherit that SIGINT is blocked: it
        # would interrupt their imports, before _work ignores it.
        resource_tracker.ensure_running()  # its start would end the blocking
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.video: str | None = None  # the current one
        self.told = False  # to stop

    def give(self, name: str, asked: Request) -> None:
        self.video = name
        with contextlib.suppress(OSError):  # it has died: answer() says so
            self.connection.send((name, asked))

    def answer(self) -> Row:
        """The row of the current video; failed if the process died, stopped if it was told to."""
        assert self.video is not None
        try:
            row: Row = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            row = Row(self.video, "failed", error=f"its process ended with exit code {code} (a negative one: a signal)")
            if self.told and code == -signal.SIGTERM:
                row = Row(self.video, "stopped")  # before its first frame
        self.video = None
        return row

    def stop(self) -> None:
        """Tell it to stop after its current frame, or at once if it is still importing."""
        self.told = True
        self.process.terminate()

    def close(self) -> None:
        self.connection.close()
        self.process.join(timeout=10.0)
        if self.process.is_alive():
            self.process.terminate()


def _work(cfg: CfgNode, connection: Connection, threads: int) -> None:
    """Body of a process: receives requests and sends rows, until the connection is closed."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    with StopRequest(signals=(signal.SIGTERM,)) as stop:

        def stopped() -> bool:  # also when the parent was killed: the same command may already run again
            return stop() or (parent is not None and not parent.is_alive())

        try:
            predictor = VideoPredictor(cfg)
            while True:
                name, asked = connection.recv()
                connection.send(track_one_of_many(predictor, name, asked, stopped))
        except (EOFError, OSError):
            return  # the parent has no more videos, or has ended


def _in_processes(cfg: CfgNode, requests: dict[str, Request], workers: int, stop: Callable[[], bool]) -> Iterator[Row]:
    waiting = list(requests.items())[::-1]
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool: list[_Worker] = []
    told = False
    try:
        while waiting or any(worker.video for worker in pool):
            pool = [worker for worker in pool if worker.process.is_alive() or worker.video]
            while waiting and not stop() and len(pool) < min(workers, len(waiting) + sum(bool(w.video) for w in pool)):
                pool.append(_Worker(cfg, threads))
            for worker in pool:
                if worker.video is None and waiting and not stop():
                    worker.give(*waiting.pop())
            busy = [worker for worker in pool if worker.video]
            if stop() and not told:
                told = True
                for worker in busy:
                    worker.stop()
            if not busy:
                return
            ready = wait([worker.connection for worker in busy], timeout=0.2)
            for worker in busy:
                if worker.connection in ready:
                    yield worker.answer()
    finally:
        for worker in pool:
            worker.close()
