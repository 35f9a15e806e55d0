# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A session as JSON for the page."""

from __future__ import annotations

from typing import Any

from ausm_d2.app.clip import Clip
from ausm_d2.app.plan import Plan
from ausm_d2.app.records import Records
from ausm_d2.visualization import colour

_LIKE = 0.1  # scores that differ by less are one stretch of the timeline


def describe_clip(clip: Clip) -> dict[str, Any]:
    """The video: ``view`` is the size of the JPEGs, ``width`` and ``height`` that of coordinates and masks."""
    size = {"width": clip.width, "height": clip.height, "view": clip.view}
    return {"name": clip.name, "count": clip.count, "fps": float(clip.fps), **size}


def describe_plan(plan: Plan, records: Records) -> dict[str, Any]:
    """Objects, the frames in which they are visible, and their prompts by frame."""
    spans = _spans(records.seen)
    known = sorted((plan.given | spans.keys()) - plan.removed)
    prompts = {
        frame: {object_id: [vars(each) for each in several] for object_id, several in by_id.items()}
        for frame, by_id in plan.prompts.items()
    }
    objects = [
        {
            "id": each,
            "name": plan.names.get(each) or records.names.get(each, "object"),
            "colour": "#{2:02x}{1:02x}{0:02x}".format(*colour(each)),
            "hidden": each in plan.hidden,
            "spans": spans.get(each, []),
        }
        for each in known
    ]
    return {"objects": objects, "prompts": prompts, "find": plan.find_at is not None}


def _spans(seen: dict[int, dict[int, float]]) -> dict[int, list[list[float]]]:
    """Where each object is visible: [first frame, last frame, score] of each interval, by id."""
    spans: dict[int, list[list[float]]] = {}
    for frame in sorted(seen):
        for object_id, score in seen[frame].items():
            own = spans.setdefault(object_id, [])
            if own and own[-1][1] == frame - 1 and abs(own[-1][2] - score) < _LIKE:
                own[-1][1] = frame
            else:
                own.append([frame, frame, round(score, 2)])
    return spans
