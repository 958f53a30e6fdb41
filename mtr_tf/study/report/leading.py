# SPDX-License-Identifier: Apache-2.0
"""The head of the report: the answer in three sentences, and a plot of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from mtr_tf.errors import present
from mtr_tf.show import effects as show_effects
from mtr_tf.show import text
from mtr_tf.study.claims import OPEN
from mtr_tf.study.claims import Verdict
from mtr_tf.study.report import verdicts
from mtr_tf.study.report.plots import Plot
from mtr_tf.study.report.verdicts import Row

EFFECTS = "effects"  # The id of the plot that the report leads with.


def effects(rows: Sequence[Row], claim_verdicts: Sequence[Verdict]) -> list[Plot]:
    """The plot of the effects of all claims that algebra does not decide.

    Args:
      rows: The verdicts as they are shown.
      claim_verdicts: The same verdicts as numbers.

    Returns:
      One plot, or none if no such claim has an effect.
    """
    pairs = [
        (row, _effect(row, verdict))
        for row, verdict in zip(rows, claim_verdicts, strict=True)
        if verdict.effect is not None and not row.algebra
    ]
    if not pairs:
        return []
    title = "Effects of all claims"
    summary = "; ".join(
        f"{row.claim} {row.effect} ({row.interval}), {row.verdict}" for row, _ in pairs
    )
    return [
        Plot(
            EFFECTS,
            title,
            "Mean over paired seeds, right of 0 as claimed (or near 0, where a claim "
            "says that two numbers are near). Filled circle: holds; "
            "cross: does not hold; diamond: undecided.",
            f"{title}, with 95 % intervals: {summary}.",
            functools.partial(
                show_effects.draw, title, [effect for _, effect in pairs]
            ),
        )
    ]


def _effect(row: Row, verdict: Verdict) -> show_effects.Effect:
    """The effect to draw; relative effects are in percentage points."""
    scale = 100 if verdict.claim.relative else 1
    ends = verdict.interval
    return show_effects.Effect(
        row.claim,
        row.quantity + (" [points]" if verdict.claim.relative else ""),
        row.verdict,
        scale * present(verdict.effect, "effect"),
        (scale * ends[0], scale * ends[1]) if ends else None,
        scale * verdict.by_seed,
        scale * verdict.claim.margin,
        scale * (verdict.claim.within or 0.0),
    )


def main_of(rows: Sequence[Row]) -> Row | None:
    """The claim that the report leads with; None where there is none."""
    main_rows = [row for row in rows if row.main]
    return next(iter(main_rows or [row for row in rows if not row.algebra]), None)


def sentences(rows: Sequence[Row]) -> list[str]:
    """The answer in three sentences: the main claim, its power, and a tally.

    A claim that is decided goes without the second.
    """
    row = main_of(rows)
    if row is None:
        return [verdicts.tally(rows)]
    if not row.n:
        return [
            f"“{row.statement}” ({row.claim}) is undecided: nothing is measured yet.",
            verdicts.tally(rows),
        ]
    verb = "is undecided" if row.verdict == OPEN else row.verdict
    attack = f" under {row.attack}" if row.attack else ""
    seeds = f"{row.n} seed{'s' * (row.n != 1)}"
    answer = (
        f"“{row.statement}” ({row.claim}) {verb}: {row.effect}, 95 % interval "
        f"{row.interval} ({row.quantity}), over {seeds}{attack}."
    )
    return [answer, *_power_sentences(row), verdicts.tally(rows)]


def _power_sentences(row: Row) -> list[str]:
    """How small an effect the seeds of an undecided claim can show."""
    if row.deviation == text.NONE or row.verdict != OPEN:
        return []
    condition = "" if row.margin == text.NONE else " to be above the margin"
    sentence = (
        f"So many seeds find an effect of {row.detectable}{condition} nine times in ten"
    )
    if row.detectable == text.NONE:
        sentence = "So few seeds may miss any effect, however large"
    if row.margin != text.NONE:
        sentence += (
            f"; to tell none from one of the margin, {row.margin}, takes "
            f"{row.seeds_needed} seeds"
        )
    return [f"{sentence}."]
