# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""One video in use: frames and prompts in the user's form, results under the user's ids.

Shape shorthand:
    H, W: size of the frames in pixels, as given
    H4, W4: mask size, stride 4 of the network's padded input
    N: objects of a result; K: classes of the label set
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write
from ausm_d2.modeling.masks import winners
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.modeling.transfer import upload
from ausm_d2.streaming.segmenter import shown_rows
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.stream import FrameOutput, Stream

FORMAT = "ausm_d2 stream, version 2"  # of saved sessions


@dataclass
class FrameResult:
    """What there is in one frame. All tensors are on the model's device."""

    frame_index: int  # from 0
    instances: Instances
    """Of N objects: ``pred_masks`` bool (N, H, W), which may overlap; ``scores`` (N): the mean probability, since the
    track began, of its class, or, where the user gave the object, of being there; ``pred_classes`` int64 (N);
    ``track_ids`` int64 (N). Unprompted work lists the objects in sight, prompted work all that are followed."""
    id_map: Tensor
    """int32 (H, W): track id of every pixel, 0 for background. Where masks overlap, the surest has the pixel: the
    largest logit. A mask given at this frame is surer than any prediction; of two the one listed first has it."""


class Session:
    """One video, frame by frame. ``VideoPredictor.start`` and ``VideoPredictor.load`` make one."""

    result: FrameResult  # of the latest frame

    def __init__(self, stream: Stream, *, topk: int | None, weights: Callable[[], str]) -> None:
        """
        Args:
            stream: that has seen no frame yet.
            topk: objects in a frame's result, where objects are looked for.
            weights: gives a text that identifies weights and settings, for saved sessions.
        """
        self._stream = stream
        self._topk = topk if stream.detect else None
        self._weights = weights
        self._rows: FrameOutput  # of the latest frame, those that the result is made of
        self._given: dict[int, np.ndarray] = {}  # bool (H, W) by id: masks given at the latest frame

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
        """The session that :meth:`save` wrote.

        Raises:
            KeyError, ValueError: if an entry is missing or does not fit.
        """
        session = cls(Stream.from_state_dict(network, settings, saved["stream"]), topk=topk, weights=weights)
        rows = {**saved["rows"], "given": set(saved["rows"]["given"])}
        session._rows = FrameOutput(**{**rows, "mask_logits": rows["mask_logits"].to(network.device)})
        session._given = {object_id: mask.numpy() for object_id, mask in saved["given"].items()}
        session.result = session._render()
        return session

    @property
    def track_ids(self) -> list[int]:
        """Ids of the objects that are followed, hidden ones included."""
        return self._stream.track_ids

    @property
    def label_set(self) -> str:
        """The label set that ``pred_classes`` refer to; ``VideoPredictor.class_names`` has its names."""
        return self._stream.label_set

    def begin(self, frame: np.ndarray, prompts: Mapping[int, np.ndarray | Tensor]) -> FrameResult:
        """The first frame, and the masks of the objects given at it; see ``VideoPredictor.start``."""
        image = as_rgb(frame)
        return self._advance(image, _checked(prompts, image.shape[:2]))

    def step(self, frame: np.ndarray) -> FrameResult:
        """The next frame, uint8 (H, W, 3), BGR.

        Raises:
            UserError: it is no frame, or of another size than the first. The session can go on with the next one.
        """
        return self._advance(as_rgb(frame), {})

    def add(self, object_id: int, mask: np.ndarray | Tensor) -> None:
        """Follow one more object from the latest frame on, or correct one that is followed; updates :attr:`result`.

        Args:
            object_id: 1 or more; it is never renumbered.
            mask: bool or 0/1 uint8 (H, W), the object in the latest frame.

        Raises:
            UserError: a mask that cannot be used, or no free ID vector; then nothing has changed.
        """
        given = _checked({object_id: mask}, self.result.id_map.shape)
        self._stream.add(given)
        self._given |= given
        self._rows = _with_given(self._rows, object_id)
        self.result = self._render()

    def remove(self, object_id: int) -> None:
        """Stop following an object; updates :attr:`result`.

        Raises:
            UserError: if it is not followed.
        """
        self._stream.remove(object_id)
        self._given.pop(object_id, None)
        self._rows = self._rows.select([row for row, each in enumerate(self._rows.track_ids) if each != object_id])
        self.result = self._render()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is needed to go on with the next frame in another process; see ``VideoPredictor.load``.

        Raises:
            UserError: if the file cannot be written.
        """
        saved = {
            "format": FORMAT,
            "weights": self._weights(),
            "stream": self._stream.state_dict(),
            "rows": {**vars(self._rows), "given": sorted(self._rows.given)},
            "given": {object_id: torch.from_numpy(mask) for object_id, mask in self._given.items()},
        }
        try:
            with atomic_write(path) as temporary:
                torch.save(saved, temporary)
        except (OSError, RuntimeError) as error:  # PyTorch's writer raises RuntimeError when the disk is full
            raise UserError(f"{path}: cannot be written: {error}") from error

    def _advance(self, image: np.ndarray, given: dict[int, np.ndarray]) -> FrameResult:
        """The stream's step, to :attr:`result`."""
        output = self._stream.step(image, given)
        self._rows = shown_rows(output, self._topk)
        self._given = {object_id: mask for object_id, mask in given.items() if object_id in output.given}
        self.result = self._render()
        return self.result

    def _render(self) -> FrameResult:
        """The rows of the latest frame at the size of the frames."""
        rows = self._rows
        logits = self._stream.logits(rows, self._given)
        owner = winners(logits)
        masks = logits > 0
        listed = rows.prompted  # where all rows are prompted, only the masks need the device: no sync
        if not listed.all():  # a mask may have been in the padding only
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
        id_map = upload(F.pad(ids, (0, 1)).int(), masks.device)[owner]  # -1, background, looks up the 0 at the end
        return FrameResult(rows.frame_index, instances, id_map)


def as_rgb(frame: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3), BGR -> RGB, as the network reads it.

    Raises:
        UserError: if it is no such array.
    """
    if not isinstance(frame, np.ndarray):
        raise UserError(f"a frame is a NumPy array, uint8 (H, W, 3), BGR; found {type(frame).__name__}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise UserError(f"a frame is uint8 (H, W, 3), BGR; found {frame.dtype} {frame.shape}")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _with_given(rows: FrameOutput, object_id: int) -> FrameOutput:
    """The rows with one that the user has given: certain to be there, of the class it had, or of unknown class."""
    num_classes = rows.probabilities.shape[1]
    if object_id not in rows.track_ids:
        certain = rows.probabilities.new_full((1, num_classes), 1 / num_classes)
        return replace(
            rows,
            track_ids=[*rows.track_ids, object_id],
            probabilities=torch.cat([rows.probabilities, certain]),
            mean_probabilities=torch.cat([rows.mean_probabilities, certain]),
            mask_logits=torch.cat([rows.mask_logits, rows.mask_logits.new_zeros(1, *rows.mask_logits.shape[1:])]),
            visible=torch.cat([rows.visible, rows.visible.new_ones(1)]),
            prompted=torch.cat([rows.prompted, rows.prompted.new_ones(1)]),
            given=rows.given | {object_id},
        )
    row = rows.track_ids.index(object_id)
    probabilities, mean, visible, prompted = (
        each.clone() for each in (rows.probabilities, rows.mean_probabilities, rows.visible, rows.prompted)
    )
    probabilities[row] = mean[row] = F.one_hot(mean[row].argmax(), num_classes).to(mean)
    visible[row], prompted[row] = True, True
    return replace(
        rows,
        probabilities=probabilities,
        mean_probabilities=mean,
        visible=visible,
        prompted=prompted,
        given=rows.given | {object_id},
    )


def _checked(prompts: Mapping[int, np.ndarray | Tensor], size: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Prompts -> bool (H, W) masks by id.

    Raises:
        UserError: naming the object and what is wrong with it.
    """
    checked = {}
    for object_id, mask in prompts.items():
        if isinstance(object_id, bool) or not isinstance(object_id, (int, np.integer)) or not 0 < object_id < 2**31:
            raise UserError(f"object id {object_id!r}: ids are whole numbers from 1 on")
        if isinstance(mask, Tensor):
            mask = mask.cpu().numpy()
        if not isinstance(mask, np.ndarray):
            raise UserError(f"object {object_id}: a prompt is a mask, a bool array (H, W); found {type(mask).__name__}")
        if mask.dtype not in (np.bool_, np.uint8) or mask.ndim != 2:
            raise UserError(f"object {object_id}: a mask is bool or 0/1 uint8 (H, W); found {mask.dtype} {mask.shape}")
        if mask.shape != size:
            raise UserError(
                f"object {object_id}: its mask is {mask.shape[1]}x{mask.shape[0]} pixels, the frame {size[1]}x{size[0]}"
            )
        if mask.max() > 1:
            raise UserError(f"object {object_id}: a uint8 mask holds 0 and 1; found {mask.max()}")
        if not mask.any():
            raise UserError(f"object {object_id}: its mask is empty")
        checked[int(object_id)] = mask.astype(bool)
    return checked
