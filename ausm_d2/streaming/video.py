# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A stored video through the stream, to the result an evaluator takes. Frames are read one by one, masks leave as RLE.

Shape shorthand:
    H, W: stored frame size; H_in, W_in: the model's input size
    H4, W4: mask size, stride 4 of the padded input
    R: rows of a result
    K: classes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from torch import Tensor

from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import Rle, encode
from ausm_d2.modeling.masks import upsample_logits, without_overlaps
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.streaming.refine import Visit, crop, visits
from ausm_d2.streaming.stream import FrameOutput, Stream


@dataclass
class VideoSettings:
    """How videos are streamed; TEST.AUSM and INPUT.*_TEST of the config."""

    min_size: int  # short side at the model's input, pixels; 0: as stored
    max_size: int  # long side at most
    fg_threshold: float
    fg_thresholds: Mapping[str, float]  # of data sets that have another one
    topk: int | None  # None: the data set's own
    topk_scope: str  # "video" or "frame"
    prompt_label_set: str  # of prompted rows
    amp: bool  # bfloat16 autocast
    cuda_graph: bool  # capture the step (on CUDA only)
    seed: int
    repeat: int
    spatial_traversal: bool

    @classmethod
    def from_config(cls, cfg: CfgNode) -> VideoSettings:
        test = cfg.TEST.AUSM
        if test.TOPK_SCOPE not in ("video", "frame"):
            raise UserError(f"TEST.AUSM.TOPK_SCOPE: '{test.TOPK_SCOPE}' is not one of video, frame")
        if not 0 <= test.FG_THRESHOLD <= 1:
            raise UserError(f"TEST.AUSM.FG_THRESHOLD: {test.FG_THRESHOLD}, expected a probability, from 0 to 1")
        for entry in test.FG_THRESHOLDS:
            good = isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], int | float)
            if not good or not 0 <= entry[1] <= 1:
                raise UserError(f"TEST.AUSM.FG_THRESHOLDS: {entry!r}, expected [data set, a probability from 0 to 1]")
        for key, value, least in (
            ("TEST.AUSM.TOPK", test.TOPK, 0),
            ("TEST.AUSM.REPEAT", test.REPEAT, 1),
            ("INPUT.MIN_SIZE_TEST", cfg.INPUT.MIN_SIZE_TEST, 0),
        ):
            if value < least:
                raise UserError(f"{key}: {value}, expected {least} or more")
        return cls(
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            fg_threshold=test.FG_THRESHOLD,
            fg_thresholds={str(name): float(value) for name, value in test.FG_THRESHOLDS},
            topk=test.TOPK or None,
            topk_scope=test.TOPK_SCOPE,
            prompt_label_set=cfg.MODEL.AUSM.PROMPT_LABEL_SET,
            amp=test.AMP,
            cuda_graph=test.CUDA_GRAPH,
            seed=test.SEED,
            repeat=test.REPEAT,
            spatial_traversal=test.SPATIAL_TRAVERSAL,
        )

    def for_item(self, item: Mapping[str, Any]) -> VideoSettings:
        """The settings for a test item: its data set's threshold and, unless the config has one, its ``topk``."""
        threshold = self.fg_thresholds.get(item["dataset_name"], self.fg_threshold)
        return replace(self, fg_threshold=threshold, topk=self.topk or item["topk"])

    def resize(self, frame: np.ndarray) -> Tensor:
        """uint8 (H, W, 3) -> uint8 (3, H_in, W_in)."""
        height, width = frame.shape[:2]
        if self.min_size > 0:
            height, width = ResizeShortestEdge.get_output_shape(height, width, self.min_size, self.max_size)
            if (height, width) != frame.shape[:2]:
                frame = cv2.resize(frame, (width, height), interpolation=_interpolation(height, frame.shape[0]))
        return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))

    def resize_mask(self, mask: np.ndarray, size: tuple[int, int]) -> Tensor:
        """bool (H, W) -> bool (H_in, W_in) = ``size``: the pixels that are covered by half, or else the most."""
        if mask.shape != size:
            interpolation = _interpolation(size[0], mask.shape[0])
            coverage = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=interpolation)
            mask = coverage >= 0.5
            if not mask.any():
                mask = (coverage == coverage.max()) & (coverage > 0)
        return torch.from_numpy(mask)


def _interpolation(new: int, old: int) -> int:
    return cv2.INTER_AREA if new < old else cv2.INTER_LINEAR


class FrameStream:
    """A stream that takes frames as they are stored, and gives masks of their size."""

    def __init__(self, model: AUSMNetwork, settings: VideoSettings, *, label_set: str, detect: bool) -> None:
        """
        Args:
            model: in evaluation mode.
            settings: how frames are resized and the stream is run.
            label_set, detect: as for :class:`Stream`.
        """
        self.settings = settings
        self.stream = Stream(
            model,
            label_set=label_set,
            detect=detect,
            fg_threshold=settings.fg_threshold,
            seed=settings.seed,
            cuda_graph=settings.cuda_graph,
        )
        self.size: tuple[int, int] | None = None  # (H, W)

    def step(self, frame: np.ndarray, prompts: Mapping[int, np.ndarray] | None = None) -> FrameOutput:
        """The next frame.

        Args:
            frame: uint8 (H, W, 3), RGB.
            prompts: bool (H, W) masks of objects given at this frame, by id.

        Raises:
            UserError: if the frame's size differs from the frames before, or a prompt is unusable.
        """
        size = frame.shape[:2]
        if self.size not in (None, size):
            assert self.size is not None
            raise UserError(
                f"a frame of {size[1]}x{size[0]} pixels follows frames of {self.size[1]}x{self.size[0]}: "
                "all frames of a video have one size"
            )
        image = self.settings.resize(frame)
        given = self._resized(prompts or {}, (image.shape[1], image.shape[2]))
        with torch.autocast(self.stream.model.device.type, torch.bfloat16, enabled=self.settings.amp):
            output = self.stream.step(image, given)
        self.size = size
        return output

    def add(self, prompts: Mapping[int, np.ndarray]) -> None:
        """Objects given at the latest frame: bool (H, W) masks by id; see :meth:`Stream.add`."""
        assert self.stream.size is not None
        self.stream.add(self._resized(prompts, self.stream.size))

    def _resized(self, prompts: Mapping[int, np.ndarray], size: tuple[int, int]) -> dict[int, Tensor]:
        return {object_id: self.settings.resize_mask(mask, size) for object_id, mask in prompts.items()}

    def logits(self, output: FrameOutput, given: Mapping[int, np.ndarray] | None = None) -> Tensor:
        """The mask logits of all rows at the size of the frame.

        Args:
            output: of the latest step.
            given: bool (H, W) by id: masks that are the output, exactly, and win over all others.

        Returns:
            (R, H, W).
        """
        assert self.size is not None and self.stream.size is not None
        logits = upsample_logits(output.mask_logits, self.stream.size, self.size)
        for row, track_id in enumerate(output.track_ids):
            if given and track_id in given:
                mask = torch.from_numpy(given[track_id]).to(logits.device)
                logits[row] = torch.where(mask, torch.inf, -torch.inf)
        return logits


def segment_video(model: AUSMNetwork, item: dict[str, Any], settings: VideoSettings) -> dict[str, Any]:
    """Stream one test item.

    Args:
        model: in evaluation mode.
        item: "record", "dataset_name", "task", "label_set", "overlap", "topk".
        settings: how.

    Returns:
        For tasks "vis" and "image": {"video_id", "tracks": [{"track_id", "category_id", "score", "segmentations"}]}.
        For "vos": {"video_id", "objects": {object_id: segmentations}}. Segmentations are T RLEs of the stored size,
        None where there is no mask.
    """
    record: VideoRecord = item["record"]
    settings = settings.for_item(item)
    with torch.autocast(
        model.device.type, torch.bfloat16, enabled=settings.amp
    ):  # converts weights once a video, without a CUDA graph
        if item["task"] == "vos":
            return _segment_prompted(model, record, settings, overlap=item["overlap"])
        return _segment_unprompted(model, record, settings, label_set=item["label_set"])


def _segment_unprompted(
    model: AUSMNetwork, record: VideoRecord, settings: VideoSettings, *, label_set: str
) -> dict[str, Any]:
    stream = FrameStream(model, settings, label_set=label_set, detect=True)
    tracks = VideoTracks(record.length)
    for visit in visits(record.length, repeat=settings.repeat, spatial_traversal=settings.spatial_traversal):
        frame = record.read_frame(visit.frame)
        if visit.corner is not None:
            frame = crop(frame, visit.corner)
        tracks.keep(stream.step(frame), stream, visit)
    return {"video_id": record.video_id, "tracks": best_tracks(tracks.masks, tracks.scores, settings)}


@dataclass
class VideoTracks:
    """What a stream has found in a video so far, masks as RLE of the stored size."""

    length: int  # T
    masks: dict[int, list[Rle | None]] = field(default_factory=dict)  # T by track
    scores: dict[int, Tensor] = field(default_factory=dict)  # (K) by track

    def keep(self, output: FrameOutput, stream: FrameStream, visit: Visit) -> None:
        """Take over the scores of the latest step of ``stream`` and, if the visit counts, the masks it shows."""
        for row, track_id in enumerate(output.track_ids):
            self.scores[track_id] = output.mean_probabilities[row]
        if not visit.counts:
            return
        shown = shown_rows(output, stream.settings.topk if stream.settings.topk_scope == "frame" else None)
        for track_id, mask in zip(shown.track_ids, (stream.logits(shown) > 0).cpu().numpy(), strict=True):
            if mask.any():
                self.masks.setdefault(track_id, [None] * self.length)[visit.frame] = encode(mask)

    def copy(self) -> VideoTracks:
        """The same tracks, to go on by themselves."""
        masks = {track_id: list(of) for track_id, of in self.masks.items()}
        return VideoTracks(self.length, masks, dict(self.scores))


def shown_rows(output: FrameOutput, topk: int | None = None) -> FrameOutput:
    """Given objects, and the tracks whose masks are not empty, of all or of the ``topk`` surest rows (Sec. 4)."""
    best = output.probabilities.amax(dim=1).argsort(descending=True)[:topk]
    shown = output.prompted.clone()
    shown[best] |= output.visible[best]
    return output.select(shown.nonzero()[:, 0].tolist())


def best_tracks(masks: dict[int, list[Rle | None]], scores: dict[int, Tensor], settings: VideoSettings) -> list[dict]:
    """The result entries of a video, best first: the top (track, class) pairs, or every track with its best class."""
    tracks = list(masks)
    if not tracks:
        return []
    table = torch.stack([scores[track] for track in tracks])  # (tracks, K)
    if settings.topk_scope == "frame":
        pairs = [(row, int(table[row].argmax())) for row in table.amax(dim=1).argsort(descending=True).tolist()]
    else:
        best = table.flatten().argsort(descending=True)[: settings.topk].tolist()
        pairs = [divmod(index, table.shape[1]) for index in best]
    return [
        {
            "track_id": tracks[row],
            "category_id": category,
            "score": float(table[row, category]),
            "segmentations": masks[tracks[row]],
        }
        for row, category in pairs
    ]


def _segment_prompted(
    model: AUSMNetwork, record: VideoRecord, settings: VideoSettings, *, overlap: bool
) -> dict[str, Any]:
    prompts = record.prompts()
    stream = FrameStream(model, settings, label_set=settings.prompt_label_set, detect=False)
    objects: dict[int, list[Rle | None]] = {
        object_id: [None] * record.length for by_id in prompts.values() for object_id in by_id
    }
    waiting = dict(prompts)
    for visit in visits(record.length, repeat=settings.repeat, spatial_traversal=False):
        output = stream.step(record.read_frame(visit.frame), waiting.pop(visit.frame, {}))
        if not visit.counts:
            continue
        predicted = model.prompt_index == "zero" and visit.frame == 0
        logits = stream.logits(output, None if predicted else prompts.get(visit.frame))
        masks = (logits > 0 if overlap else without_overlaps(logits)).cpu().numpy()
        for object_id, mask in zip(output.track_ids, masks, strict=True):
            if mask.any():
                objects[object_id][visit.frame] = encode(mask)
    return {"video_id": record.video_id, "objects": objects}
