# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Video records: small objects that read frames and masks on access.

Shape shorthand:
    H, W: frame size in pixels
    T: frames of the video
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ausm_d2.errors import UserError
from ausm_d2.masks.rle import StoredMask, decode, to_rle


@runtime_checkable
class FrameSource(Protocol):
    """Random access to the frames of one video. Cheap to pickle: files are opened on access."""

    @property
    def names(self) -> list[str]:
        """Frame names without extension (T), as result files use them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray:
        """Frame ``index`` as uint8 (H, W, 3), RGB."""


@runtime_checkable
class MaskSource(Protocol):
    """Random access to the instance masks of one video. Cheap to pickle."""

    def read(self, index: int) -> Mapping[int, StoredMask]:
        """Masks of frame ``index`` by instance id. An instance that is not visible there has no entry."""


@dataclass
class Instance:
    """One annotated object of a video."""

    instance_id: int  # unique within the video; for VOS data the palette value / folder number
    category_id: int  # contiguous, 0-based, in the data set's label set
    is_crowd: bool = False


@dataclass
class VideoRecord:
    """One video of a registered data set; ``DatasetCatalog.get(name)`` returns a list of them."""

    video_id: int | str  # the data set's own id, as result files use it
    name: str  # folder or file stem
    height: int
    width: int
    frames: FrameSource
    # Class-agnostic data may leave this empty: ids in ``masks`` without an entry are of category 0.
    instances: list[Instance] = field(default_factory=list)
    masks: MaskSource | None = None  # None: no labels (test sets)
    labelled: list[bool] | None = None  # per frame: has labels. None: all frames have
    # VOS: frame of each object's prompt, by instance id
    prompt_frames: Mapping[int, int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Number of frames T."""
        return len(self.frames)

    def read_frame(self, index: int) -> np.ndarray:
        """Frame ``index``, uint8 (H, W, 3) RGB.

        Raises:
            UserError: if it cannot be read, or has another size than the video.
        """
        try:
            frame = self.frames[index]
        except UserError as error:
            raise UserError(f"video {self.name}, frame {self.frames.names[index]}: {error}") from None
        if frame.shape[:2] != (self.height, self.width):
            raise UserError(
                f"video {self.name}, frame {self.frames.names[index]}: is {frame.shape[0]} x {frame.shape[1]} "
                f"(height x width), {self.height} x {self.width} expected"
            )
        return frame

    def is_labelled(self, frame: int) -> bool:
        """Whether a frame is labelled (in test sets: whether the server has labels)."""
        return self.labelled is None or (frame < len(self.labelled) and self.labelled[frame])

    @property
    def labelled_frames(self) -> list[int]:
        """Indices of the labelled frames, ascending.

        Raises:
            UserError: if there are labels for more frames than the video has.
        """
        if self.labelled is not None and len(self.labelled) > self.length:
            found = len(self.labelled)
            raise UserError(f"video {self.name}: {found} frames are annotated, the video has {self.length}")
        return [frame for frame in range(self.length) if self.is_labelled(frame)]

    def prompts(self) -> dict[int, dict[int, np.ndarray]]:
        """The prompt masks: bool (H, W) by frame, then by object id.

        Raises:
            UserError: if the video has no prompts, or an object has no mask in the frame of its prompt.
        """
        if self.masks is None or self.prompt_frames is None:
            raise UserError(f"video {self.name}: has no masks to prompt with")
        prompts: dict[int, dict[int, np.ndarray]] = {}
        for object_id, frame in self.prompt_frames.items():
            rle = to_rle(self.masks.read(frame).get(object_id), self.height, self.width)
            if rle is None:
                raise UserError(
                    f"video {self.name}: object {object_id} has no mask in frame {frame}, where it is prompted"
                )
            prompts.setdefault(frame, {})[object_id] = decode(rle)
        return prompts


class DeferredRecord(VideoRecord):
    """A record that loads some of its fields from files on first access."""

    def __init__(self, load: Callable[[], dict[str, Any]], **known: Any) -> None:
        """
        Args:
            load: returns the other fields by name; must be picklable.
            known: fields that need no file.
        """
        self._load = load
        self._known = known
        self._loaded: dict[str, Any] | None = None

    def knows(self, name: str) -> bool:
        """Whether a field costs nothing to ask for."""
        return name in self._known or self._loaded is not None

    def _field(self, name: str) -> Any:
        if name in self._known:
            return self._known[name]
        if self._loaded is None:
            self._loaded = self._load()
        if name not in self._loaded:  # the defaults of VideoRecord
            self._loaded[name] = {"instances": list, "extra": dict}.get(name, lambda: None)()
        return self._loaded[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def __repr__(self) -> str:
        return f"DeferredRecord({', '.join(f'{name}={value!r}' for name, value in self._known.items())})"


for _name in VideoRecord.__dataclass_fields__:
    setattr(DeferredRecord, _name, property(partial(DeferredRecord._field, name=_name)))
