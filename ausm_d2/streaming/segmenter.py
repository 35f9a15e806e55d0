# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Segments a recorded video with a stream and returns the result that evaluators take. Frames are read one by one,
masks are stored as RLE.

Shape shorthand:
    T: frames of the video
    K: classes of the label set
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ausm_d2.data.items import TestVideo, TrackEntry, VideoResult
from ausm_d2.data.video import VideoRecord
from ausm_d2.masks.rle import Rle, encode
from ausm_d2.modeling.masks import without_overlaps
from ausm_d2.modeling.network import AUSMNetwork
from ausm_d2.streaming.ahead import encode_ahead
from ausm_d2.streaming.groups import GroupedStream
from ausm_d2.streaming.inference import prepared_for_inference
from ausm_d2.streaming.output import FrameOutput
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.stream import Stream
from ausm_d2.streaming.visits import Visit, crop, visits


def segment_video(model: AUSMNetwork, item: TestVideo, settings: VideoSettings) -> VideoResult:
    """Segment one test item.

    Args:
        model: in evaluation mode.
        item: the video and its task.
        settings: from the config; the item's data set may override threshold and top-k.
    """
    record = item["record"]
    settings = settings.for_item(item)
    with prepared_for_inference(model, settings):
        if item["task"] == "vos":
            return _segment_prompted(model, record, settings, overlap=item["overlap"])
        return _segment_unprompted(model, record, settings, label_set=item["label_set"])


def _segment_unprompted(
    model: AUSMNetwork, record: VideoRecord, settings: VideoSettings, *, label_set: str
) -> VideoResult:
    stream = Stream(model, settings, label_set=label_set, detect=True)
    tracks = VideoTracks(record.length)
    order = list(visits(record.length, repeat=settings.repeat, spatial_traversal=settings.spatial_traversal))
    with closing(encode_ahead(model, settings, _shown(record, order))) as frames:
        for visit, frame in zip(order, frames, strict=True):
            tracks.keep(stream.step(frame), stream, visit)
    return {"video_id": record.video_id, "tracks": best_tracks(tracks.masks, tracks.scores, settings)}


def _shown(record: VideoRecord, order: Iterable[Visit]) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3), RGB, of each visit."""
    for visit in order:
        frame = record.read_frame(visit.frame)
        yield frame if visit.corner is None else crop(frame, visit.corner)


@dataclass
class VideoTracks:
    """The tracks of a video so far, masks as RLE at frame size."""

    length: int  # T
    masks: dict[int, list[Rle | None]] = field(default_factory=dict)  # T masks per track
    scores: dict[int, Tensor] = field(default_factory=dict)  # (K) per track

    def keep(self, output: FrameOutput, stream: Stream, visit: Visit) -> None:
        """Store scores and masks of the latest step of ``stream`` if the visit counts; else reset the stream's scores,
        so that they are averaged over visits that count only.
        """
        if not visit.counts:
            stream.forget_scores()
            return
        for row, track_id in enumerate(output.track_ids):
            self.scores[track_id] = output.mean_probabilities[row]
        shown = shown_rows(output, stream.settings.topk if stream.settings.topk_scope == "frame" else None)
        for track_id, mask in zip(shown.track_ids, (stream.logits(shown) > 0).cpu().numpy(), strict=True):
            if mask.any():
                self.masks.setdefault(track_id, [None] * self.length)[visit.frame] = encode(mask)

    def copy(self) -> VideoTracks:
        """An independent copy."""
        masks = {track_id: list(of) for track_id, of in self.masks.items()}
        return VideoTracks(self.length, masks, dict(self.scores))


def shown_rows(output: FrameOutput, topk: int | None = None) -> FrameOutput:
    """All prompted rows, and the visible rows among the ``topk`` most confident ones (None: all; Sec. 4)."""
    best = output.probabilities.amax(dim=1).argsort(descending=True)[:topk]
    shown = output.prompted.clone()
    shown[best] |= output.visible[best]
    return output.select(shown.nonzero()[:, 0].tolist())


def best_tracks(
    masks: dict[int, list[Rle | None]], scores: dict[int, Tensor], settings: VideoSettings
) -> list[TrackEntry]:
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
) -> VideoResult:
    prompts = record.prompts()
    stream = GroupedStream(Stream(model, settings, label_set=settings.prompt_label_set, detect=False))
    objects: dict[int, list[Rle | None]] = {
        object_id: [None] * record.length for by_id in prompts.values() for object_id in by_id
    }
    waiting = dict(prompts)
    order = list(visits(record.length, repeat=settings.repeat, spatial_traversal=False))
    given = prompts.get(order[0].frame, {}).values()
    with closing(encode_ahead(model, settings, _shown(record, order), given=given)) as frames:
        for visit, frame in zip(order, frames, strict=True):
            output = stream.step(frame, waiting.pop(visit.frame, {}))
            if not visit.counts:
                continue
            predicted = model.prompt_index == "zero" and visit.frame == 0
            logits = stream.logits(output, None if predicted else prompts.get(visit.frame))
            masks = (logits > 0 if overlap else without_overlaps(logits)).cpu().numpy()
            for object_id, mask in zip(output.track_ids, masks, strict=True):
                if mask.any():
                    objects[object_id][visit.frame] = encode(mask)
    return {"video_id": record.video_id, "objects": objects}
