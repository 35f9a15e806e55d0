# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""One user's session: a video, its plan (prompts, names) and the work on it. No HTTP here."""

from __future__ import annotations

import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from ausm_d2.app.clip import Clip
from ausm_d2.app.downloads import DOWNLOADS, make_download
from ausm_d2.app.events import Events, noted
from ausm_d2.app.follower import Follower, Turns
from ausm_d2.app.limits import Limits, Refused
from ausm_d2.app.plan import Given, Plan, box, point
from ausm_d2.app.records import Records
from ausm_d2.app.view import describe_clip, describe_plan
from ausm_d2.app.worker import Worker
from ausm_d2.errors import UserError
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.prompts import draw
from ausm_d2.video.tracked import TrackedObject

_RATE = 20  # frames over which the frame rate is averaged


class Project:
    """Methods may be called from any thread; those that change something are serialised."""

    def __init__(self, predictor: VideoPredictor, turns: Turns, folder: Path, limits: Limits) -> None:
        """
        Args:
            predictor, turns: shared by all sessions.
            folder: of its files; it is created, and removed by :meth:`close`.
        """
        self.folder = folder
        folder.mkdir(mode=0o700)
        self.events = Events()
        self.used = time.monotonic()
        self._predictor, self._turns, self._limits = predictor, turns, limits
        self._lock = threading.RLock()
        self._clip: Clip | None = None
        self._plan = Plan()
        self._records: Records | None = None
        self._follower: Follower | None = None
        self._worker = Worker(self.events)
        self._rate = 0.0
        self._files = 0  # numbers the names of files
        self._incoming = False
        self._video_folder: Path | None = None
        self._download: dict[str, Any] | None = None
        self._download_file: Path | None = None
        self._closed = False

    # The video

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A folder for the next video, which is removed if :meth:`open` does not take it over.

        Raises:
            Refused: another video is being opened.
        """
        with self._lock:
            if self._incoming:
                raise Refused(409, "another video is being opened")
            self._incoming = True
            self._files += 1
            folder = self.folder / f"video-{self._files}"
        try:
            folder.mkdir()
            yield folder
        finally:
            self._incoming = False
            if self._video_folder != folder:
                shutil.rmtree(folder, ignore_errors=True)

    def open(self, path: Path, name: str, folder: Path) -> None:
        """Open a video; the previous video and its results are dropped.

        Args:
            path: of the file.
            name: what the user calls it.
            folder: from :meth:`incoming`; it may contain the file.

        Raises:
            UserError: the video cannot be used; the session is unchanged.
        """
        try:
            clip = Clip(path, name, max_frames=self._limits.max_frames)
        except UserError as error:
            raise Refused(415, str(error)) from None
        with self._changing():
            self._drop_video()
            self._clip, self._plan, self._video_folder = clip, Plan(), folder
            self._records = Records(folder / "records.sqlite")
            self._follower = Follower(self._predictor, self._turns, clip, self._plan, self._records)
            for other in self.folder.iterdir():
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)

    def _drop_video(self) -> None:
        if self._clip is not None and self._records is not None:
            self._clip.close()
            self._records.close()
        self._clip = self._records = self._follower = None
        self._download = self._download_file = None

    def close(self) -> None:
        """End the work and remove all files."""
        with self._lock:
            self._closed = True
            self.stop()
            self._drop_video()
            shutil.rmtree(self.folder, ignore_errors=True)
        self.events.publish(None)

    @property
    def clip(self) -> Clip:
        """The video.

        Raises:
            Refused: none is open.
        """
        if self._clip is None:
            raise Refused(409, "no video is open")
        return self._clip

    @property
    def done(self) -> int:
        """The end (exclusive) of the frames whose masks are those of the current prompts."""
        return self._follower.done if self._follower is not None else 0

    # The user's edits. Each method returns messages to show.

    def click(self, frame: int, object_id: int | None, x: Any, y: Any, label: Any) -> dict[str, Any]:
        """A click on an object (None: a new one), or where it is not.

        Raises:
            UserError: the click cannot be used; nothing has changed.
        """
        return self._give(frame, object_id, point(x, y, label, (self.clip.height, self.clip.width)))

    def drag(self, frame: int, object_id: int | None, corners: Any) -> dict[str, Any]:
        """A box around an object; see :meth:`click`."""
        return self._give(frame, object_id, box(corners, (self.clip.height, self.clip.width)))

    def _give(self, frame: int, object_id: int | None, given: Given) -> dict[str, Any]:
        number = object_id

        def change() -> None:
            nonlocal number
            number = self._plan.add(frame, object_id, given)
            current = {each.id: each.array() for each in self._objects(frame) if each.id == number}
            draw({number: self._plan.at(frame)[number]}, (self.clip.height, self.clip.width), current)  # checks it

        notes = self._edit(frame, change)
        return {"object": number, "notes": notes}

    def undo(self, frame: int, object_id: int) -> dict[str, Any]:
        """Undo the last click on an object in a frame."""
        self.check_frame(frame)
        return {"notes": self._edit(frame, lambda: self._plan.undo(frame, object_id))}

    def find(self, frame: int, on: bool) -> dict[str, Any]:
        """Switch detection of all objects on (from this frame, or from the first prompt if earlier) or off."""
        self.check_frame(frame)

        def change() -> None:
            self._plan.find_at = frame if on else None

        return {"notes": self._edit(frame, change, again=True)}

    def remove(self, object_id: int) -> None:
        """Remove an object."""
        self._check_object(object_id)
        with self._changing():
            begin = self._plan.begin
            self._plan.remove(object_id)
            if self._plan.begin != begin and self._follower is not None:
                self._follower.changed(self._plan.begin or 0)

    def rename(self, object_id: int, name: str) -> None:
        """Name an object."""
        self._check_object(object_id)
        self._plan.rename(object_id, name)
        self.events.publish({"type": "changed"})

    def hide(self, object_id: int, hidden: bool) -> None:
        """Leave an object out of the picture and of downloads; it is still tracked."""
        self._check_object(object_id)
        (self._plan.hidden.add if hidden else self._plan.hidden.discard)(object_id)
        self.events.publish({"type": "changed"})

    def check_frame(self, frame: int) -> None:
        """Raise a ``UserError`` if there is no such frame."""
        if not 0 <= frame < self.clip.count:
            raise UserError(f"frame {frame}: the video has frames 0 to {self.clip.count - 1}")

    def _check_object(self, object_id: int) -> None:
        if not 0 < object_id <= self._plan.last_id or object_id in self._plan.removed:
            raise Refused(404, f"there is no object {object_id}")

    def _edit(self, frame: int, change: Callable[[], object], *, again: bool = False) -> list[str]:
        """Change the plan and update the masks of a frame; if that fails, the plan is restored."""
        with self._changing(), noted() as notes:
            follower, plan = self._follower, self._plan
            assert follower is not None  # the frame was checked
            before = deepcopy(plan.__dict__)
            try:
                change()
            except UserError:
                plan.__dict__.update(before)
                raise
            try:
                follower.changed(frame, again=again)
            except UserError:
                plan.__dict__.update(before)
                follower.changed(frame, again=again)
                raise
            return notes

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Stops the worker on entry; nothing runs inside this context."""
        with self._lock:
            if self._closed:
                raise Refused(404, "the session has ended")
            self.stop()
            try:
                yield
            finally:
                self.events.publish({"type": "changed"})

    # Work

    def run(self) -> None:
        """Track to the end of the video, in a thread.

        Raises:
            UserError: there is nothing to track.
        """
        with self._changing():
            follower = self._follower
            if follower is None or follower.start is None:
                raise Refused(409, "nothing to follow yet: click on an object, or find everything")
            self._worker.start("run", lambda: self._run(follower))

    def _run(self, follower: Follower) -> None:
        times = deque([time.monotonic()], maxlen=_RATE + 1)
        for frame in follower.run(self._worker.stopped):
            self.used = time.monotonic()
            times.append(self.used)
            self._rate = (len(times) - 1) / max(times[-1] - times[0], 1e-6)
            seen = [[each, round(score, 2)] for each, score in follower.records.seen.get(frame, {}).items()]
            done = {"frame": frame, "done": follower.done, "rate": round(self._rate, 1)}
            self.events.publish({"type": "frame", **done, "seen": seen})

    def stop(self) -> None:
        """Stop the run after its current frame."""
        self._worker.stop()

    def download(self, output: str) -> None:
        """Write a download, in a thread; :meth:`state` has its progress.

        Raises:
            UserError: there is no such output.
        """
        if output not in DOWNLOADS:
            raise Refused(404, f"there is no output '{output}'; expected {', '.join(DOWNLOADS)}")
        with self._changing():
            clip, follower = self.clip, self._follower
            assert follower is not None
            if self._download_file is not None:
                shutil.rmtree(self._download_file.parent, ignore_errors=True)
            self._files += 1
            folder = self.folder / f"download-{self._files}"
            self._download = {"number": self._files, "output": output, "done": 0, "total": follower.done, "name": None}
            self._download_file = None
            self._worker.start("download", lambda: self._make(output, folder, clip, follower))

    def _make(self, output: str, folder: Path, clip: Clip, follower: Follower) -> None:
        state = self._download
        assert state is not None

        def progress(done: int) -> bool:
            self.used = time.monotonic()
            state["done"] = done
            if done % 10 == 0:
                self.events.publish({"type": "download", "done": done, "total": state["total"]})
            return not self._worker.stopped()

        try:
            frames = follower.done if follower.start is not None else 0
            path = make_download(output, folder, clip, self._plan, follower.records, frames, follower.classes, progress)
            state["name"], self._download_file = f"{Path(clip.name).stem}-{path.name}", path
        except BaseException:
            self._download = None
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def downloaded(self, number: int) -> tuple[Path, str]:
        """The finished download, and its file name for the user.

        Raises:
            Refused: it does not exist.
        """
        state, path = self._download, self._download_file
        if state is None or path is None or state["number"] != number:
            raise Refused(404, "there is no such file any more")
        return path, state["name"]

    # Views

    def _objects(self, frame: int) -> list[TrackedObject]:
        self.check_frame(frame)
        records = self._records
        found = records.get(frame) if records is not None else []
        return [each for each in found if each.id not in self._plan.removed]

    def masks(self, frame: int) -> list[dict[str, Any]]:
        """The objects in sight in a frame."""
        return [{"id": i.id, "score": i.score, "counts": i.mask["counts"]} for i in self._objects(frame)]

    def state(self) -> dict[str, Any]:
        """Everything that the page shows, except pictures and masks."""
        with self._lock:
            clip, follower, records = self._clip, self._follower, self._records
            if clip is None or follower is None or records is None:
                return {"video": None, "doing": None}
            work = {"doing": self._worker.doing, "rate": round(self._rate, 1), "download": self._download}
            progress = {"start": follower.start, "done": follower.done}
            return {"video": describe_clip(clip), **describe_plan(self._plan, records), **progress, **work}
