# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Tracks one video and writes a folder of results.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from ausm_d2.errors import UserError, counted
from ausm_d2.jobs.encoded import encoded
from ausm_d2.masks.png import LARGEST_ID
from ausm_d2.streaming.ahead import EncodedFrame
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.prompts import Mask, Prompts
from ausm_d2.streaming.result import FrameResult
from ausm_d2.streaming.session import Session
from ausm_d2.video.ahead import ReadAhead
from ausm_d2.video.files import RawFormat
from ausm_d2.video.frame import Frame, Source
from ausm_d2.video.inputs import STDIN, open_source
from ausm_d2.video.results import DEFAULT_OUTPUTS, Earlier, ResultFolder, check_outputs
from ausm_d2.video.tracked import Done, TrackedFrame, VideoInfo

logger = logging.getLogger(__name__)

_CHECKPOINT = 30.0  # seconds between saved states
_NEVER = 1e9  # seconds; later than any frame


@dataclass
class Request:
    """A video to track, and how."""

    source: Any  # as ``open_source`` takes it
    output: Path
    prompts: Mapping[int, Prompts] = field(default_factory=dict)  # by frame
    names: Mapping[int, str] = field(default_factory=dict)  # the user's names of objects, by id
    given_by: str = "the prompts"  # the file of the prompts, for messages
    find: bool = True  # also detect objects without a prompt
    save: Sequence[str] = DEFAULT_OUTPUTS
    frames: int | None = None  # stop after this number
    fps: Fraction | None = None  # of images without time stamps
    raw: RawFormat | None = None  # of standard input
    resume: bool = False

    @property
    def named(self) -> str:
        """The source, for messages."""
        return "standard input" if self.source == STDIN else str(self.source)


@dataclass
class Summary:
    """The outcome of a request."""

    frames: int
    objects: int
    complete: bool  # False: it was stopped, and ``resume`` continues it
    output: Path
    seconds: float  # spent on ``new`` frames
    new: int  # frames of this run

    def __str__(self) -> str:
        text = f"{counted(self.frames, 'frame')}, {counted(self.objects, 'object')}"
        return text if self.complete else f"stopped after {text}"


Progress = Callable[[int, "int | None"], None]
"""Called after every frame with the number of frames done and, if known, of all."""


def track(
    make_predictor: Callable[[], VideoPredictor],
    request: Request,
    *,
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Summary:
    """Run a request. Cheap checks come first.

    Args:
        make_predictor: called after input and output have been checked.
        stopped: polled between frames; True stops the run cleanly.

    Raises:
        UserError: if the request is invalid, a frame cannot be processed, or the disk is full. Results of the frames
            before are complete.
    """
    names = check_outputs(request.save)
    if request.frames is not None and request.frames < 1:
        raise UserError(f"--frames: {request.frames}, expected 1 or more")
    largest = max((object_id for by_id in request.prompts.values() for object_id in by_id), default=0)
    if "masks" in names and largest > LARGEST_ID:
        raise UserError(f"{request.given_by}: object {largest}; ids up to {LARGEST_ID} fit into pictures of masks")
    folder = ResultFolder(request.output)
    try:
        return _track(make_predictor, request, names, folder, progress, stopped)
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"'{request.output}' cannot be written: {error.strerror}{_kept(folder)}") from error
    except UserError as error:
        raise UserError(f"{error}{_kept(folder)}") from None
    finally:
        folder.discard()


def _kept(folder: ResultFolder) -> str:
    """For an error message: what happened to the frames before it."""
    if not folder.frames:
        return ""
    resume = "; --resume continues" if folder.can_resume else ""
    return f"; the {folder.frames} frames before are in '{folder.path}'{resume}"


def _track(
    make_predictor: Callable[[], VideoPredictor],
    request: Request,
    names: list[str],
    folder: ResultFolder,
    progress: Progress | None,
    stopped: Callable[[], bool],
) -> Summary:
    earlier = folder.earlier() if request.resume else None
    source, first = _open(request, 0)
    _check_prompts(request, source, first)
    predictor = make_predictor()
    settings = _settings(request, source, predictor)
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    done = None
    if earlier is not None:
        _require_same(earlier, key, settings, request, source)
        if earlier.complete:
            folder.forget()
            return Summary(earlier.frames, earlier.objects, True, folder.path, 0.0, 0)
        done = (earlier.frames or None) if earlier.settings is not None else None
    if done is None:
        given = max((object_id for by_id in request.prompts.values() for object_id in by_id), default=0)
        session = predictor.start(first.image, _first_prompts(request), discover=request.find, above=given)
    else:
        session = predictor.load(folder.session_file(done))
        source, first = _open(request, done)
    work = _Work(request, folder, source, predictor, session, progress)
    info = VideoInfo(
        name=source.name,
        height=session.result.id_map.shape[0],
        width=session.result.id_map.shape[1],
        fps=source.fps,
        prompted=bool(request.prompts) and not request.find,
        classes=predictor.class_names(session.label_set),
        is_image=source.is_image,
    )
    time_of_next = first.time if first is not None else _NEVER
    folder.begin(info, names, key=key, settings=settings, done=Done(done, time_of_next) if done else None)
    return work.run(first, done or 0, stopped)


def _open(request: Request, first: int) -> tuple[Source, Any]:
    """The source from frame ``first`` on, and that frame. The frame is None if a continued video has ended."""
    source = open_source(request.source, fps=request.fps, raw=request.raw, first=first)
    frame = next(iter(source), None)
    if frame is None and not first:
        raise UserError(f"{request.named}: no frame can be decoded")
    return source, frame


def _check_prompts(request: Request, source: Source, first: Frame) -> None:
    """Raise a ``UserError`` if the prompts do not fit the video."""
    last = max(request.prompts, default=0)
    if source.count is not None and last >= source.count:
        raise UserError(f"{request.given_by}: given at frame {last}, the video has frames 0 to {source.count - 1}")
    height, width = first.image.shape[:2]
    given = [prompt for by_id in request.prompts.values() for prompt in by_id.values()]
    for prompt in [each for several in given for each in (several if isinstance(several, list) else [several])]:
        mask = prompt.mask if isinstance(prompt, Mask) else prompt
        if isinstance(mask, np.ndarray) and mask.shape[:2] != (height, width):
            raise UserError(
                f"{request.given_by}: {mask.shape[1]}x{mask.shape[0]} pixels, the first frame of the input is "
                f"{width}x{height}"
            )


def _first_prompts(request: Request) -> Prompts | None:
    """The prompts of the first frame; None (detect everything) if there are no prompts at any frame."""
    return request.prompts.get(0, {}) if request.prompts else None


def _settings(request: Request, source: Source, predictor: VideoPredictor) -> dict[str, Any]:
    """All settings that affect results, by a name for messages."""
    prompts = {
        str(frame): {str(object_id): _digest(each) for object_id, each in given.items()}
        for frame, given in sorted(request.prompts.items())
    }
    return {
        "input": source.key,
        "model": predictor.fingerprint,
        "prompts": prompts,
        "find": request.find,
        "save": check_outputs(request.save),
        "fps": str(request.fps),
        **({} if request.frames is None else {"frames": request.frames}),
    }


def _digest(prompt: Any) -> str:
    return hashlib.sha256(pickle.dumps(prompt, protocol=5)).hexdigest()


def _require_same(earlier: Earlier, key: str, settings: dict[str, Any], request: Request, source: Source) -> None:
    if source.key is None:
        raise UserError(f"{source.name}: cannot be read again from the beginning, so --resume cannot continue it")
    if earlier.key == key:
        return
    differs = [name for name, value in settings.items() if (earlier.settings or {}).get(name, value) != value]
    raise UserError(
        f"'{request.output}' holds results of another run ({', '.join(differs) or 'settings'} differ); --resume goes "
        "on only with the same video, settings and --frames"
    )


class _Work:
    """The loop over the frames."""

    def __init__(
        self,
        request: Request,
        folder: ResultFolder,
        source: Source,
        predictor: VideoPredictor,
        session: Session,
        progress: Progress | None,
    ) -> None:
        self._request = request
        self._folder = folder
        self._source = source
        self._session = session
        self._classes = predictor.class_names(session.label_set)
        self._progress = progress
        limit = (source.count, request.frames)
        self._total = min((count for count in limit if count is not None), default=None)

    def run(self, first: Frame | None, done: int, stopped: Callable[[], bool]) -> Summary:
        begin, complete, new = time.monotonic(), False, 0
        saved = begin
        try:
            if first is not None:
                for frame in self._frames(first, done, stopped):
                    new += 1
                    self._folder.write(self._tracked(frame))
                    if self._progress is not None:
                        self._progress(done + new, self._total)
                    if self._source.key is not None and time.monotonic() - saved > _CHECKPOINT:
                        self._folder.checkpoint(self._session.save)
                        saved = time.monotonic()
            complete = not stopped() or self._source.live
            unused = [frame for frame in self._request.prompts if frame >= done + new]
            if complete and unused:
                logger.warning("%s: given at frame %d, which did not come", self._request.given_by, min(unused))
        except BaseException:
            self._close(complete=False, saved=self._folder.frames == done)
            raise
        objects = self._close(complete=complete, saved=False)
        return Summary(
            frames=done + new,
            objects=objects,
            complete=complete,
            output=self._folder.path,
            seconds=time.monotonic() - begin,
            new=new,
        )

    def _frames(self, first: Frame, done: int, stopped: Callable[[], bool]) -> Iterator[Frame]:
        """Step the session and yield each frame after its step."""
        limit = None if self._request.frames is None else self._request.frames - done - 1
        if limit is not None and limit < 0:
            return
        if done == 0:  # the session was started with it
            yield first
        else:
            yield self._step(first, first.image)
        with ReadAhead(islice(self._source.frames, limit), newest=self._source.live, stopped=stopped) as ahead:
            for frame, image in encoded(self._session, ahead, live=self._source.live, stopped=stopped):
                yield self._step(frame, image)
            if ahead.dropped:
                came = "%s: %d frames that came while the model worked were left out"
                logger.warning(came, self._source.name, ahead.dropped)

    def _step(self, frame: Frame, image: np.ndarray | EncodedFrame) -> Frame:
        try:
            self._session.step(image)
            for object_id, prompt in self._request.prompts.get(self._session.result.frame_index, {}).items():
                self._session.add(object_id, prompt)
        except UserError as error:
            raise UserError(f"{self._request.named}: frame '{frame.name}': {error}") from None
        return frame

    def _tracked(self, frame: Frame) -> TrackedFrame:
        return tracked_frame(self._session.result, frame, self._classes, self._request.names)

    def _close(self, *, complete: bool, saved: bool) -> int:
        """Complete the results. If the video is not done, also save the state of the stream, if possible."""
        if not complete and not saved and self._source.key is not None and self._at_journal():
            with suppress(UserError, OSError):  # disk full: resume uses an earlier state, or starts again
                self._folder.checkpoint(self._session.save)
        return self._folder.finish(complete=complete)

    def _at_journal(self) -> bool:
        """Whether the last frame of the session has been written."""
        return self._session.result.frame_index + 1 == self._folder.frames


def tracked_frame(
    result: FrameResult, frame: Frame, classes: Sequence[str], names: Mapping[int, str] | None = None
) -> TrackedFrame:
    """Combine a result with its frame, for the outputs.

    Args:
        classes: class names of the label set.
        names: the user's names of objects, by id; they replace class names.
    """
    found = result.instances.to("cpu")
    rows = zip(found.track_ids.tolist(), found.pred_classes.tolist(), found.scores.tolist(), strict=True)
    entries = [((names or {}).get(i, classes[class_id]), i, class_id, score) for i, class_id, score in rows]
    return TrackedFrame.of_arrays(
        index=result.frame_index,
        name=frame.name,
        time=frame.time,
        file=frame.file or f"{frame.name}.jpg",
        image=frame.image,
        masks=found.pred_masks.numpy(),
        id_map=result.id_map.cpu().numpy(),
        entries=[(i, name, class_id, score) for name, i, class_id, score in entries],
    )
