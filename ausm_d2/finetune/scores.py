# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Scores of a model on the held-out labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation.evaluator import inference_context
from torch import no_grad

from ausm_d2.checkpoint.checkpointer import AUSMCheckpointer
from ausm_d2.data.build import build_test_loader
from ausm_d2.evaluation.evaluators import as_tracks
from ausm_d2.evaluation.paper import markdown_table
from ausm_d2.evaluation.results import Output
from ausm_d2.evaluation.tracks import Track, true_tracks
from ausm_d2.evaluation.ytvis import ImageEval, TrackEval
from ausm_d2.finetune.labels import HELD
from ausm_d2.meta_arch import AUSM

ANY = "any class"  # all objects as one class
Scores = dict[str, dict[str, float | None]]  # AP and AP50 in percent, by class and for ANY


def score(cfg: CfgNode, weights: str, progress: Callable[[int, int], None] = lambda done, total: None) -> Scores:
    """Unprompted AP and AP50 on the held-out part, of each class and of all objects taken as one class.

    Raises:
        UserError: the weights or data cannot be used.
    """
    model = AUSM(cfg).to(cfg.MODEL.DEVICE)
    AUSMCheckpointer(model, complete=True).load(weights)
    loader = build_test_loader(cfg, HELD)
    metadata = MetadataCatalog.get(HELD)
    measure: type[TrackEval] = TrackEval
    if metadata.task == "image":  # AP ranks all detections; the rules for tracks would leave some out
        measure = ImageEval
        model.video = replace(model.video, birth_iou=1.0, birth_cells=0, duplicate_overlap=1.0, exclusive=False)
    names = list(metadata.thing_classes)
    by_class, of_all = measure(range(len(names))), measure([0])
    with inference_context(model), no_grad():
        for done, [item] in enumerate(loader, start=1):
            output = Output(model([item])[0])
            record = item["record"]
            truth = true_tracks(record)
            by_class.add(record.video_id, truth, as_tracks(record, output.tracks))
            found = as_tracks(record, output.best_classes())
            of_all.add(record.video_id, _as_one(truth), _as_one(found))
            progress(done, len(loader))
    scores = by_class.scores_by_class(names) | of_all.scores_by_class([ANY])
    return {name: {measure: scores[name][measure] for measure in ("AP", "AP50")} for name in scores}


def _as_one(tracks: Sequence[Track]) -> list[Track]:
    """The tracks, all of class 0."""
    return [Track(**{**vars(track), "category_id": 0}) for track in tracks]


def table(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The scores before and after as a Markdown table."""
    rows = []
    for name in before:
        cells = [scores[name][measure] for measure in ("AP50", "AP") for scores in (before, after)]
        rows.append([name, *("not held out" if value is None else f"{value:.1f}" for value in cells)])
    return markdown_table(["Class", "AP50 before", "AP50 after", "AP before", "AP after"], rows)


def without_gain(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The classes that are scored and whose AP50 did not rise."""
    scored = [name for name in before if name != ANY and before[name]["AP50"] is not None]
    return [name for name in scored if not after[name]["AP50"] > before[name]["AP50"]]
