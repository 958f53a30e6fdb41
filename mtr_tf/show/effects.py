# SPDX-License-Identifier: Apache-2.0
"""Effects of claims with their intervals: a row for each, a panel for each unit."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtr_tf.show import style

# The colour and the marker of each verdict: nobody needs to rely on colour alone.
_LOOKS = {
    "holds": (style.COLORS[3], "o"),
    "does not hold": (style.COLORS[1], "X"),
    "undecided": ("0.45", "D"),
}
_WIDTH = 3.9  # Inches: what a phone shows without scaling it down.
_ROW, _EDGE = 0.3, 0.55  # Inches of a row, and of a panel's axis and title.
_UNIT_LETTERS = 40  # Of a unit, in one line.
_LINE_HEIGHT = 0.17  # Inches of a further line.


@dataclasses.dataclass(frozen=True)
class Effect:
    """One row.

    Attributes:
      label: The claim's name.
      unit: The unit of its numbers; rows of one unit share a panel.
      verdict: A key of `_LOOKS`.
      mean: Over seeds.
      interval: Its interval; None where there is none.
      by_seed: `[seeds]`, NaN where there is none.
      margin: Effects below it are too small to matter; 0: no margin.
      within: For a claim that two numbers are close, how far from 0 is close; else 0.
    """

    label: str
    unit: str
    verdict: str
    mean: float
    interval: tuple[float, float] | None
    by_seed: np.ndarray
    margin: float = 0.0
    within: float = 0.0


def draw(title: str, effects: Sequence[Effect]) -> Figure:
    """The figure, in the order of the effects.

    Args:
      title: Above it.
      effects: At least one.
    """
    units = list(dict.fromkeys(effect.unit for effect in effects))
    panels = [[e for e in effects if e.unit == unit] for unit in units]
    labels = [textwrap.fill(unit, _UNIT_LETTERS) for unit in units]
    heights = [
        _EDGE + _ROW * len(panel) + _LINE_HEIGHT * label.count("\n")
        for panel, label in zip(panels, labels, strict=True)
    ]
    figure, grid = style.grid_of(
        len(panels), 1, (_WIDTH, sum(heights) / len(heights)), height_ratios=heights
    )
    short_names = style.short_names(effect.label for effect in effects)
    for axes, label, panel in zip(grid[:, 0], labels, panels, strict=True):
        for row, effect in enumerate(panel):
            _draw_row(axes, row, effect)
        axes.axvline(0, color="0.3", lw=0.8, zorder=1)
        axes.set_yticks(
            range(len(panel)), [short_names[effect.label] for effect in panel]
        )
        axes.set_ylim(len(panel) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label)
    notes = ["right of 0: as claimed; small dots: seeds; line: 95 % interval"]
    if any(effect.margin for effect in effects):
        notes.append("grey: too small to matter")
    if any(effect.within for effect in effects):
        notes.append("green: near 0, as claimed there")
    notes += style.spelt_out(short_names)
    return style.finish(figure, title, notes)


def _draw_row(axes, row: int, effect: Effect) -> None:
    color, marker = _LOOKS[effect.verdict]
    for reach, shade in ((effect.margin, "0.9"), (effect.within, "#d9ecd9")):
        if reach:
            span = ([row - 0.4, row + 0.4], -reach, reach)
            axes.fill_betweenx(*span, color=shade, lw=0, zorder=0)
    axes.plot(
        effect.by_seed,
        np.full(len(effect.by_seed), row + 0.27),
        linestyle="",
        marker=".",
        markersize=3,
        color="0.6",
    )
    if effect.interval:
        axes.plot(effect.interval, [row, row], color=color, lw=2, solid_capstyle="butt")
    axes.plot(
        [effect.mean],
        [row],
        linestyle="",
        marker=marker,
        markersize=6,
        color=color,
        label=effect.verdict,
    )
