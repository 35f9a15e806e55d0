# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Streams a video through an exported step, without PyTorch: NumPy, OpenCV and onnxruntime.

    stream = OnnxStream("ausm_edge.onnx")
    for frame in frames:                                  # uint8 (H, W, 3), BGR, of the size it was exported for
        result = stream.step(frame)                       # or step(frame, {7: mask}) to prompt an object at this frame

Results are those of :class:`~ausm_d2.streaming.session.Session`, with the same ID vectors. Prompts are masks; objects
beyond N_id are refused, and the input is not enlarged for small prompts (TEST.AUSM.SMALL_PROMPT_CELLS).

Shape shorthand:
    H, W: frame size in pixels; H_in, W_in: the network's input size, before padding; H4, W4: mask size at stride 4
    N_id: slots; Q: N_id + N_det; K: classes
    R: objects of a result
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ausm_d2.errors import UserError
from ausm_d2.export.contract import INPUTS, KEY, StepSettings
from ausm_d2.export.slots import Slots, mask_iou

_GIVEN_LOGIT = 20.0  # as in streaming/stream.py
_SAME_OBJECT = 0.5  # IoU with a prompt, above which a track ends


@dataclass(frozen=True)
class OnnxResult:
    """One frame. Rows as in :class:`~ausm_d2.streaming.result.FrameResult`."""

    frame_index: int  # from 0
    track_ids: list[int]  # R
    classes: list[int]  # R, indices of StepSettings.classes
    scores: np.ndarray  # (R)
    masks: np.ndarray  # bool (R, H, W)
    id_map: np.ndarray  # int32 (H, W): track id of every pixel, 0 for background


class OnnxStream:
    """One video, frame by frame."""

    def __init__(self, path: str | os.PathLike[str], *, detect: bool = True, threads: int | None = None) -> None:
        """
        Args:
            path: a file of ``ausm export``.
            detect: detect objects that are not prompted.
            threads: of onnxruntime; None: its default.

        Raises:
            UserError: onnxruntime is missing, or the file is not an exported step.
        """
        self._session, self.settings = _load(path, threads)
        self.detect = detect
        inputs = {each.name: each.shape for each in self._session.get_inputs()}
        self._memory = [name for name in inputs if name not in INPUTS]
        self.slots = Slots.empty(self.settings.num_id, len(self.settings.classes), self.settings.seed)
        self.frame_index = -1
        self.state: dict[str, np.ndarray] = {name: np.zeros(inputs[name], np.float32) for name in self._memory}
        self.state["masks"] = np.zeros(inputs["masks"], bool)
        start = np.asarray(self.settings.x_start, np.float32)
        self.state["x_prev"] = np.broadcast_to(start[:, None, None], inputs["x_prev"]).copy()
        self._up = [
            _interpolation(4 * small / side, out, small)
            for small, side, out in zip(inputs["masks"][1:], self.settings.input_size, self.settings.size, strict=True)
        ]

    def step(self, frame: np.ndarray, prompts: Mapping[int, np.ndarray] | None = None) -> OnnxResult:
        """The next frame.

        Args:
            frame: uint8 (H, W, 3), BGR.
            prompts: bool (H, W) masks by object id (1 or more), of objects prompted at this frame.

        Raises:
            UserError: if the frame or a prompt does not fit; the stream is unchanged.
        """
        given = self._marks(frame, prompts or {})
        reserved = self.slots.reserve(given, self.frame_index)
        if self.frame_index < 0 and self.settings.prompt_index == "zero":
            self._give(given, reserved)
            given, reserved = {}, {}
        feeds = {"image": self._image(frame), "ids": self.slots.ids, **self.state}
        report, logits, masks, x_next, *memory = self._session.run(None, feeds)
        report = report.astype(np.float64)
        self.frame_index += 1
        self.state = {"masks": masks, "x_prev": x_next, **dict(zip(self._memory, memory, strict=True))}
        source = self._update(report, logits, reserved)
        self._give(given, reserved)
        return self._result(report, logits, source, {each: (prompts or {})[each] for each in given})

    def remove(self, track_id: int) -> None:
        """Stop tracking an object.

        Raises:
            UserError: if it is not tracked.
        """
        self.state["masks"][self.slots.remove(track_id)] = False

    def _marks(self, frame: np.ndarray, prompts: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Check the arguments of a step; bool (H4, W4) masks of the prompts."""
        height, width = self.settings.size
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape != (height, width, 3):
            found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise UserError(
                f"a frame is uint8 ({height}, {width}, 3), BGR, as the file was exported for; found {found}"
            )
        marks = {}
        for object_id, mask in prompts.items():
            if mask.dtype != bool or mask.shape != (height, width) or not mask.any() or object_id < 1:
                raise UserError(
                    f"object {object_id}: expected an id of 1 or more and a bool mask ({height}, {width}) that is not "
                    f"empty; found {mask.dtype} {mask.shape}"
                )
            marks[object_id] = self._mark(mask)
        return marks

    def _mark(self, mask: np.ndarray) -> np.ndarray:
        """bool (H, W) -> bool (H4, W4), as ``VideoSettings.resize_mask`` and ``masks_at_stride4``."""
        size = self.settings.input_size
        if mask.shape != size:
            coverage = _resized(mask.astype(np.float32), size)
            mask = coverage >= 0.5
            if not mask.any():
                mask = (coverage == coverage.max()) & (coverage > 0)
        rows, columns = self.state["masks"].shape[1:]
        padded = np.zeros((4 * rows, 4 * columns), np.float32)
        padded[: mask.shape[0], : mask.shape[1]] = mask
        pooled = padded.reshape(rows, 4, columns, 4).mean(axis=(1, 3))
        return (pooled >= min(pooled.max(), 0.5)) & (pooled > 0)

    def _image(self, frame: np.ndarray) -> np.ndarray:
        rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        return np.ascontiguousarray(_resized(rgb, self.settings.input_size).transpose(2, 0, 1))

    def _give(self, given: Mapping[int, np.ndarray], reserved: Mapping[int, int]) -> None:
        self.slots.give(reserved, self.frame_index)
        for object_id, mask in given.items():
            self.state["masks"][reserved[object_id]] = mask

    def _update(self, report: np.ndarray, logits: np.ndarray, reserved: Mapping[int, int]) -> np.ndarray:
        """Update scores, hidden rows and new tracks, as ``Stream._advance`` does.

        Args:
            report: float64 (Q, K + 1); the last column becomes 0 for hidden rows.

        Returns:
            The row of Q of each slot.
        """
        how, slots, masks = self.settings, self.slots, self.state["masks"]
        probabilities, visible = report[:, :-1], report[:, -1] > 0
        count = how.num_id
        if how.hide_below > 0:
            unsure = (probabilities[:count].sum(1) < how.hide_below) & slots.in_use & ~slots.prompted
            visible[:count] &= ~unsure
            report[:count, -1][unsure] = 0
            masks[unsure] = False
        scores = probabilities * report[:, -1:] if how.track_score == "mask" else probabilities
        slots.update(scores[:count], visible[:count], self.frame_index, how.track_score)
        source = np.arange(count)
        if self.detect:
            foreground = probabilities[count:].sum(1)
            found = np.flatnonzero((foreground >= how.fg_threshold) & visible[count:])
            found = found[np.argsort(-scores[count:].sum(1)[found], kind="stable")] + count
            if how.birth_iou < 1 and len(found):
                apart = (mask_iou(logits[found] > 0, masks) <= how.birth_iou).all(axis=1)
                found = found[apart]
            for slot, row in slots.allocate(found, scores, self.frame_index, set(reserved.values())).items():
                source[slot] = row
                masks[slot] = logits[row] > 0
        return source

    def _result(
        self,
        report: np.ndarray,
        logits: np.ndarray,
        source: np.ndarray,
        prompts: Mapping[int, np.ndarray],
    ) -> OnnxResult:
        """The rows that a session would return, at frame size. ``prompts``: those of this frame."""
        slots = self.slots
        used = np.flatnonzero(slots.in_use)
        ids = slots.track_ids[used]
        now = np.isin(ids, list(prompts))
        current, visible = report[source[used], :-1], (report[source[used], -1] > 0) | now
        current[now] = 1 / current.shape[1]
        age = slots.predicted[used, None]
        mean = np.where(age > 0, slots.class_sums[used] / np.maximum(age, 1), current)
        best = np.argsort(-current.max(axis=1, initial=0), kind="stable")
        best = best[: self.settings.topk] if self.detect else best
        shown = slots.prompted[used].copy()
        shown[best] |= visible[best]
        rows = np.flatnonzero(shown)
        height, width = self._up
        large = np.empty((len(rows), *self.settings.size), np.float32)
        for at, row in enumerate(rows):
            mask = prompts.get(int(ids[row])) if now[row] else None
            small = logits[source[used[row]]]
            large[at] = height @ small @ width.T if mask is None else np.where(mask, np.inf, -np.inf)
        masks = large > 0
        ended = self._taken_over(ids[rows], slots.prompted[used[rows]], masks, prompts) if now.any() else set()
        kept = [
            at
            for at, row in enumerate(rows)
            if ids[row] not in ended and (slots.prompted[used[row]] or masks[at].any())
        ]
        score = np.where(slots.prompted[used], mean.sum(axis=1), mean.max(axis=1, initial=0))[rows[kept]]
        return OnnxResult(
            frame_index=self.frame_index,
            track_ids=ids[rows[kept]].tolist(),
            classes=mean[rows[kept]].argmax(axis=1).tolist() if kept else [],
            scores=score.astype(np.float32),
            masks=masks[kept],
            id_map=_id_map(large[kept], ids[rows[kept]], self.settings.size),
        )

    def _taken_over(
        self, ids: np.ndarray, prompted: np.ndarray, masks: np.ndarray, prompts: Mapping[int, np.ndarray]
    ) -> set[int]:
        """End detected tracks that coincide with prompted objects; returns their ids."""
        ended = set()
        for track_id, known, mask in zip(ids.tolist(), prompted, masks, strict=True):
            same = [mask_iou(mask[None], each[None])[0, 0] >= _SAME_OBJECT for each in prompts.values()]
            if not known and any(same):
                self.remove(track_id)
                ended.add(track_id)
        return ended


def _load(path: str | os.PathLike[str], threads: int | None) -> tuple[Any, StepSettings]:
    try:
        import onnxruntime
    except ImportError:
        raise UserError("onnxruntime is not installed; pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        return session, StepSettings.from_json(session.get_modelmeta().custom_metadata_map[KEY])
    except Exception as error:  # onnxruntime raises a dozen kinds
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: not an exported step ('{KEY}' expected): {type(error).__name__} {reason}") from None


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, ...) -> (H_in, W_in, ...) = ``size``, as ``VideoSettings.resize``."""
    if image.shape[:2] == size:
        return image
    interpolation = cv2.INTER_AREA if size[0] < image.shape[0] else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], interpolation=interpolation)


def _interpolation(scale: float, out: int, small: int) -> np.ndarray:
    """float32 (out, small): bilinear upsampling along one side, as ``modeling.masks.upsample_logits``.

    Args:
        scale: 4 * small / input size: the padded side over the side without padding.
        out: size after cropping the padding.
        small: size before.
    """
    place = np.maximum((np.arange(out) + 0.5) * (small / (out * scale)) - 0.5, 0)
    low = np.minimum(place.astype(int), small - 1)
    high = np.minimum(low + 1, small - 1)
    weights = np.zeros((out, small), np.float32)
    share = (place - low).astype(np.float32)
    np.add.at(weights, (np.arange(out), low), 1 - share)
    np.add.at(weights, (np.arange(out), high), share)
    return weights


def _id_map(logits: np.ndarray, ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """int32 (H, W): the id with the largest logit at each pixel, 0 where all are <= 0."""
    if not len(logits):
        return np.zeros(size, np.int32)
    best = logits.argmax(axis=0)
    covered = np.take_along_axis(logits, best[None], axis=0)[0] > 0
    return np.where(covered, ids[best], 0).astype(np.int32)
