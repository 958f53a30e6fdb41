# SPDX-License-Identifier: Apache-2.0
"""Robustness curves: a metric against the radius, for runs or a study."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mtr_tf.show import series
from mtr_tf.show import style
from mtr_tf.show import tables

Record = Mapping[str, Any]
_MAX_BANDS = 6  # With more lines than this, no intervals are drawn.
_LINES_PER_PLOT = 3  # Beside the first line; further ones get plots of their own.
_SIZE = (4.1, 2.9)  # Inches, of a small multiple.
_LOW_HEIGHT = 2.4  # Inches, of each of several plots above each other.


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
      label: Its name.
      eps: `[E]`, ascending; 0 means no attack.
      values: `[seeds, E]`, NaN where there is none.
      ends: `[2, seeds, E]`, their intervals over images; None if there are none.
      look: As `style.look` returns it.
    """

    label: str
    eps: np.ndarray
    values: np.ndarray
    ends: np.ndarray | None
    look: Mapping[str, Any]

    def draw(self, axes, label: str, band: bool, **changes: Any) -> None:
        """Draws the mean over seeds and, if asked for, the band around it."""
        if band:
            style.band(axes, self.eps, self.values, self.ends, self.look["color"])
        mean = series.mean(self.values)
        valid = ~np.isnan(mean)
        look = {**self.look, **changes}
        axes.plot(self.eps[valid], mean[valid], label=label, **look)

    @property
    def end(self) -> float:
        """The last mean over seeds that is not NaN; -inf where all are."""
        mean = series.mean(self.values)
        values = mean[~np.isnan(mean)]
        return values[-1] if len(values) else -np.inf


def of_variants(
    title: str, lines: Sequence[Line], facts: Mapping[str, Any], reference: str = ""
) -> Figure:
    """One metric, a line per variant or run, the mean over its seeds.

    Many lines are divided among several plots. Each highlights a few, with the first
    line for comparison, and shows the others in grey.

    Args:
      title: Above the plot.
      lines: The first is what others are compared with.
      facts: "metric", "unit", "better" and "norm", of the records.
      reference: What the values are differences from; empty if they are no differences.
    """
    parts = _parts(lines, not reference)
    short_names = style.short_names(line.label for line in lines)
    width, height = style.SIZE if len(parts) == 1 else (style.SIZE[0], _LOW_HEIGHT)
    size = width + style.legend_room(short_names.values()), height
    figure, grid = style.grid_of(len(parts), 1, size, sharex=True, sharey=True)
    for axes, part in zip(grid[:, 0], parts, strict=True):
        for line in lines:
            if line not in part:
                grey = {"color": "0.8", "marker": "", "lw": 0.8, "zorder": 1}
                line.draw(axes, "_nolegend_", False, **grey)
        for line in part:
            line.draw(axes, short_names[line.label], True)
        axes.set_ylabel(_quantity(facts, "difference" if reference else ""))
        if not reference:
            style.log_y_if_wide(axes)
        style.end_legend(axes, {short_names[line.label]: line.end for line in part})
    radii = sorted({eps for line in lines for eps in line.eps})
    style.radii(axes, radii, facts["norm"])
    for axes in grid[:, 0] if reference else ():
        axes.axhline(0, color="0.3", lw=0.8)
    grey = ["grey: the others"] if len(parts) > 1 else []
    notes = [*style.spelt_out(short_names), *grey]
    return style.finish(figure, title, notes, legend=False)


def _parts(lines: Sequence[Line], repeat: bool) -> list[Sequence[Line]]:
    """The lines of each plot; with `repeat` the first line is in all of them."""
    if len(lines) <= 1 + _LINES_PER_PLOT:
        return [lines]
    reference_lines = list(lines[: int(repeat)])
    other_lines = lines[len(reference_lines) :]
    starts = range(0, len(other_lines), _LINES_PER_PLOT)
    return [
        [*reference_lines, *other_lines[start : start + _LINES_PER_PLOT]]
        for start in starts
    ]


def _quantity(facts: Mapping[str, Any], name: str = "") -> str:
    """The label of the y axis."""
    unit = f" [{facts['unit']}]" if facts.get("unit") else ""
    better = f"\n{facts['better']} is better" if facts.get("better") else ""
    return f"{name or facts['metric']}{unit}{better}"


def save_run(records: Sequence[Record], path: pathlib.Path, more: str = "") -> None:
    """Writes the figure of `of_run` as a PNG file."""
    style.save(lambda: of_run(records, more), path)


def of_run(records: Sequence[Record], more: str = "") -> Figure:
    """Each task's headline metric; a line per attack and group of attacked tasks.

    Args:
      records: As `results.make_records` returns them.
      more: A remark on the attacks, added to the title; may be empty.
    """
    tasks = list(dict.fromkeys(record["task"] for record in records))
    groups = dict.fromkeys("+".join(record["attacked"]) for record in records)
    short_names = style.short_names(groups)
    figure, grid = style.multiples(len(tasks), _SIZE)
    has_faint = has_bands = False
    for axes, task in zip(grid, tasks, strict=True):
        task_records = series.chosen(records, task=task)
        headline = series.chosen(task_records, metric=task_records[0]["metric"])
        lines = _lines(headline)
        with_bands = sum(task in group for _, group in lines) <= _MAX_BANDS
        has_bands |= with_bands
        for (attack, group), line in lines.items():
            is_attacked = task in group
            has_faint |= not is_attacked
            label = f"{attack} on {short_names['+'.join(group)]}"
            changes = {} if is_attacked else {"alpha": 0.4, "lw": 0.8, "ms": 2.5}
            line.draw(axes, label, is_attacked and with_bands, **changes)
        axes.set_title(task)
        axes.set_ylabel(_quantity(headline[0]))
        style.radii(
            axes,
            sorted({0.0, *(r["eps"] for r in headline)}),
            headline[0]["norm"],
        )
        style.log_y_if_wide(axes)
    notes = [tables.about_intervals(records)] if has_bands else []
    notes += style.spelt_out(short_names)
    if has_faint:
        notes.append("thin and pale: attacks on other tasks only")
    title = " and ".join(dict.fromkeys(record["attack"] for record in records))
    title += f"; {more}" if more else ""
    return style.finish(figure, f"Tasks under {title}", notes)


def _lines(records: Sequence[Record]) -> dict[tuple[str, tuple[str, ...]], Line]:
    """A line per attack and group; dashes tell attacks apart, colours groups.

    The records are of one task and metric. Returns {(attack, attacked tasks): line};
    each line begins with the clean value.
    """
    attacks = [name for (name,) in series.distinct(records, "attack")]
    groups = [group for (group,) in series.distinct(records, "attacked")]
    lines = {}
    for attack, group in series.distinct(records, "attack", "attacked"):
        line_records = series.chosen(records, attack=attack, attacked=list(group))
        points = points_of(line_records)
        if len(points) > 1:
            group_index, attack_index = groups.index(group), attacks.index(attack)
            look = style.attack_look(attack_index, group_index, len(attacks) == 1)
            lines[attack, group] = from_points(attack, points, look)
    return lines


def points_of(records: Sequence[Record]) -> list[tuple[float, float | None, Any, Any]]:
    """(eps, value, low, high) of each radius, ascending, first the clean one at 0.

    The records, one or more, are of one task and metric under one attack; those at a
    radius of 0 are left out.
    """
    clean = (0.0, records[0]["clean"], *records[0]["clean_interval"])
    attacked = [
        (record["eps"], record["attacked_value"], *record["attacked_interval"])
        for record in records
        if record["eps"]
    ]
    return [clean, *sorted(attacked, key=lambda point: point[0])]


def from_points(label: str, points: Sequence[tuple], look: Mapping[str, Any]) -> Line:
    """A line of one seed from (eps, value, low, high) of each radius."""
    eps, values, low, high = np.array(points, float).T  # None becomes NaN.
    return Line(label, eps, values[np.newaxis], np.array([[low], [high]]), look)
