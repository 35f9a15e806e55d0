# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The paper's scores (arXiv 2508.19242), and a table of results beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ausm_d2.evaluation.video_evaluator import Scores

# By data set: its name in the paper, the measure, and the scores of Swin-T and Swin-B in percent; Table 1.
TABLE_1 = {
    "davis_2017_val": ("DAVIS17", "J&F", 76.4, 81.6),
    "mose_val": ("MOSE", "J&F", 58.8, 62.1),
    "youtubevos_2018_val": ("YTVOS18", "G", 79.5, 80.2),
    "youtubevos_2019_val": ("YTVOS19", "G", 78.3, 79.1),
    "ytvis_2019_val": ("YTVIS19", "AP", 54.9, 62.6),
    "ytvis_2021_val": ("YTVIS21", "AP", 52.1, 58.6),
    "ovis_val": ("OVIS", "AP", 39.4, 45.5),
}
# Table 3 and Appendix A, Swin-B: AP with the input played once, twice, three times, or as a spatial traversal.
TABLE_3 = {
    "COCO": {"x1": 34.2, "x2": 34.9, "x3": 35.0, "traversal": 35.9},  # at foreground threshold 0.9
    "YouTube-VIS 2019": {"x1": 62.6, "x2": 63.3, "x3": 63.5},
}
_SETS: dict[str, tuple[str, str, float | None, float]] = {
    **TABLE_1,
    "coco_2017_val": ("COCO", "AP", None, TABLE_3["COCO"]["x1"]),
}
_GROUP = {"AP": "segm", "J&F": "vos", "G": "vos"}


def paper_table(results: Mapping[str, Scores], method: str) -> str:
    """Table 1, and COCO of Table 3, in Markdown: the given results, then the paper's.

    Args:
        results: scores by data set, measure and name.
        method: name of the method.

    Returns:
        The table with a legend; empty if the paper has none of the data sets.
    """
    if not _SETS.keys() & results.keys():
        return ""
    titles, ours, small, large = [""], [method], ["the paper, Swin-T"], ["the paper, Swin-B"]
    for dataset_name, (title, measure, swin_t, swin_b) in _SETS.items():
        titles.append(f"{title} {measure}")
        ours.append(_score(results.get(dataset_name), measure))
        small.append("" if swin_t is None else f"{swin_t:.1f}")
        large.append(f"{swin_b:.1f}")
    notes = "-: not run. submission: labels are not public; its file is in inference/, in the folder of the data set."
    return f"{markdown_table(titles, [ours, small, large])}\n\n{notes}"


def _score(scores: Scores | None, measure: str) -> str:
    if scores is None:
        return "-"
    if not scores:
        return "submission"
    value = scores.get(_GROUP[measure], {}).get(measure)
    return "no ground truth" if value is None else f"{value:.1f}"


def markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
    rows = [titles, ["-" * width for width in widths], *lines]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)
