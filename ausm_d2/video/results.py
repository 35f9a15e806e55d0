# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A folder of results that is written frame by frame, is usable after any interruption, and can be continued."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import av

from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write, locked, read_json
from ausm_d2.video.outputs import OBJECTS, STREAMED, Output
from ausm_d2.video.reports import REPORTS, Run
from ausm_d2.video.tracked import Done, Journal, TrackedFrame, VideoInfo

logger = logging.getLogger(__name__)

OUTPUTS: dict[str, str] = {  # name -> description for users
    name: (make.__doc__ or "").splitlines()[0].replace("``", "") for name, make in {**STREAMED, **REPORTS}.items()
}
DEFAULT_OUTPUTS = ("overlay", "masks", "tracks")

_PROGRESS = ".progress"  # folder with the state for a continuation; removed when the video is complete
_FILES = {"overlay.mp4", "overlay.png", "masks", OBJECTS, "mot.txt", "mots.txt", "sheet.png"}
_FILES |= {"tracks.json", "ytvis.json", "coco.json", "timeline.png"}
_LOCK, _ROOM, _RUN = "lock", "reserve", "run.json"  # in that folder
_FULL = (errno.ENOSPC, errno.EDQUOT)
_RESERVE = 1 << 18  # bytes


def check_outputs(names: Sequence[str]) -> list[str]:
    """The requested outputs, and ``tracks``, which is always written: later runs read it.

    Raises:
        UserError: if there is no such output.
    """
    for name in names:
        if name not in OUTPUTS:
            raise UserError(f"'{name}' is no output; expected {', '.join(OUTPUTS)}")
    return [name for name in OUTPUTS if name in names or name == "tracks"]


@dataclass
class Earlier:
    """Existing results in the folder."""

    key: str  # of the run that wrote them
    complete: bool
    frames: int = 0  # frames done; of an unfinished run, those that it can be continued after
    objects: int = 0  # of a complete run
    settings: dict[str, Any] | None = None  # of an unfinished run


class ResultFolder:
    """The folder of one video's results.

    Existing results are kept until ``begin`` removes them. A folder with any other content is refused. Links and mount
    points work: the folder itself is never replaced. From the constructor to ``discard``, or until
    the results are complete, no other process can write into it.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: if ``path`` has other content, is not writable, or another process writes into it.
        """
        self.path = Path(os.path.abspath(path))
        self.scratch = self.path / _PROGRESS
        self._made = [each for each in (self.path, *self.path.parents) if not os.path.lexists(each)]
        self.can_resume = False  # the video that is being written can be read again from its beginning
        self._outputs: list[Output] = []
        self._journal: Journal | None = None
        self._pending: int | None = None  # frames of a saved state that is not in use yet
        self._fresh = not os.path.lexists(self.scratch)
        self._lock: IO[bytes] | None = None
        try:
            for each in (self.path, self.path.parent):
                if each.exists() and not each.is_dir():
                    raise UserError(f"'{each}' is a file; a folder expected")
            there = sorted(entry.name for entry in self.path.iterdir()) if self.path.exists() else []
            foreign = [name for name in there if name not in _FILES and name != _PROGRESS]
            if foreign:
                raise UserError(f"'{path}' holds other things than earlier results ('{foreign[0]}'), not touched")
            self.scratch.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.scratch / _LOCK)
            if self._lock is None:
                raise UserError(f"'{path}': another process is writing results into it")
            self._reserve(_RESERVE)
        except OSError as error:
            self.discard()
            raise UserError(f"'{path}' cannot be written: {error.strerror}") from None

    def earlier(self) -> Earlier | None:
        """Existing results; None if there are none."""
        with suppress(UserError, KeyError, TypeError):
            if (self.scratch / _RUN).exists():
                run = read_json(self.scratch / _RUN)
                saved = self.scratch / "session.json"
                frames = int(read_json(saved)["frames"]) if saved.exists() else 0
                return Earlier(run["key"], False, frames, settings=run["settings"])
            tracks = self.path / "tracks.json"
            if tracks.exists():
                data = read_json(tracks)
                return Earlier(
                    data["run"], bool(data["complete"]), len(data["video"]["frame_names"]), len(data["tracks"])
                )
        return None

    def begin(
        self, info: VideoInfo, names: Sequence[str], *, key: str, settings: dict[str, Any], done: Done | None
    ) -> None:
        """Open the outputs.

        Args:
            names: of the outputs, from ``check_outputs``.
            key: of the run.
            settings: the settings behind the key, for messages.
            done: continue from here; None: remove earlier results and start again.
        """
        self.info, self.names, self.key = info, list(names), key
        if done is None:
            for name in sorted(_FILES):
                _remove(self.path / name)
            for entry in self.scratch.iterdir():
                if entry.name not in (_LOCK, _ROOM):
                    _remove(entry)
            with atomic_write(self.scratch / _RUN) as path:
                path.write_text(json.dumps({"key": key, "settings": settings}), encoding="utf-8")
        self._fresh, self.can_resume = False, settings.get("input") is not None
        self._journal = Journal(self.scratch / "frames.jsonl", done.frames if done else 0)
        makers = [STREAMED[name] for name in names if name in STREAMED]
        self._outputs = [make(self.path, self.scratch, info, done) for make in makers]

    @property
    def frames(self) -> int:
        """Frames done."""
        return self._journal.frames if self._journal else 0

    def write(self, frame: TrackedFrame) -> None:
        """Write the next frame to all outputs."""
        assert self._journal is not None
        for output in self._outputs:
            output.write(frame)
        self._publish()
        self._journal.append(frame)
        reports = sum(name in REPORTS for name in self.names)
        self._reserve(_RESERVE + 2 * reports * self._journal.path.stat().st_size)

    def checkpoint(self, save: Callable[[Path], None]) -> None:
        """Save the state for a continuation after the frames done so far.

        Args:
            save: writes the state of the stream to a path.
        """
        save(self.session_file(self.frames))
        self._pending = self.frames

    def _publish(self) -> None:
        """Make the saved state the current one. Only after the next frame: then movies have the last one on disk."""
        frames, self._pending = self._pending, None
        if frames is None:
            return
        with atomic_write(self.scratch / "session.json") as path:
            path.write_text(json.dumps({"frames": frames}), encoding="utf-8")
        for other in self.scratch.glob("session-*.pth"):
            if other != self.session_file(frames):
                other.unlink()

    def session_file(self, frames: int) -> Path:
        """The file that ``checkpoint`` saved after ``frames`` frames."""
        return self.scratch / f"session-{frames}.pth"

    def finish(self, *, complete: bool) -> int:
        """Complete all files for the frames done.

        Returns:
            The number of objects.

        Raises:
            UserError, OSError, av.FFmpegError: the first error; the other files are completed nevertheless.
        """
        assert self._journal is not None
        (self.scratch / _ROOM).unlink(missing_ok=True)
        run = Run(self.path, self.info, self._journal, complete, self.key)
        steps: list[Callable[[], None]] = [partial(REPORTS[name], run) for name in self.names if name in REPORTS]
        objects = len(self._journal.tracks())
        steps += [output.close for output in self._outputs] + [self._journal.close, self._publish]
        errors: list[BaseException] = []
        for step in steps:
            try:
                step()
            except (OSError, UserError, av.FFmpegError) as error:
                errors.append(error)
        if errors:
            raise errors[0]
        if complete:
            self.forget()
        return objects

    def forget(self) -> None:
        """The results are complete: remove the state for a continuation."""
        (self.scratch / _RUN).unlink(missing_ok=True)  # first: if this is interrupted, the rest counts for nothing
        shutil.rmtree(self.scratch, ignore_errors=True)

    def discard(self) -> None:
        """Release the folder. Before ``begin``: also restore it as it was found."""
        if self._fresh and self._journal is None:
            shutil.rmtree(self.scratch, ignore_errors=True)
            for folder in self._made:
                with suppress(OSError):
                    folder.rmdir()
        if self._lock is not None:
            self._lock.close()  # last

    def _reserve(self, size: int) -> None:
        """Reserve disk space for the files that are written at the end, in case the disk fills up."""
        path = self.scratch / _ROOM
        there = path.stat().st_size if path.exists() else 0
        if there < size:
            with path.open("ab") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, size + (1 << 18))
                except OSError as error:
                    if error.errno in _FULL:
                        raise  # any other error: the file system does not support it


def _remove(path: Path) -> None:
    """Remove a file, a link (not its target) or a folder with its content."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
