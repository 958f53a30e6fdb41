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
_MOST_BANDS = 6  # More lines than that are drawn without their intervals.
_TOGETHER = 3  # Lines in one plot beside the first; more become plots of their own.
_SIZE = (4.1, 2.9)  # Inches, of a small multiple.
_LOW = 2.4  # The height where several stand above each other.


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
      label: Its name.
      eps: `[E]`, growing; 0 is without an attack.
      values: `[seeds, E]`, NaN where there is none.
      ends: `[2, seeds, E]`, their intervals over images; None: none.
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
        known = ~np.isnan(mean)
        changed = {**self.look, **changes}
        axes.plot(self.eps[known], mean[known], label=label, **changed)

    @property
    def end(self) -> float:
        """The last mean that is known."""
        mean = series.mean(self.values)
        known = mean[~np.isnan(mean)]
        return known[-1] if len(known) else -np.inf


def of_variants(
    title: str, lines: Sequence[Line], facts: Mapping[str, Any], reference: str = ""
) -> Figure:
    """One metric, a line per variant or run, the mean over its seeds.

    Of many lines a few stand out in each of several plots, with the first for
    comparison; there the others are grey.

    Args:
      title: Above the plot.
      lines: The first is what others are compared with.
      facts: "metric", "unit", "better" and "norm", of the records.
      reference: What values are differences from; empty: they are none.
    """
    parts = _parts(lines, not reference)
    short = style.short_names(line.label for line in lines)
    width, height = style.SIZE if len(parts) == 1 else (style.SIZE[0], _LOW)
    size = width + style.legend_room(short.values()), height
    figure, grid = style.grid_of(len(parts), 1, size, sharex=True, sharey=True)
    for axes, part in zip(grid[:, 0], parts, strict=True):
        for line in lines:
            if line not in part:
                grey = {"color": "0.8", "marker": "", "lw": 0.8, "zorder": 1}
                line.draw(axes, "_nolegend_", False, **grey)
        for line in part:
            line.draw(axes, short[line.label], True)
        axes.set_ylabel(_quantity(facts, "difference" if reference else ""))
        if not reference:
            style.log_y_if_wide(axes)
        style.end_legend(axes, {short[line.label]: line.end for line in part})
    radii = sorted({eps for line in lines for eps in line.eps})
    style.radii(axes, radii, facts["norm"])
    for axes in grid[:, 0] if reference else ():
        axes.axhline(0, color="0.3", lw=0.8)
    grey = ["grey: the others"] if len(parts) > 1 else []
    notes = [*style.spelt_out(short), *grey]
    return style.finish(figure, title, notes, legend=False)


def _parts(lines: Sequence[Line], repeat: bool) -> list[Sequence[Line]]:
    """The lines of each plot; `repeat`: the first is in all of them."""
    if len(lines) <= 1 + _TOGETHER:
        return [lines]
    first = list(lines[: int(repeat)])
    others = lines[len(first) :]
    starts = range(0, len(others), _TOGETHER)
    return [[*first, *others[start : start + _TOGETHER]] for start in starts]


def _quantity(facts: Mapping[str, Any], instead: str = "") -> str:
    """What stands along y."""
    unit = f" [{facts['unit']}]" if facts.get("unit") else ""
    better = f"\n{facts['better']} is better" if facts.get("better") else ""
    return f"{instead or facts['metric']}{unit}{better}"


def save_run(records: Sequence[Record], path: pathlib.Path, more: str = "") -> None:
    """Draws what `of_run` does into a PNG file."""
    style.save(lambda: of_run(records, more), path)


def of_run(records: Sequence[Record], more: str = "") -> Figure:
    """Each task's headline metric; a line per attack and group of attacked tasks.

    Args:
      records: As `results.make_records` returns them.
      more: What else is to be said of the attacks, in the title; empty: nothing.
    """
    tasks = list(dict.fromkeys(record["task"] for record in records))
    groups = dict.fromkeys("+".join(record["attacked"]) for record in records)
    short = style.short_names(groups)
    figure, grid = style.multiples(len(tasks), _SIZE)
    faint = bands = False
    for axes, task in zip(grid, tasks, strict=True):
        of_task = series.chosen(records, task=task)
        chosen = series.chosen(of_task, metric=of_task[0]["metric"])
        lines = _lines(chosen)
        few = sum(task in group for _, group in lines) <= _MOST_BANDS
        bands |= few
        for (attack, group), line in lines.items():
            hit = task in group
            faint |= not hit
            label = f"{attack} on {short['+'.join(group)]}"
            weaker = {} if hit else {"alpha": 0.4, "lw": 0.8, "ms": 2.5}
            line.draw(axes, label, hit and few, **weaker)
        axes.set_title(task)
        axes.set_ylabel(_quantity(chosen[0]))
        style.radii(axes, sorted({0.0, *(r["eps"] for r in chosen)}), chosen[0]["norm"])
        style.log_y_if_wide(axes)
    notes = [tables.about_intervals(records)] if bands else []
    notes += style.spelt_out(short)
    if faint:
        notes.append("thin and pale: attacks on other tasks only")
    title = " and ".join(dict.fromkeys(record["attack"] for record in records))
    title += f"; {more}" if more else ""
    return style.finish(figure, f"Tasks under {title}", notes)


def _lines(records: Sequence[Record]) -> dict[tuple[str, tuple[str, ...]], Line]:
    """A line per attack and group: its dashes are the attack's, its colour the group's.

    Of one task and metric; {(attack, attacked tasks): line from the clean value on}.
    """
    attacks = [name for (name,) in series.distinct(records, "attack")]
    groups = [group for (group,) in series.distinct(records, "attacked")]
    lines = {}
    for attack, group in series.distinct(records, "attack", "attacked"):
        of_line = series.chosen(records, attack=attack, attacked=list(group))
        points = [
            (record["eps"], record["attacked_value"], *record["attacked_interval"])
            for record in of_line
            if record["eps"]
        ]
        if points:
            first = of_line[0]
            clean = (0.0, first["clean"], *first["clean_interval"])
            place, number = groups.index(group), attacks.index(attack)
            look = style.attack_look(number, place, len(attacks) == 1)
            lines[attack, group] = from_points(attack, [clean, *sorted(points)], look)
    return lines


def from_points(label: str, points: Sequence[tuple], look: Mapping[str, Any]) -> Line:
    """A line of one seed from (eps, value, low, high) of each radius."""
    eps, values, low, high = np.array(points, float).T  # None becomes NaN.
    return Line(label, eps, values[np.newaxis], np.array([[low], [high]]), look)
