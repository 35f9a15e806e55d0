# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A session that can seek: forwards, or back to a keyframe and forwards again from there.

A frame is *done* if its record is the result for the current prompts; frames after the latest change are not.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from ausm_d2.app.clip import Clip
from ausm_d2.app.plan import Plan
from ausm_d2.app.records import Records
from ausm_d2.errors import UserError
from ausm_d2.jobs.track import tracked_frame
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.prompts import Mask
from ausm_d2.streaming.session import Keyframe, Session
from ausm_d2.video.ahead import ReadAhead
from ausm_d2.video.frame import Frame
from ausm_d2.video.tracked import TrackedObject

logger = logging.getLogger(__name__)

_STRIDE = 8  # frames between two keyframes, as long as there is room
_NEAR = 4  # frames from a stored state within which a correction is exact at once
_KEYFRAME_BYTES = 256 << 20


class Turns:
    """A first-come, first-served lock, so that a click never waits for a whole video."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        mine = threading.Event()
        with self._lock:
            self._waiting.append(mine)
            if len(self._waiting) == 1:
                mine.set()
        mine.wait()
        try:
            yield
        finally:
            with self._lock:
                self._waiting.popleft()
                if self._waiting:
                    self._waiting[0].set()


class Follower:
    """One video with one plan. It belongs to one thread at a time."""

    def __init__(self, predictor: VideoPredictor, turns: Turns, clip: Clip, plan: Plan, records: Records) -> None:
        """
        Args:
            predictor: shared by all sessions.
            turns: held while the predictor works.
        """
        self._predictor, self._turns = predictor, turns
        self._clip, self._plan, self.records = clip, plan, records
        self._session: Session | None = None
        self._at: int | None = None  # the last frame that the session has processed, prompts included; None: unusable
        self._keys: dict[int, Keyframe] = {}  # by frame: the session after it, before its prompts
        self._before: tuple[int, list[TrackedObject]] | None = None  # a frame, and its objects before it was corrected
        self._editing: int | None = None  # the frame that the user changed last
        self.classes: list[str] = []  # names of the label set
        self.start: int | None = None  # the first frame that is followed
        self.done = 0  # frames from ``start`` to here, exclusive, are done

    def changed(self, frame: int, *, again: bool = False) -> None:
        """The plan has changed from a frame on; the masks of this frame are updated at once.

        Args:
            again: process the whole video again.

        Raises:
            UserError: a prompt cannot be used. The caller must restore the plan and call this again.
        """
        begin = self._plan.begin
        if again or begin != self.start:
            self._session, self._at, self._keys, self._before = None, None, {}, None
            self.start, self.done = begin, begin or 0
            self.records.clear()
        if begin is None:
            return
        frame = self._editing = max(frame, begin)  # nothing is tracked before it
        self._keys = {each: key for each, key in self._keys.items() if each <= frame}
        self._at = None if self._at is not None and self._at >= frame else self._at
        self.done = max(begin, min(self.done, frame))
        if self._distance(frame) <= _NEAR:
            self._before = None
            for _ in self._go(frame):
                pass
        else:
            self._estimate(frame)

    def run(self, stopped: Callable[[], bool]) -> Iterator[int]:
        """Process the frames that are not done; yields the number of each.

        Raises:
            UserError: nothing is to be followed, or a frame cannot be decoded.
        """
        if self.start is None:
            raise UserError("nothing to follow yet: click on an object, or find everything")
        self._before, self._editing = None, None
        if self.done == self._clip.count:
            return
        yield from self._go(self.done, stopped)
        if self._at is None or stopped():
            return
        with ReadAhead(self._clip.frames(self.done), stopped=stopped) as frames:
            for frame in frames:
                self._step(frame)
                yield self.done - 1
        assert self._session is not None
        if self._at == self.done - 1 and not self._plan.at(self._at):
            self._keys[self._at] = self._session.keyframe()
            self._thin()

    def _distance(self, frame: int) -> int:
        """Number of frames between a frame and the nearest earlier usable state."""
        assert self.start is not None
        states = [self.start, *self._keys, *([] if self._at is None else [self._at])]
        return min(frame - each for each in states if each <= frame)

    def _go(self, frame: int, stopped: Callable[[], bool] = lambda: False) -> Iterator[int]:
        """Advance the session to a frame and apply its prompts; yields every frame processed on the way."""
        assert self.start is not None
        nearest = max((each for each in self._keys if each <= frame), default=None)
        if self._at is None or self._at > frame or (nearest is not None and nearest > self._at):
            if nearest is None:
                self._begin(self._clip.at(self.start))
            else:
                self._back_to(nearest)
            assert self._at is not None
            yield self._at
        while self._at < frame and not stopped():
            self._step(self._clip.at(self._at + 1))
            yield self._at

    def _begin(self, frame: Frame) -> None:
        assert self.start is not None
        find = self._plan.find_at is not None
        with self._turns():
            self._session = self._predictor.start(frame.image, {}, discover=find, above=self._plan.last_id)
        self.classes = self._predictor.class_names(self._session.label_set)
        self._keys[self.start] = self._session.keyframe()
        self._arrived(frame, self.start)

    def _back_to(self, number: int) -> None:
        assert self._session is not None
        with self._turns():
            self._session.back_to(self._keys[number])
        self._session.keep_ids(max(self._plan.given, default=0))
        self._arrived(self._clip.at(number), number)

    def _step(self, frame: Frame) -> None:
        assert self._session is not None and self._at is not None
        number, self._at = self._at + 1, None
        with self._turns():
            self._session.step(frame.image)
        self._clip.show(number, frame.image)
        if self._plan.at(number) or number % _STRIDE == 0:
            self._keys[number] = self._session.keyframe()
            self._thin()
        self._arrived(frame, number)

    def _arrived(self, frame: Frame, number: int) -> None:
        """Apply the prompts of the frame that the session has just processed, and store the result."""
        assert self._session is not None
        self._at = None
        if self._plan.find_at is None:  # with detection, they stay tracked but hidden, or they would be detected again
            for gone in self._plan.removed & {*self._session.track_ids}:
                self._session.remove(gone)
        self._give(self._session, number)
        self._keep(self._session, frame, number)
        self._at = number
        self.done = max(self.done, number + 1)

    def _give(self, session: Session, number: int) -> None:
        given = self._plan.at(number)
        if not given:
            return
        with self._turns():
            try:
                session.add_all(given)
                return
            except UserError:
                if number == self._editing:
                    raise
            for object_id, prompts in given.items():
                try:
                    session.add(object_id, prompts)
                except UserError as error:
                    # An earlier change has removed the object that this corrects.
                    logger.warning("frame %d: a correction is left out: %s", number, error)

    def _keep(self, session: Session, frame: Frame, number: int) -> None:
        classes = self._predictor.class_names(session.label_set)
        found = tracked_frame(session.result, frame, classes).objects
        for each in found:
            each.pixels = None
            if each.id in self._plan.given:  # its class is not known
                each.name = "object"
        self.records.put(number, found)
        self._plan.last_id = max([self._plan.last_id, *(each.id for each in found)])

    def _estimate(self, number: int) -> None:
        """Masks of a frame far from any state: a new session on this frame alone, prompted with its stored masks."""
        frame = self._clip.at(number)
        if self._before is None or self._before[0] != number:
            self._before = number, self.records.get(number)
        known = {each.id: each for each in self._before[1] if each.id not in self._plan.removed}
        masks: dict[int, Mask | np.ndarray] = {each.id: Mask(each.array()) for each in known.values()}
        find = self._plan.find_at is not None and not known
        with self._turns():
            session = self._predictor.start(frame.image, masks, discover=find, above=self._plan.last_id)
        self._give(session, number)
        self._keep(session, frame, number)
        renamed = self.records.get(number)
        for each in renamed:
            if each.id in known:
                each.name, each.class_id = known[each.id].name, known[each.id].class_id
        self.records.put(number, renamed)

    def _thin(self) -> None:
        """Evict keyframes beyond the memory limit; those closer to the latest frame are kept more densely."""
        room = _KEYFRAME_BYTES // max(1, next(iter(self._keys.values())).num_bytes())
        while len(self._keys) > max(4, room):
            numbers = sorted(self._keys)
            last = numbers[-1]
            gaps = {
                here: (after - before) / (last - here + _STRIDE)
                for before, here, after in zip(numbers, numbers[1:], numbers[2:], strict=False)
            }
            del self._keys[min(gaps, key=lambda each: gaps[each])]
