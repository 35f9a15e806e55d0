# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""More prompted objects than ID vectors: several streams over one video.

A group is a :class:`Stream` with up to N_id objects and its own memory. The frame encoder runs once per frame for all
groups. Each additional group costs the memory of a stream and the time of a frame without the encoder. With one group
the results are those of the stream alone. New objects are detected in the first group only, which reserves a quarter of
its ID vectors for them; a detection whose mask IoU with an object of another group exceeds 0.5 is not new. A group ends
when its last object is removed.

Shape shorthand:
    H, W: frame size in pixels; H_in, W_in: the network's input size, before padding
    R: rows of a result
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.streaming.ahead import EncodedFrame, encode_ahead, encode_images, network_input, pixels
from ausm_d2.streaming.output import FrameOutput, joined
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.slots import not_followed
from ausm_d2.streaming.stream import Stream

logger = logging.getLogger(__name__)

_FOUND = 4  # the group that detects objects reserves 1 / _FOUND of its ID vectors for them


class GroupedStream:
    """One video, frame by frame, with any number of prompted objects. Methods as in :class:`Stream`."""

    def __init__(self, *groups: Stream, told: set[str] | None = None) -> None:
        """
        Args:
            groups: only the first may detect objects. At the start of a video: one stream before its first frame.
            told: messages that were logged; shared by copies of a stream.
        """
        self._groups = list(groups)
        self._told = set() if told is None else told

    @property
    def settings(self) -> VideoSettings:
        """Those of every group."""
        return self._groups[0].settings

    @property
    def label_set(self) -> str:
        """The label set that class probabilities refer to."""
        return self._groups[0].label_set

    @property
    def detect(self) -> bool:
        """Whether new objects are detected."""
        return self._groups[0].detect

    @detect.setter
    def detect(self, value: bool) -> None:
        self._groups[0].detect = value

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the frames.

        Raises:
            UserError: before the first one.
        """
        return self._groups[0].started().size

    @property
    def device(self) -> torch.device:
        """Where the state is, and the results are."""
        return self._groups[0].network.device

    @property
    def num_groups(self) -> int:
        """Streams that share the encoded frames."""
        return len(self._groups)

    @property
    def track_ids(self) -> list[int]:
        """Ids of all tracked objects, including hidden ones."""
        return [track_id for group in self._groups for track_id in group.track_ids]

    def step(self, frame: np.ndarray | EncodedFrame, prompts: Mapping[int, np.ndarray] | None = None) -> FrameOutput:
        """One iteration of Alg. 1 in every group; see :meth:`Stream.step`. The rows are in the order of the groups."""
        prompts = prompts or {}
        shares = self._shares(prompts)
        if len(shares) == 1:
            return self._groups[0].step(frame, prompts)
        size = (pixels(frame).shape[0], pixels(frame).shape[1])
        self._groups[0].check(size, prompts)  # nothing below raises UserError
        self._tell(len(shares))
        state = self._groups[0].state
        if state is None:
            input_size = self.settings.input_size(size, prompts.values())
            self._open(len(shares) - len(self._groups), lambda first: first.fork())
        else:
            input_size = state.input_size
        given = [{object_id: prompts[object_id] for object_id in share} for share in shares]
        output = self._step_all(self._encoded(frame, input_size), given[: len(self._groups)], input_size)
        later = {object_id: mask for share in given[len(self._groups) :] for object_id, mask in share.items()}
        if later:  # their groups begin with this frame
            self.add(later)
            for object_id in later:
                output = output.with_given(object_id, self._holder(object_id).given_logits(object_id))
        self._agree_on_ids()
        return output

    def encoded(
        self, frame: np.ndarray | EncodedFrame, prompts: Mapping[int, np.ndarray] | None = None
    ) -> EncodedFrame:
        """A frame with its features, for :meth:`step`. Copies of the stream can be stepped with the same one, without
        encoding the frame again.

        Args:
            frame: the next frame, or the latest one.
            prompts: those of the step, if it is the first one.

        Raises:
            UserError: as :meth:`step`.
        """
        prompts, size = prompts or {}, (pixels(frame).shape[0], pixels(frame).shape[1])
        first = self._groups[0]
        first.check(size, prompts)
        input_size = first.state.input_size if first.state else self.settings.input_size(size, prompts.values())
        return self._encoded(frame, input_size)

    def ahead(self, frames: Iterable[np.ndarray], *, at_once: int | None = None) -> Generator[EncodedFrame, None, None]:
        """The frames after the latest one, encoded in a second thread; see :func:`encode_ahead`."""
        first = self._groups[0]
        return encode_ahead(
            first.network, self.settings, frames, input_size=first.started().input_size, at_once=at_once
        )

    def add(self, prompts: Mapping[int, np.ndarray]) -> None:
        """Prompt objects at the latest frame, after its step; see :meth:`Stream.add`.

        Raises:
            UserError: if a mask is not of the frame's size; the stream is unchanged.
        """
        first = self._groups[0]
        if first.state is not None:
            first.check(first.state.size, prompts)
        shares = self._shares(prompts)
        self._tell(len(shares))
        self._open(len(shares) - len(self._groups), Stream.beside)
        for group, share in zip(self._groups, shares, strict=True):
            group.add({object_id: prompts[object_id] for object_id in share})
        self._agree_on_ids()

    def remove(self, track_id: int) -> None:
        """Stop tracking an object.

        Raises:
            UserError: if it is not tracked.
        """
        self._holder(track_id).remove(track_id)
        kept = [group for group in self._groups if group.detect or group.track_ids]
        self._groups = kept or self._groups[:1]

    def require(self, track_id: int) -> None:
        """Raise a ``UserError`` if no such object is followed."""
        self._holder(track_id)

    def rename(self, track_id: int, new_id: int) -> None:
        """Change the id of an object.

        Raises:
            UserError: if no such object is followed, or the new id is in use.
        """
        holder = self._holder(track_id)
        if new_id != track_id and new_id in self.track_ids:
            raise UserError(f"object {track_id} cannot become {new_id}: that id is in use")
        holder.rename(track_id, new_id)
        self._agree_on_ids()

    def keep_ids(self, last: int) -> None:
        """Objects detected from now on get ids above ``last``."""
        self._agree_on_ids(last + 1)

    def logits(self, output: FrameOutput, given: Mapping[int, np.ndarray] | None = None) -> Tensor:
        """The mask logits of all rows at frame size: (R, H, W); see :meth:`Stream.logits`."""
        return self._groups[0].logits(output, given)

    def num_bytes(self) -> int:
        """Bytes of the state: 0 before the first frame."""
        return sum(group.state.num_bytes() for group in self._groups if group.state)

    def state_dict(self) -> dict[str, Any]:
        """The complete state as tensors and numbers; see :meth:`Stream.state_dict`."""
        return {"groups": [group.state_dict() for group in self._groups]}

    @classmethod
    def from_state_dict(cls, network: AUSMNetwork, settings: VideoSettings, values: Mapping[str, Any]) -> GroupedStream:
        """Restore what :meth:`state_dict` gave. With the same weights and settings it continues bit for bit.

        Raises:
            KeyError, ValueError: if an entry is missing or does not fit.
        """
        groups = values["groups"]
        if not groups:
            raise ValueError("groups: none, expected one or more")
        settings = settings if len(groups) == 1 else replace(settings, cuda_graph=False)
        return cls(*(Stream.from_state_dict(network, settings, each) for each in groups))

    def fork(self, **changes: Any) -> GroupedStream:
        """An independent copy; ``changes`` are settings to replace, such as ``fg_threshold``."""
        return GroupedStream(*(group.fork(**changes) for group in self._groups), told=self._told)

    def finding(self, **changes: Any) -> GroupedStream:
        """A copy that detects objects, in the group with the fewest prompted objects."""
        other = self.fork(**changes)
        if not any(_room(group) for group in other._groups):
            other._open(1, Stream.beside)
        best = max(other._groups, key=lambda group: _room(group))
        for group in other._groups:
            group.detect = group is best
        other._groups.sort(key=lambda group: not group.detect)
        return other

    def _shares(self, object_ids: Iterable[int]) -> list[list[int]]:
        """Assign objects to groups: ids by group. Lists beyond the number of groups are for new groups."""
        object_ids = list(object_ids)
        followed = [group.track_ids if group.state else [] for group in self._groups]
        shares = [[each for each in object_ids if each in ids] for ids in followed]
        waiting = [each for each in object_ids if not any(each in ids for ids in followed)]
        num_id = self._groups[0].network.id_pool.num_id
        for group, share in zip(self._groups, shares, strict=True):
            room = max(0, _room(group, share) - (num_id // _FOUND if group.detect else 0))
            share += waiting[:room]
            waiting = waiting[room:]
        return shares + [waiting[at : at + num_id] for at in range(0, len(waiting), num_id)]

    def _tell(self, count: int) -> None:
        """Log once that there are several groups."""
        if count > 1 and not self._told:
            self._told.add("groups")
            logger.warning(
                "there are more prompted objects than ID vectors (MODEL.AUSM.NUM_ID: %d): they are tracked in groups; "
                "each additional group costs the memory of a stream and the time of a frame without the encoder",
                self._groups[0].network.id_pool.num_id,
            )

    def _open(self, count: int, make: Callable[[Stream], Stream]) -> None:
        """Add groups, each made by ``make`` from the first one."""
        if count <= 0:
            return
        first = self._groups[0]
        if first.settings.cuda_graph:  # the encoder is in the graph, and would run once for each group
            first = self._groups[0] = first.fork(cuda_graph=False)
        for _ in range(count):
            self._groups.append(make(first))
            self._groups[-1].detect = False

    def _encoded(self, frame: np.ndarray | EncodedFrame, input_size: tuple[int, int]) -> EncodedFrame:
        """Encode the frame, once for all groups."""
        network, amp = self._groups[0].network, self.settings.amp
        with torch.no_grad(), torch.autocast(network.device.type, torch.bfloat16, enabled=amp):
            resized, features = network_input(frame, self.settings, input_size)
            return EncodedFrame(pixels(frame), resized, features or encode_images(network, [resized])[0])

    def _step_all(
        self, frame: EncodedFrame, given: Sequence[Mapping[int, np.ndarray]], input_size: tuple[int, int]
    ) -> FrameOutput:
        """Step every group, the first one last: it needs the masks of the objects of the others."""
        others = [
            group.step(frame, masks, input_size=input_size)
            for group, masks in zip(self._groups[1:], given[1:], strict=True)
        ]
        masks = [group.state.masks[group.state.slots.in_use] for group in self._groups[1:] if group.state]
        elsewhere = torch.cat(masks) if self.detect and masks else None
        return joined([self._groups[0].step(frame, given[0], input_size=input_size, elsewhere=elsewhere), *others])

    def _holder(self, track_id: int) -> Stream:
        """The group that tracks an object."""
        for group in self._groups:
            if track_id in group.track_ids:
                return group
        raise not_followed(track_id, self.track_ids)

    def _agree_on_ids(self, least: int = 1) -> None:
        """Set the next id of all groups to the same value, so that ids are unique."""
        states = [group.state for group in self._groups if group.state]
        newest = max([least, *(state.slots.next_track_id for state in states)])
        for state in states:
            state.slots.next_track_id = newest


def _room(group: Stream, object_ids: Iterable[int] = ()) -> int:
    """Number of new objects that a group has ID vectors for, if it also gets those of ``object_ids`` that it tracks."""
    return group.state.slots.room(object_ids) if group.state else group.network.id_pool.num_id
