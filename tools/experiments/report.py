# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The report of an experiment: a table (Markdown and JSON) and a plot, with the paper's numbers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ausm_d2.engine import results_table
from ausm_d2.evaluation.evaluators import Scores
from ausm_d2.io import atomic_write

_PLOTTED = {"AP": ("segm", "AP"), "J&F": ("vos", "J&F"), "G": ("vos", "G")}
_LEAST_SPAN = 4  # points: minimum range of a plot's axis


class Row(NamedTuple):
    """One evaluation."""

    dataset: str
    setting: str
    scores: Scores  # percent, by measure and name
    seed: int | None = None  # of the training, where there is one


@dataclass(frozen=True)
class Paper:
    """The paper's results for the same experiment."""

    source: str
    measure: str
    values: Mapping[str, Mapping[str, float]]  # by data set, then by setting

    def table(self) -> str:
        """Markdown; a column per setting."""
        settings = list(dict.fromkeys(setting for by_setting in self.values.values() for setting in by_setting))
        lines = [["", *settings], ["---"] * (1 + len(settings))]
        for dataset, by_setting in self.values.items():
            lines.append([dataset, *(str(by_setting.get(setting, "")) for setting in settings)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass
class Report:
    """Rows in the order of their settings, and their presentation."""

    title: str
    axis: str  # label of the axis of settings
    rows: list[Row] = field(default_factory=list)
    paper: Paper | None = None
    ordered: bool = True  # the settings are steps of one quantity: points are joined
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Title, measured table, notes, the paper's table."""
        parts = [f"# {self.title}", "Measured:", measured_table(self.rows), *self.notes]
        if self.paper is not None:
            parts += [f"The paper's {self.paper.measure} ({self.paper.source}):", self.paper.table()]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Write ``table.md``, ``table.json`` and ``plot.png``, each completely or not at all.

        Args:
            folder: created if missing.
            settings: arguments of the command, stored in the JSON.
        """
        with atomic_write(folder / "table.md") as path:
            path.write_text(self.markdown(), encoding="utf-8")
        data = {
            "title": self.title,
            "settings": settings,
            "rows": [row._asdict() for row in self.rows],
            "notes": self.notes,
            "paper": None if self.paper is None else vars(self.paper),
        }
        with atomic_write(folder / "table.json") as path:
            path.write_text(json.dumps(data, indent=1, default=str) + "\n", encoding="utf-8")
        with atomic_write(folder / "plot.png") as path:
            self.draw().savefig(path, dpi=110)

    def draw(self) -> Figure:
        """One panel per measure, and one for the paper's numbers."""
        measured = [name for name in _PLOTTED if any(_value(row, name) is not None for row in self.rows)]
        panels = len(measured) + (self.paper is not None)
        figure = Figure(figsize=(1 + 3.6 * max(panels, 1), 4), layout="constrained")
        figure.suptitle(self.title)
        axes = figure.subplots(1, max(panels, 1), squeeze=False)[0]
        for panel, name in zip(axes, measured, strict=False):
            points: dict[str, list[tuple[str, float]]] = {}
            for row in self.rows:
                value = _value(row, name)
                if value is not None:
                    points.setdefault(row.dataset, []).append((row.setting, value))
            self._panel(panel, points)
            panel.set(title="measured", ylabel=f"{name}, percent")
        if self.paper is not None:
            self._panel(axes[-1], {name: list(of.items()) for name, of in self.paper.values.items()})
            axes[-1].set(title="the paper", ylabel=self.paper.measure)
        return figure

    def _panel(self, axes: Axes, points: Mapping[str, Sequence[tuple[str, float]]]) -> None:
        """All points (setting, value) of each data set, and their mean by setting."""
        settings = list(dict.fromkeys(setting for of_one in points.values() for setting, _ in of_one))
        for i, (dataset, of_one) in enumerate(points.items()):
            places = [settings.index(setting) for setting, _ in of_one]
            values = np.array([value for _, value in of_one])
            axes.plot(places, values, ".", color=f"C{i}")
            present = sorted(set(places))
            means = [values[np.equal(places, place)].mean() for place in present]
            axes.plot(present, means, "o-" if self.ordered else "o", color=f"C{i}", label=dataset)
        axes.set_xticks(range(len(settings)), settings)
        axes.set_xmargin(0.15 if self.ordered else 0.4)  # names are wider than numbers
        axes.set_xlabel(self.axis)
        axes.margins(y=0.2)
        low, high = axes.get_ylim()
        if high - low < _LEAST_SPAN:  # small differences should look small
            axes.set_ylim((low + high - _LEAST_SPAN) / 2, (low + high + _LEAST_SPAN) / 2)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize="small")


def measured_table(rows: Sequence[Row]) -> str:
    """Markdown, one line per evaluation; with several seeds also one line for their mean."""
    lines: list[tuple[str, str, Scores]] = []
    for (dataset, setting), group in itertools.groupby(rows, lambda row: (row.dataset, row.setting)):
        of_one = list(group)
        for row in of_one:
            lines.append((dataset, setting if row.seed is None else f"{setting}, seed {row.seed}", row.scores))
        if len(of_one) > 1:
            lines.append((dataset, f"{setting}, {len(of_one)} seeds", _together([row.scores for row in of_one])))
    return results_table(lines)


def _together(of_seeds: Sequence[Scores]) -> Scores:
    """Means by measure and name; counts of objects are summed."""
    together: Scores = {}
    for measure, names in of_seeds[0].items():
        share = 1 if measure == "reappearance" else len(of_seeds)
        together[measure] = {name: sum(scores[measure][name] for scores in of_seeds) / share for name in names}
    return together


def _value(row: Row, name: str) -> float | None:
    measure, key = _PLOTTED[name]
    return row.scores.get(measure, {}).get(key)
