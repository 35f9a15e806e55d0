# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A session: one video, with the user's frames, prompts and object ids.

Shape shorthand:
    H, W: size of the frames in pixels, as given
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Instances

from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write
from ausm_d2.modeling.masks import masks_and_winners
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.modeling.transfer import upload
from ausm_d2.streaming.ahead import EncodedFrame, pixels
from ausm_d2.streaming.groups import GroupedStream
from ausm_d2.streaming.output import FrameOutput
from ausm_d2.streaming.prompts import Drawn, Prompt, Prompts, check_object_id, draw
from ausm_d2.streaming.refinement import overlapping, refine
from ausm_d2.streaming.result import FrameResult
from ausm_d2.streaming.segmenter import shown_rows
from ausm_d2.streaming.settings import VideoSettings

FORMAT = "ausm_d2 stream, version 5"  # of saved sessions
_AT_ONCE = 1 << 26  # logits at the size of the frames that are in memory at once: 256 MB, 32 objects at 1080p


@dataclass(frozen=True)
class Keyframe:
    """The state of a session after a frame, from :meth:`Session.keyframe`."""

    stream: GroupedStream
    rows: FrameOutput
    given: dict[int, np.ndarray]
    image: np.ndarray  # the frame, uint8 (H, W, 3), RGB
    paused: frozenset[int]

    def num_bytes(self) -> int:
        """Bytes of the stream's state, which is most of it."""
        return self.stream.num_bytes()


class Session:
    """One video, frame by frame. Created by ``VideoPredictor.start`` and ``VideoPredictor.load``."""

    result: FrameResult  # of the latest frame

    def __init__(self, stream: GroupedStream, *, topk: int | None, weights: Callable[[], str]) -> None:
        """
        Args:
            stream: before its first frame.
            topk: maximum number of objects in a result, if the stream detects objects.
            weights: returns the fingerprint of weights and settings, which saved sessions contain.
        """
        self._stream = stream
        self._topk = topk if stream.detect else None
        self._weights = weights
        self._rows: FrameOutput  # the rows of the latest frame that make up the result
        self._given: dict[int, np.ndarray] = {}  # bool (H, W) by id: masks prompted at the latest frame
        self._frame: np.ndarray | EncodedFrame  # the latest one; its features are kept, to refine prompts on it
        self._paused: set[int] = set()

    @classmethod
    def from_saved(
        cls,
        saved: Mapping[str, Any],
        network: AUSMNetwork,
        settings: VideoSettings,
        *,
        topk: int | None,
        weights: Callable[[], str],
    ) -> Session:
        """Restore a session from the content of a file of :meth:`save`.

        Raises:
            KeyError, ValueError: if an entry is missing or does not fit.
        """
        session = cls(GroupedStream.from_state_dict(network, settings, saved["stream"]), topk=topk, weights=weights)
        rows = {**saved["rows"], "given": set(saved["rows"]["given"])}
        session._rows = FrameOutput(**{**rows, "mask_logits": rows["mask_logits"].to(network.device)})
        session._given = {object_id: mask.numpy() for object_id, mask in saved["given"].items()}
        session._frame = saved["image"].numpy()
        session._paused = set(saved["paused"])
        session.result = session._render()
        return session

    @property
    def track_ids(self) -> list[int]:
        """Ids of all tracked objects, hidden ones included."""
        return self._stream.track_ids

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self._stream.device

    @property
    def label_set(self) -> str:
        """The label set of ``pred_classes``; see ``VideoPredictor.class_names``."""
        return self._stream.label_set

    def begin(self, frame: np.ndarray | EncodedFrame, prompts: Prompts) -> FrameResult:
        """Process the first frame and its prompts; see ``VideoPredictor.start``."""
        image = frame if isinstance(frame, EncodedFrame) else as_rgb(frame)
        drawn = draw(prompts, pixels(image).shape[:2])
        exact = {object_id: each.mask for object_id, each in drawn.items() if each.exact}
        self._advance(image, exact)
        self._take_over(exact)
        self._give({object_id: each for object_id, each in drawn.items() if not each.exact})
        return self.result

    def step(self, frame: np.ndarray | EncodedFrame) -> FrameResult:
        """Process the next frame, uint8 (H, W, 3), BGR, or one of ``VideoPredictor.ahead``.

        Raises:
            UserError: if it is not a frame, or not of the first one's size. The session is unchanged and can continue.
        """
        return self._advance(frame if isinstance(frame, EncodedFrame) else as_rgb(frame), {})

    def ahead(self, frames: Iterable[np.ndarray], *, at_once: int | None = None) -> Generator[EncodedFrame, None, None]:
        """The frames after the latest one, for :meth:`step`: read and encoded ahead by a second thread.

        Args:
            frames: uint8 (H, W, 3), BGR.
            at_once: as in ``VideoPredictor.ahead``.
        """
        return self._stream.ahead(map(as_rgb, frames), at_once=at_once)

    def add(self, object_id: int, prompt: Prompt | Sequence[Prompt]) -> None:
        """Track a new object from the latest frame on, or correct a tracked one; updates :attr:`result`.

        A mask is used as it is. Boxes, clicks and scribbles are drawn as a coarse mask, which the network refines on
        the latest frame. Clicks and scribbles edit a tracked object's mask of the latest frame; a mask or box replaces
        it. If the session detects objects, an unprompted track of the same object (IoU of at least 0.5) ends: the
        object has the user's id from then on.

        Args:
            object_id: 1 or more; it is never renumbered.
            prompt: one or several of the types in :mod:`ausm_d2.streaming.prompts`; a bool or 0/1 uint8 (H, W) array is
                a mask.

        Raises:
            UserError: if a prompt is invalid; the session is unchanged.
        """
        self.add_all({object_id: prompt})

    def add_all(self, prompts: Prompts) -> None:
        """The same for several objects at once, by id: they are refined together, in the time of one.

        Raises:
            UserError: as :meth:`add`.
        """
        found = zip(self.result.instances.track_ids.tolist(), self.result.instances.pred_masks, strict=True)
        current = {track_id: mask.cpu().numpy() for track_id, mask in found if track_id in prompts}
        self._give(draw(prompts, tuple(self.result.id_map.shape), current))

    def _give(self, drawn: Mapping[int, Drawn]) -> None:
        """Prompt objects at the latest frame, after its step."""
        if not drawn:
            return
        self._frame = self._stream.encoded(self._frame)
        given = refine(self._stream, self._frame, drawn)
        self._stream.add(given)
        self._given |= given
        for object_id in given:
            self._rows = self._rows.with_given(object_id)
        followed = set(self.track_ids)  # a new object may have taken the slot of a hidden track
        self._rows = self._rows.select([row for row, each in enumerate(self._rows.track_ids) if each in followed])
        self.result = self._render()
        self._take_over(given)

    def _take_over(self, given: Mapping[int, np.ndarray]) -> None:
        """End the unprompted tracks of objects that the user prompts."""
        if not self._stream.detect:
            return
        prompted = {track_id for track_id, each in zip(self._rows.track_ids, self._rows.prompted, strict=True) if each}
        ids, masks = self.result.instances.track_ids.tolist(), self.result.instances.pred_masks
        same = {ids[row] for mask in given.values() for row in overlapping(masks, mask)}
        for track_id in sorted(same - prompted - given.keys()):
            self.remove(track_id)

    def remove(self, object_id: int) -> None:
        """Stop tracking an object; updates :attr:`result`.

        Raises:
            UserError: if it is not tracked.
        """
        self._stream.remove(object_id)
        self._given.pop(object_id, None)
        self._paused.discard(object_id)
        self._rows = self._rows.select([row for row, each in enumerate(self._rows.track_ids) if each != object_id])
        self.result = self._render()

    def pause(self, object_id: int) -> None:
        """Leave an object out of the results until :meth:`resume`. It is still tracked, and keeps its id.

        Raises:
            UserError: if it is not tracked.
        """
        self._stream.require(object_id)
        self._paused.add(object_id)
        self.result = self._render()

    def resume(self, object_id: int) -> None:
        """Show an object in the results again.

        Raises:
            UserError: if it is not paused.
        """
        if object_id not in self._paused:
            raise UserError(f"object {object_id} is not paused; paused now: {sorted(self._paused)}")
        self._paused.discard(object_id)
        self.result = self._render()

    def rename(self, object_id: int, new_id: int) -> None:
        """Change the id of an object, from the latest frame on.

        Raises:
            UserError: if it is not tracked, or the new id is invalid or in use; the session is unchanged.
        """
        self._stream.rename(object_id, check_object_id(new_id))
        self._rows = replace(
            self._rows,
            track_ids=[new_id if each == object_id else each for each in self._rows.track_ids],
            given={new_id if each == object_id else each for each in self._rows.given},
        )
        self._given = {new_id if each == object_id else each: mask for each, mask in self._given.items()}
        self._paused = {new_id if each == object_id else each for each in self._paused}
        self.result = self._render()

    def keep_ids(self, last: int) -> None:
        """Objects detected from now on get ids above ``last``; lower ones are kept for objects prompted later."""
        self._stream.keep_ids(last)

    def keyframe(self) -> Keyframe:
        """A copy of the current state, for :meth:`back_to`. It takes as much memory as the stream's state."""
        image = pixels(self._frame)
        return Keyframe(self._stream.fork(), self._rows, dict(self._given), image, frozenset(self._paused))

    def back_to(self, keyframe: Keyframe) -> FrameResult:
        """Restore the state of a keyframe; returns the result of its frame."""
        self._stream = keyframe.stream.fork()
        self._rows, self._given, self._frame = keyframe.rows, dict(keyframe.given), keyframe.image
        self._paused = set(keyframe.paused)
        self.result = self._render()
        return self.result

    def redo(
        self, keyframe: Keyframe, frames: Iterable[np.ndarray], prompts: Prompts | None = None
    ) -> Iterator[FrameResult]:
        """Return to a keyframe, add prompts there, and process the frames after it again.

        Args:
            keyframe: where the prompts are added.
            frames: the frames after it, uint8 (H, W, 3), BGR.
            prompts: as for :meth:`add`, by object id.

        Yields:
            The result of the keyframe's frame, then those of ``frames``.

        Raises:
            UserError: as :meth:`add` and :meth:`step`.
        """
        self.back_to(keyframe)
        for object_id, prompt in (prompts or {}).items():
            self.add(object_id, prompt)
        yield self.result
        for frame in frames:
            yield self.step(frame)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the session, so that another process can continue with the next frame; see ``VideoPredictor.load``.

        Raises:
            UserError: if the file cannot be written.
        """
        saved = {
            "format": FORMAT,
            "weights": self._weights(),
            "stream": self._stream.state_dict(),
            "rows": {**vars(self._rows), "given": sorted(self._rows.given)},
            "given": {object_id: torch.from_numpy(mask) for object_id, mask in self._given.items()},
            "image": torch.from_numpy(pixels(self._frame)),
            "paused": sorted(self._paused),
        }
        try:
            with atomic_write(path) as temporary:
                torch.save(saved, temporary)
        except (OSError, RuntimeError) as error:  # PyTorch's writer raises RuntimeError when the disk is full
            raise UserError(f"{path}: cannot be written: {error}") from error

    def _advance(self, image: np.ndarray | EncodedFrame, given: dict[int, np.ndarray]) -> FrameResult:
        """Run the stream's step and update :attr:`result`."""
        if not self._stream.settings.cuda_graph:  # a captured step encodes the frame itself
            image = self._stream.encoded(image, given)
        output = self._stream.step(image, given)
        self._frame = image
        self._paused &= {*output.track_ids}
        self._rows = shown_rows(output, self._topk)
        self._given = {object_id: mask for object_id, mask in given.items() if object_id in output.given}
        self.result = self._render()
        return self.result

    def _render(self) -> FrameResult:
        """The result of the latest frame, at frame size."""
        rows = self._rows
        if self._paused:
            rows = rows.select([row for row, each in enumerate(rows.track_ids) if each not in self._paused])
        height, width = self._stream.size
        parts = rows.parts(max(1, _AT_ONCE // (height * width)))
        masks, owner = masks_and_winners(self._stream.logits(part, self._given) for part in parts)
        listed = rows.prompted  # if all rows are prompted, there is no device sync
        if not listed.all():  # a mask may lie in the padding only
            listed = listed | masks.flatten(1).any(dim=1).cpu()
        listed = listed.nonzero()[:, 0]
        ids, mean = torch.tensor(rows.track_ids, dtype=torch.int64), rows.mean_probabilities
        scores = torch.where(rows.prompted, mean.sum(dim=1), mean.amax(dim=1)).float()
        known = {"scores": scores, "pred_classes": mean.argmax(dim=1), "track_ids": ids}
        instances = Instances(
            (masks.shape[1], masks.shape[2]),
            pred_masks=masks if len(listed) == len(masks) else masks[upload(listed, masks.device)],
            **{name: upload(each[listed], masks.device) for name, each in known.items()},
        )
        id_map = upload(F.pad(ids, (0, 1)).int(), masks.device)[owner]  # background is -1: the last entry, 0
        return FrameResult(rows.frame_index, instances, id_map)


def as_rgb(frame: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3), BGR -> RGB.

    Raises:
        UserError: if it is not such an array.
    """
    if not isinstance(frame, np.ndarray):
        raise UserError(f"a frame is a NumPy array, uint8 (H, W, 3), BGR; found {type(frame).__name__}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise UserError(f"a frame is uint8 (H, W, 3), BGR; found {frame.dtype} {frame.shape}")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
