# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A stored video through the stream, to the result an evaluator takes. Frames are read one by one, masks leave as RLE.

Shape shorthand:
    H, W: stored frame size; H_in, W_in: the model's input size
    H4, W4: mask size, stride 4 of the padded input
    R: rows of a result
    K: classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from torch import Tensor

from ..data.video import VideoRecord
from ..errors import UserError
from ..evaluation.rle import Rle, decode, encode, to_rle
from .refine import crop, visits
from .stream import FrameOutput, Stream

if TYPE_CHECKING:  # the model imports this module
    from ..meta_arch import AUSM


@dataclass
class VideoSettings:
    """How videos are streamed; TEST.AUSM and INPUT.*_TEST of the config."""

    min_size: int  # short side at the model's input, pixels; 0: as stored
    max_size: int  # long side at most
    fg_threshold: float
    topk: int
    topk_scope: str  # "video" or "frame"
    prompt_head: str  # of prompted rows
    amp: bool  # bfloat16 autocast
    seed: int
    repeat: int
    spatial_traversal: bool

    @classmethod
    def from_config(cls, cfg: CfgNode) -> VideoSettings:
        test = cfg.TEST.AUSM
        if test.TOPK_SCOPE not in ("video", "frame"):
            raise UserError(f"TEST.AUSM.TOPK_SCOPE: '{test.TOPK_SCOPE}' is not one of video, frame")
        return cls(
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            fg_threshold=test.FG_THRESHOLD,
            topk=test.TOPK,
            topk_scope=test.TOPK_SCOPE,
            prompt_head=cfg.MODEL.AUSM.PROMPT_HEAD,
            amp=test.AMP,
            seed=test.SEED,
            repeat=test.REPEAT,
            spatial_traversal=test.SPATIAL_TRAVERSAL,
        )

    def resize(self, frame: np.ndarray) -> Tensor:
        """uint8 (H, W, 3) -> uint8 (3, H_in, W_in)."""
        height, width = frame.shape[:2]
        if self.min_size > 0:
            height, width = ResizeShortestEdge.get_output_shape(height, width, self.min_size, self.max_size)
            if (height, width) != frame.shape[:2]:
                frame = cv2.resize(frame, (width, height), interpolation=_interpolation(height, frame.shape[0]))
        return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))

    def resize_mask(self, mask: np.ndarray, size: tuple[int, int]) -> Tensor:
        """bool (H, W) -> bool (H_in, W_in) = ``size``: the pixels that are covered by half."""
        if mask.shape != size:
            interpolation = _interpolation(size[0], mask.shape[0])
            mask = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=interpolation) >= 0.5
        return torch.from_numpy(mask)


def _interpolation(new: int, old: int) -> int:
    return cv2.INTER_AREA if new < old else cv2.INTER_LINEAR


def upsample_logits(logits: Tensor, input_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Mask logits (R, H4, W4) of a padded input of ``input_size`` = (H_in, W_in) -> (R, H, W) = ``size``, in one step."""
    if not len(logits):
        return logits.new_zeros(0, *size)
    padded = [side * 4 for side in logits.shape[-2:]]
    if tuple(padded) == input_size:
        return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    # The padding's share of the output, rounded up, so that what is cut off is padding only.
    scale = [out / side for out, side in zip(size, input_size, strict=True)]
    grid = [int(np.ceil(side * s - 1e-6)) for side, s in zip(padded, scale, strict=True)]
    out = F.interpolate(
        logits[None], scale_factor=[4 * s for s in scale], mode="bilinear", align_corners=False,
        recompute_scale_factor=False,
    )[0]  # fmt: skip
    out = F.pad(out, (0, max(0, grid[1] - out.shape[2]), 0, max(0, grid[0] - out.shape[1])), mode="replicate")
    return out[:, : size[0], : size[1]]


def without_overlaps(logits: Tensor) -> Tensor:
    """(R, H, W) logits -> bool (R, H, W): every pixel to its largest row, background where every logit is <= 0."""
    masks = logits > 0
    if len(logits) > 1:
        best = logits.argmax(dim=0)
        masks &= best[None] == torch.arange(len(logits), device=logits.device)[:, None, None]
    return masks


def segment_video(model: AUSM, item: dict[str, Any], settings: VideoSettings) -> dict[str, Any]:
    """Stream one test item.

    Args:
        model: in evaluation mode.
        item: "record", "dataset_name", "task", "head", "overlap".
        settings: how.

    Returns:
        For tasks "vis" and "image": {"video_id", "tracks": [{"track_id", "category_id", "score", "segmentations"}]}.
        For "vos": {"video_id", "objects": {object_id: segmentations}}. Segmentations are T RLEs of the stored size,
        None where there is no mask.
    """
    record: VideoRecord = item["record"]
    if item["task"] == "vos":
        return _segment_prompted(model, record, settings, overlap=item["overlap"])
    return _segment_unprompted(model, record, settings, head=item["head"])


def _segment_unprompted(model: AUSM, record: VideoRecord, settings: VideoSettings, *, head: str) -> dict[str, Any]:
    stream = Stream(model, head=head, detect=True, fg_threshold=settings.fg_threshold, seed=settings.seed)
    masks: dict[int, list[Rle | None]] = {}
    scores: dict[int, Tensor] = {}
    size = (record.height, record.width)
    for visit in visits(record.length, repeat=settings.repeat, spatial_traversal=settings.spatial_traversal):
        frame = record.frames[visit.frame]
        if visit.corner is not None:
            frame = crop(frame, visit.corner)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.amp):
            output = stream.step(settings.resize(frame))
        rows = range(len(output.track_ids))
        if settings.topk_scope == "frame":
            rows = output.probabilities.amax(dim=1).argsort(descending=True)[: settings.topk].tolist()
        for row, track_id in enumerate(output.track_ids):
            scores[track_id] = output.mean_probabilities[row]
        if visit.counts:
            for row, mask in zip(rows, _masks(output, list(rows), stream, size), strict=True):
                if mask.any():
                    masks.setdefault(output.track_ids[row], [None] * record.length)[visit.frame] = encode(mask)
    return {"video_id": record.video_id, "tracks": _best(masks, scores, settings)}


def _masks(output: FrameOutput, rows: list[int], stream: Stream, size: tuple[int, int]) -> np.ndarray:
    """bool (R, H, W) of the given rows."""
    assert stream.size is not None
    return (upsample_logits(output.mask_logits[rows], stream.size, size) > 0).cpu().numpy()


def _best(masks: dict[int, list[Rle | None]], scores: dict[int, Tensor], settings: VideoSettings) -> list[dict]:
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


def given_masks(record: VideoRecord) -> dict[int, dict[int, np.ndarray]]:
    """The prompts of a record: bool (H, W) masks by frame, then by object id.

    Raises:
        UserError: if an object has no mask in the frame it is given at.
    """
    if record.masks is None or record.prompt_frames is None:
        raise UserError(f"video {record.name}: has no masks to prompt with")
    prompts: dict[int, dict[int, np.ndarray]] = {}
    for object_id, frame in record.prompt_frames.items():
        rle = to_rle(record.masks.read(frame).get(object_id), record.height, record.width)
        if rle is None:
            raise UserError(f"video {record.name}: object {object_id} has no mask in frame {frame}, where it is given")
        prompts.setdefault(frame, {})[object_id] = decode(rle)
    return prompts


def _segment_prompted(
    model: AUSM, record: VideoRecord, settings: VideoSettings, *, overlap: bool
) -> dict[str, Any]:
    prompts = given_masks(record)
    size = (record.height, record.width)
    stream = Stream(model, head=settings.prompt_head, detect=False, fg_threshold=settings.fg_threshold, seed=settings.seed)
    objects: dict[int, list[Rle | None]] = {
        object_id: [None] * record.length for by_id in prompts.values() for object_id in by_id
    }
    waiting = dict(prompts)
    for visit in visits(record.length, repeat=settings.repeat, spatial_traversal=False):
        image = settings.resize(record.frames[visit.frame])
        given = waiting.pop(visit.frame, {})
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.amp):
            output = stream.step(
                image,
                {i: settings.resize_mask(mask, (image.shape[1], image.shape[2])) for i, mask in given.items()},
            )
        if not visit.counts:
            continue
        masks = frame_masks(output, stream, size, overlap=overlap)
        exact = prompts.get(visit.frame, {}) if model.prompt_index == "frame" else {}
        for object_id, mask in masks.items():
            mask = exact.get(object_id, mask)
            if mask.any():
                objects[object_id][visit.frame] = encode(mask)
    return {"video_id": record.video_id, "objects": objects}


def frame_masks(output: FrameOutput, stream: Stream, size: tuple[int, int], *, overlap: bool) -> dict[int, np.ndarray]:
    """The masks of all rows of a frame at its stored size, by track id: bool (H, W)."""
    assert stream.size is not None
    logits = upsample_logits(output.mask_logits, stream.size, size)
    masks = (logits > 0 if overlap else without_overlaps(logits)).cpu().numpy()
    return dict(zip(output.track_ids, masks, strict=True))
