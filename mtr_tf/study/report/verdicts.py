# SPDX-License-Identifier: Apache-2.0
"""The verdicts in words: for the page, its Markdown, the terminal and TensorBoard."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf.show import tables
from mtr_tf.show import text
from mtr_tf.study import statistics
from mtr_tf.study.claims import FAILS
from mtr_tf.study.claims import HOLDS
from mtr_tf.study.claims import OPEN
from mtr_tf.study.claims import Verdict
from mtr_tf.study.report import evidence
from mtr_tf.study.report.curves import Curve

# {verdict: (sign, class of the style sheet)}. The word always stands beside the colour.
_LOOKS = {HOLDS: ("✓", "holds"), FAILS: ("✗", "fails"), OPEN: ("?", "open")}

EFFECTS = (
    "A positive effect supports the claim; one that says that two numbers are near is "
    "supported by an effect near 0. p is one-sided and corrected: where the "
    "effect is above the margin (or above 0, if the claim has none), p says how likely "
    "so large a one would be if there were none above it; else, how likely so small a "
    "one would be if there were none below it."
)
MEANING = (
    "Holds: with other seeds (and other images of this kind, where the interval is "
    "over images too), the effect would almost surely be above 0, or above the margin. "
    "Does not hold: it would almost surely be below. Undecided: either is possible."
)
POWER = (
    "How much an effect varies from seed to seed says how large it must be for so many "
    "seeds to find it above the margin (or above 0, without one) nine times in ten, "
    "and how many seeds tell, nine times in ten, an effect of 0 from one of the "
    "margin, the least that matters (Student's t test, one-sided, with an equal share "
    "of the level for each claim; variation over images comes on top). A dash: so few "
    "seeds may miss any effect, however large."
)
POWER_HEAD = (
    "claim",
    "effect",
    "deviation over seeds",
    "seeds",
    "effect they find",
    "margin",
    "seeds needed",
)
CODES = (
    "Codes of claims: T theory, E the paper's experiments, F those of its critics, A "
    "our controls (matched: compared with single-task models of the same clean "
    "accuracy), AT adversarial training."
)
ALGEBRA = (
    "These follow from algebra, whatever the models are: the finding is the number, "
    "not the verdict."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A verdict as it is shown, with numbers as text.

    Attributes:
      claim: The claim's name.
      statement: What the claim says.
      source: Who claims it.
      verdict: A key of `_LOOKS`.
      reason: The reason, as a sentence.
      effect: The mean over seeds.
      interval: Its 95 % interval.
      quantity: What the effect measures: metrics with units, or a measure.
      over: What was resampled for the interval.
      n: Number of seeds that have the effect.
      probability: The corrected p of the side of the margin that the effect is on.
      by_seed: The effect of each seed.
      probabilities: All p values, in a sentence.
      clean: The mean clean value of each variant.
      gaps: How much clean values of matched models differ; empty for other claims.
      plot: The `id` of the plot that shows it; None if there is none.
      warnings: The warnings from checks of its attacks, as sentences.
      algebra: Whether algebra decides it.
      margin: The smallest effect that matters.
      deviation: The standard deviation over seeds.
      detectable: The smallest effect that this number of seeds finds to be above the
        margin nine times in ten.
      seeds_needed: Number of seeds that tell 0 from an effect of the margin.
      attack: The attack in words; empty for a measure.
      main: Whether the report leads with it.
      note: Why the interval is not over images although there are rows; else empty.
    """

    claim: str
    statement: str
    source: str
    verdict: str
    reason: str
    effect: str
    interval: str
    quantity: str
    over: str
    n: int
    probability: str
    by_seed: str
    probabilities: str
    clean: Sequence[str]
    plot: str | None
    warnings: Sequence[str]
    gaps: str = ""
    algebra: bool = False
    margin: str = text.NONE
    deviation: str = text.NONE
    detectable: str = text.NONE
    seeds_needed: str = text.NONE
    attack: str = ""
    main: bool = False
    note: str = ""

    @property
    def id(self) -> str:
        """The row's name, for links."""
        return text.identifier("claim", self.claim)

    @property
    def sign(self) -> str:
        """A sign for the verdict."""
        return _LOOKS[self.verdict][0]

    @property
    def look(self) -> str:
        """The verdict's class in the style sheet."""
        return _LOOKS[self.verdict][1]


def rows(
    verdicts: Sequence[Verdict],
    seeds: Sequence[int],
    curves: Sequence[Curve],
    plots: Iterable[str],
) -> list[Row]:
    """The verdicts as they are shown.

    Args:
      verdicts: The verdicts of the study.
      seeds: The seeds of the study, in the order of `Verdict.by_seed`.
      curves: All curves of the report, without differences.
      plots: The ids of all plots of the report.
    """
    plots = frozenset(plots)
    return [_row(verdict, seeds, curves, plots) for verdict in verdicts]


def _row(
    verdict: Verdict,
    seeds: Sequence[int],
    curves: Sequence[Curve],
    plots: frozenset[str],
) -> Row:
    claim = verdict.claim
    write = text.points if claim.relative else text.signed
    by_seed = zip(seeds, verdict.by_seed, strict=True)
    return Row(
        claim=claim.id,
        statement=claim.statement,
        source=claim.source,
        verdict=verdict.verdict,
        reason=verdict.reason,
        effect=write(verdict.effect),
        interval=text.interval(verdict.interval, write),
        quantity=_quantity(verdict, curves),
        over=verdict.over,
        n=verdict.n,
        probability=_probability(verdict),
        by_seed="; ".join(f"seed {seed} {write(value)}" for seed, value in by_seed),
        probabilities=_probabilities(verdict),
        clean=[f"{name}: {_mean(values)}" for name, values in verdict.clean.items()],
        gaps=_gaps(verdict, write),
        plot=evidence.plot_of(claim, curves, plots),
        warnings=evidence.warnings_of(claim, curves),
        algebra=claim.algebra,
        attack=evidence.attack_of(claim, curves),
        main=claim.main,
        note=verdict.note,
        **_power(verdict, write),
    )


def _gaps(verdict: Verdict, write: Callable[[float | None], str]) -> str:
    """How much clean values of matched models differ, by seed; else empty."""
    if verdict.gaps is None:
        return ""
    gaps = verdict.gaps[~np.isnan(verdict.gaps)]
    listing = ", ".join(write(gap).lstrip("+") for gap in gaps) or text.NONE
    return f"up or down from those of the nearest models, by seed: {listing}"


def _power(verdict: Verdict, write: Callable[[float | None], str]) -> dict[str, str]:
    """The fields of `Row` about power, as numbers without a sign."""
    power, margin = verdict.power, verdict.claim.margin
    if not power:
        return {}
    seeds_needed = str(power.seeds_needed or f"over {statistics.MOST_SEEDS}")
    return {
        "margin": write(margin).lstrip("+") if margin else text.NONE,
        "deviation": write(power.deviation).lstrip("+"),
        "detectable": write(power.detectable).lstrip("+"),
        "seeds_needed": seeds_needed if margin else text.NONE,
    }


def tally(rows: Sequence[Row]) -> str:
    """A sentence: of 6 claims 2 hold, 1 does not hold, 3 are undecided.

    Claims that algebra decides are not among these; a second sentence counts them.
    """
    if not rows:
        return "The study makes no claims."
    algebraic = [row for row in rows if row.algebra]
    rows = [row for row in rows if not row.algebra] or rows
    count = Counter(row.verdict for row in rows)
    verbs = {
        HOLDS: ("holds", "hold"),
        FAILS: ("does not hold", "do not hold"),
        OPEN: ("is undecided", "are undecided"),
    }
    parts = [f"{count[w]} {verbs[w][count[w] != 1]}" for w in _LOOKS if count[w]]
    claims = "claim" if len(rows) == 1 else "claims"
    sentence = f"Of {len(rows)} {claims} {', '.join(parts)}."
    if algebraic and algebraic[0] not in rows:
        sentence += (
            f" {len(algebraic)} more follow{'s' * (len(algebraic) == 1)} from algebra."
        )
    return sentence


def answer(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(verdict, its claims): statements of decided claims, names of undecided ones."""
    rows = [row for row in rows if not row.algebra]
    parts = []
    for verdict in _LOOKS:
        group = [row for row in rows if row.verdict == verdict]
        if verdict == OPEN:
            content = ", ".join(row.claim for row in group)
        else:
            content = " ".join(f"{row.claim}: {row.statement}" for row in group)
        if group:
            parts.append((text.capital(verdict), content))
    return parts


def powers(rows: Sequence[Row]) -> list[list[str]]:
    """Rows of a table of what the seeds can show about undecided claims.

    Empty if no such claim has a deviation over seeds.
    """
    return [
        [row.claim, row.effect, row.deviation, str(row.n), row.detectable, row.margin]
        + [row.seeds_needed]
        for row in rows
        if row.verdict == OPEN and row.deviation != text.NONE
    ]


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The table as plain text, head first, for the terminal and TensorBoard."""
    head = ["claim", "who", "verdict", "effect", "95 % interval", "over", "of", "n"]
    fields = ["claim", "source", "verdict", "effect", "interval", "over", "quantity"]
    fields += ["n", "probability"]
    body = [[str(getattr(row, field)) for field in fields] for row in rows]
    return [[*head, "p, corrected"], *body]


def terminal(rows: Sequence[Row]) -> str:
    """The table aligned, and the tally."""
    return f"{tables.aligned(table(rows))}\n\n{tally(rows)}"


def mixed(models: Mapping[str, Sequence[int]]) -> str:
    """A sentence about the variants and seeds of `Results.mixed`; empty for none."""
    listing = "; ".join(
        f"{variant}: {text.numbers_in_words(seeds)}"
        for variant, seeds in models.items()
    )
    return listing and (
        f"The results of some variants [{listing}] are of several models each, trained "
        "apart; delete the folders of their attacks, and repeat mtr_tf.reproduce to "
        "have all results of one."
    )


def warnings(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The warnings from checks of attacks, with the claims that they concern."""
    claims: dict[str, list[str]] = {}
    for row in rows:
        for warning in row.warnings:
            claims.setdefault(warning, []).append(row.claim)
    return claims


def _probability(verdict: Verdict) -> str:
    """The corrected p of the side that the effect is on; a dash for nearness."""
    if verdict.claim.within is not None or verdict.effect is None:
        return text.NONE
    is_below = verdict.effect < verdict.claim.margin
    return text.probability(verdict.p_opposite if is_below else verdict.p_corrected)


def _quantity(verdict: Verdict, curves: Sequence[Curve]) -> str:
    """What the effect measures: metrics with their units, or a measure."""
    claim = verdict.claim
    if claim.measure:
        return _measure_text(claim.measure, verdict.negated)
    points = [point for term in claim.terms for point in term.points]
    pairs = dict.fromkeys((point.task, point.metric) for point in points)
    if claim.relative:
        return ", ".join(map(" ".join, pairs)) + ", relative to clean"
    units = {(curve.task, curve.metric): curve.facts["unit"] for curve in curves}
    return ", ".join(_with_unit(*pair, units.get(pair, "")) for pair in pairs)


def _with_unit(task: str, metric: str, unit: str) -> str:
    return f"{task} {metric} [{unit}]" if unit else f"{task} {metric}"


def _measure_text(measure: Mapping[str, Any], negated: bool = False) -> str:
    """Words such as `slope minus -0.5`; the other way round where the sign is -1.

    Args:
      measure: The measure of a claim.
      negated: Whether the effect has the other sign, because lower values are better.
    """
    words = f"{measure['measure']}: {measure['quantity']}"
    words += "".join(f" {task}" for task in measure.get("tasks", ()))
    if metric := measure.get("metric"):
        words += f" {' and '.join(metric) if isinstance(metric, list) else metric}"
    sign = measure["sign"] * (-1 if negated else 1)
    if measure["field"] != "value":
        words += f" {measure['field']}"
    if measure["ratio_to"]:
        words += f" / {measure['ratio_to']}"
    if measure["minus"]:
        words += f" minus that of {_keys_text(measure['minus'])}"
    reference = text.short(measure["reference"])
    if not measure["reference"]:
        return f"{words}, negated" if sign < 0 else words
    if sign < 0:
        return f"{reference} minus {words}"
    return f"{words} minus {reference}"


def _keys_text(fields: Mapping[str, Any]) -> str:
    """Words such as `count 1`; variants by their names alone."""
    parts = []
    for name, value in fields.items():
        words = " and ".join(map(str, value)) if isinstance(value, list) else value
        parts.append(words if name == "variants" else f"{name} {words}")
    return ", ".join(parts)


def _probabilities(verdict: Verdict) -> str:
    """A sentence with all p values of a verdict."""
    if verdict.claim.within is not None:
        return "A claim that two numbers are near has no p."
    values = verdict.p, verdict.p_corrected, verdict.p_opposite
    bound = "the margin" if verdict.claim.margin else "0"
    return "Above {what}: p {}, corrected {}; below it: corrected p {}.".format(
        *map(text.probability, values), what=bound
    )


def _mean(values: np.ndarray) -> str:
    """The mean of `[seeds]` without NaN; a dash if there is no number."""
    numbers = values[~np.isnan(values)]
    return text.number(numbers.mean()) if len(numbers) else text.NONE
