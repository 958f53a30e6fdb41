# SPDX-License-Identifier: Apache-2.0
"""The verdicts: the first table of the report, and the one for the terminal."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf.show import tables
from mtr_tf.show import text
from mtr_tf.study import claims
from mtr_tf.study.claim_file import Claim
from mtr_tf.study.claims import Verdict
from mtr_tf.study.report.elements import Html
from mtr_tf.study.report.elements import bullets
from mtr_tf.study.report.elements import details
from mtr_tf.study.report.elements import identifier
from mtr_tf.study.report.elements import join
from mtr_tf.study.report.elements import table
from mtr_tf.study.report.elements import tag

# Word: (sign, class of the style sheet). The word always stands beside the colour.
_LOOKS = {
    "holds": ("✓", "holds"),
    "does not hold": ("✗", "fails"),
    "undecided": ("?", "open"),
}


EFFECTS = (
    "Effects are positive where things are as claimed; p is that of the side which the "
    "effect is on."
)


@dataclasses.dataclass(frozen=True)
class Context:
    """What the rest of the report knows about a verdict.

    Attributes:
      seeds: Those of the study, as `Verdict.by_seed` counts them.
      unit: (task, metric) -> the metric's unit.
      plot: Verdict -> the `id` of the plot that shows it; None if there is none.
      warnings: Verdict -> what the checks of its attacks found, as sentences.
    """

    seeds: Sequence[int]
    unit: Callable[[str, str], str]
    plot: Callable[[Verdict], str | None]
    warnings: Callable[[Verdict], Sequence[str]]


def tally(verdicts: Sequence[Verdict]) -> str:
    """A sentence: of 6 claims 2 hold, 1 does not hold, 3 are undecided."""
    if not verdicts:
        return "The study makes no claims."
    count = Counter(found.verdict for found in verdicts)
    verbs = {
        "holds": ("holds", "hold"),
        "does not hold": ("does not hold", "do not hold"),
        "undecided": ("is undecided", "are undecided"),
    }
    parts = [f"{count[w]} {verbs[w][count[w] != 1]}" for w in _LOOKS if count[w]]
    claims_ = "claim" if len(verdicts) == 1 else "claims"
    return f"Of {len(verdicts)} {claims_} {', '.join(parts)}."


def rows(verdicts: Sequence[Verdict], context: Context) -> list[list[str]]:
    """The table in plain words, its head first: for the terminal and TensorBoard."""
    head = ["claim", "who", "verdict", "effect", "95 % interval", "over", "of", "n"]
    head.append("p, corrected")
    body = [
        [
            found.claim.id,
            found.claim.source,
            found.verdict,
            form(found)(found.effect),
            text.interval(found.interval, form(found)),
            found.over,
            quantity(found.claim, context),
            str(found.n),
            _probability(found),
        ]
        for found in verdicts
    ]
    return [head, *body]


def terminal(verdicts: Sequence[Verdict], context: Context) -> str:
    """The table aligned, and the tally."""
    return f"{tables.aligned(rows(verdicts, context))}\n\n{tally(verdicts)}"


def form(found: Verdict) -> Callable[[float | None], str]:
    """How the numbers of an effect are written."""
    return text.points if found.claim.relative else text.signed


def _probability(found: Verdict) -> str:
    """The corrected p of the side that the effect is on; nearness has none."""
    if found.claim.within is not None or found.effect is None:
        return text.NONE
    against = found.effect < found.claim.margin
    return text.probability(found.p_opposite if against else found.p_corrected)


def quantity(claim: Claim, context: Context) -> str:
    """What the effect is a number of: metrics with their units, or a measure."""
    if claim.measure:
        return _measured(claim.measure)
    points = [point for term in claim.terms for point in term.points]
    pairs = dict.fromkeys((point.task, point.metric) for point in points)
    if claim.relative:
        return ", ".join(map(" ".join, pairs)) + ", relative to clean"
    return ", ".join(_with_unit(*pair, context.unit(*pair)) for pair in pairs)


def _with_unit(task: str, metric: str, unit: str) -> str:
    return f"{task} {metric} [{unit}]" if unit else f"{task} {metric}"


def _measured(measure: Mapping[str, Any]) -> str:
    """As `slope less -0.5`; where the sign is -1 the other way round."""
    words = f"{measure['measure']}: {measure['quantity']}"
    if measure["field"] != "value":
        words += f" {measure['field']}"
    if measure["ratio_to"]:
        words += f" / {measure['ratio_to']}"
    if measure["minus"]:
        words += f" less that of {_keys(measure['minus'])}"
    reference = text.short(measure["reference"])
    if not measure["reference"]:
        return f"{words}, negated" if measure["sign"] < 0 else words
    if measure["sign"] < 0:
        return f"{reference} less {words}"
    return f"{words} less {reference}"


def _keys(fields: Mapping[str, Any]) -> str:
    """As `count 1`."""
    return ", ".join(f"{name} {value}" for name, value in fields.items())


# The section.


def section(verdicts: Sequence[Verdict], context: Context) -> Html:
    """The table, and how verdicts are made."""
    head = ("claim", "verdict", "effect", "seeds", "p, corrected", "clean", "plot")
    body = [_row(found, context) for found in verdicts]
    ids = [identifier("claim", found.claim.id) for found in verdicts]
    parts = [
        tag("h2", "Verdicts", id="verdicts"),
        tag("p", tally(verdicts), class_="tally"),
    ]
    if verdicts:
        label = "claims and verdicts"
        parts.append(table(head, body, cards=True, label=label, row_ids=ids))
        about = f"{EFFECTS} Clean values, to judge them by, are means over seeds."
        rules = f"{about} {' '.join(claims.RULES)}"
        parts.append(tag("p", rules, class_="soft"))
    return tag("section", *parts)


def _row(found: Verdict, context: Context) -> list[Html]:
    claim, write = found.claim, form(found)
    warnings = context.warnings(found)
    plot = context.plot(found)
    sign, look = _LOOKS[found.verdict]
    about = (
        tag("span", claim.statement, class_="statement"),
        tag("span", claim.source, class_="soft"),
    )
    word = tag("span", f"{sign} {found.verdict}", class_=f"verdict {look}")
    effect = (
        tag("span", write(found.effect), class_="line"),
        tag("span", text.interval(found.interval, write), class_="line soft nowrap"),
        tag("span", quantity(claim, context), class_="line soft"),
    )
    link = tag("a", "plot", href=f"#{plot}") if plot else text.NONE
    return [
        join(tag("span", claim.id), *about),
        tag("div", word, _why(found, context, warnings)),
        tag("div", *effect),
        tag("div", str(found.n)),
        tag("div", _probability(found)),
        tag("div", *_clean(found), class_="values"),
        tag("div", link),
    ]


def _why(found: Verdict, context: Context, warnings: Sequence[str]) -> Html:
    """The reason, one click away; warnings of the attacks at once."""
    write = form(found)
    values = zip(context.seeds, found.by_seed, strict=True)
    seeds = "; ".join(f"seed {seed} {write(value)}" for seed, value in values)
    parts = [
        tag("p", found.reason),
        tag("p", f"Effect: {seeds}."),
        tag("p", f"Resampled for the interval: {found.over}."),
        tag("p", _probabilities(found)),
    ]
    if warnings:
        parts.append(tag("p", tag("strong", "The attacks' own checks warn:")))
        parts.append(bullets(warnings))
    return details("why, warnings ⚠" if warnings else "why", *parts)


def _probabilities(found: Verdict) -> str:
    """All p values of a verdict."""
    if found.claim.within is not None:
        return "A claim of nearness has no p."
    values = map(text.probability, (found.p, found.p_corrected, found.p_opposite))
    return "p {}, corrected {}; of the opposite, corrected, {}.".format(*values)


def _clean(found: Verdict) -> list[Html]:
    """The mean clean value of each variant."""
    lines = []
    for variant, values in found.clean.items():
        known = values[~np.isnan(values)]
        mean = text.number(known.mean()) if len(known) else text.NONE
        lines.append(tag("span", f"{variant}: {mean}", class_="line"))
    return lines or [Html(text.NONE)]
