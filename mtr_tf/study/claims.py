# SPDX-License-Identifier: Apache-2.0
"""The verdict on each claim of a study, from its results alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
from absl import logging

from mtr_tf.study import claim_file
from mtr_tf.study import effects
from mtr_tf.study import statistics
from mtr_tf.study.claim_file import Claim
from mtr_tf.study.design import Study
from mtr_tf.study.results import Results

ALPHA = 0.05
LEAST_SEEDS = 4  # With fewer, nothing is decided.
HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
RULES = (
    f"A claim holds under three conditions: at least {LEAST_SEEDS} seeds have a "
    "number for it; the exact one-sided sign-flip test over paired seeds, corrected "
    f"for all directional claims of the study (max-T), gives p of at most {ALPHA:g} "
    "that the effect is above 0, or above the margin if the claim has one; and the "
    "95 % bootstrap interval over seeds (and over images, if there are values for "
    "each) lies above that, too. With n seeds, p is at least 1/2^n, so 5 seeds are "
    "needed; claims with fewer do not count in the correction. Among several "
    "directional claims p may not go below 2/2^n, however large the effect: changing "
    "the signs of all seeds turns a larger effect of another claim, below 0, into one "
    "above. Then 6 seeds are needed.",
    "It does not hold if test and interval show in the same way that the effect is "
    "below 0, or below the margin. A claim that a number is near a value holds if the "
    "whole interval is near enough, and does not hold if all of it lies outside; no "
    "test corrects it for other claims.",
    "Everything else is undecided, and so is a comparison with models of the same "
    "clean accuracy where there are none: where clean values differ, on average, by "
    "more than the margin (or, without one, than the effect). So is a claim whose "
    "numbers of one variant and seed are of several models, trained apart.",
)


@dataclasses.dataclass(frozen=True)
class Power:
    """What the seeds of a claim can show, judged by their spread; see `statistics`.

    Computed for Student's t-test with an equal share of the level for each claim; max-T
    gives each claim at least that. Variation over images is left out.

    Attributes:
      deviation: Standard deviation of the effect over seeds.
      least: Fewer seeds than this may miss any effect, however large.
      detectable: The smallest mean effect that these seeds find to be above the claim's
        margin nine times in ten; None if they are too few.
      seeds_needed: The number of seeds that tell an effect of 0 from one of the claim's
        margin nine times in ten; None if there is no margin, or if more than 1000 are
        needed.
    """

    deviation: float
    least: int
    detectable: float | None
    seeds_needed: int | None


def power(by_seed: np.ndarray, margin: float, claims: int) -> Power | None:
    """The power of a directional claim; None with fewer than two seeds.

    Args:
      by_seed: The claim's effects, `[seeds]`, NaN where there is none.
      margin: The claim's margin; 0 for none.
      claims: Number of directional claims in the study.
    """
    values = by_seed[~np.isnan(by_seed)]
    if len(values) < 2:
        return None
    deviation = float(values.std(ddof=1))
    level = min((1 - effects.CONFIDENCE) / 2, ALPHA / claims)
    least_seeds = statistics.least_seeds(ALPHA, claims)
    seeds_needed = detectable = None
    if margin:
        seeds_needed = statistics.seeds_needed(deviation, margin, level, least_seeds)
    if len(values) >= least_seeds:
        detectable = margin + statistics.detectable(deviation, len(values), level)
    return Power(deviation, least_seeds, detectable, seeds_needed)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on a claim, with its numbers.

    Attributes:
      claim: The claim.
      verdict: "holds", "does not hold" or "undecided".
      effect: Mean over seeds, positive as claimed; None if no seed has it. For a claim
        of nearness, the difference from the reference.
      interval: Its 95 % bootstrap interval; None if there is none.
      over: What was resampled: "seeds", "seeds and images", "seeds and 3 cities".
      n: Number of seeds that have the effect.
      p: p of the one-sided sign-flip test that the effect is above 0, or above the
        margin; NaN for a claim of nearness, which is not tested.
      p_corrected: The same, corrected for all directional claims of the study.
      p_opposite: The corrected p that the effect is below 0, or below the margin.
      by_seed: Effects, `[seeds]`, NaN where there is none.
      clean: {variant: clean values `[seeds]`} of the models compared.
      reason: A sentence made from the numbers.
      power: What its seeds can show; None for a claim of nearness or too few seeds.
      gaps: By how much clean values of `matched` models differ; see `Effect`.
      negated: For a measure, whether lower values of its metric are better.
      note: Why the interval is not over images although there are rows; else empty.
    """

    claim: Claim
    verdict: str
    effect: float | None
    interval: tuple[float, float] | None
    over: str
    n: int
    p: float
    p_corrected: float
    p_opposite: float
    by_seed: np.ndarray
    clean: Mapping[str, np.ndarray]
    reason: str
    power: Power | None = None
    gaps: np.ndarray | None = None
    negated: bool = False
    note: str = ""


def check(study: Study) -> None:
    """Raises `InputError` if a claim of the study cannot be judged at all."""
    claim_file.read(study)


def evaluate(results: Results) -> list[Verdict]:
    """The verdict on each claim, in the order of the study's file."""
    claims = claim_file.read(results.study)
    claim_effects = [effects.of(claim, results) for claim in claims]
    directional = [i for i, claim in enumerate(claims) if claim.within is None]
    excess = [claim_effects[i].by_seed - claims[i].margin for i in directional]
    above, below = tests(excess), tests([-x for x in excess])
    p_values = {i: (above[:, j], below[1, j]) for j, i in enumerate(directional)}
    verdicts = []
    for i, (claim, effect) in enumerate(zip(claims, claim_effects, strict=True)):
        (p, p_corrected), p_opposite = p_values.get(i, ((np.nan, np.nan), np.nan))
        numbers = (effect.mean, effect.interval, effect.n, p_corrected, p_opposite)
        word, reason = judge(claim, *numbers)
        doubt = _gap_reason(claim, effect) or _mixture_reason(claim, results)
        if word != OPEN and doubt:
            word, reason = OPEN, doubt
        power_inputs = (effect.by_seed, claim.margin, len(directional))
        verdicts.append(
            Verdict(
                claim=claim,
                verdict=word,
                effect=effect.mean,
                interval=effect.interval,
                over=effect.over,
                n=effect.n,
                p=float(p),
                p_corrected=float(p_corrected),
                p_opposite=float(p_opposite),
                by_seed=effect.by_seed,
                clean=effect.clean,
                reason=reason,
                power=power(*power_inputs) if i in p_values else None,
                gaps=effect.gaps,
                negated=effect.negated,
                note=effect.note,
            )
        )
        if effect.note:
            logging.warning("claim %r: %s", claim.id, effect.note)
    return verdicts


def tests(effects: Sequence[np.ndarray]) -> np.ndarray:
    """`statistics.max_t` over the effects of enough seeds to decide anything."""
    return statistics.max_t(effects, statistics.least_seeds(ALPHA))


def _gap_reason(claim: Claim, effect: effects.Effect) -> str:
    """Why `matched` models are no control for clean accuracy; empty if they are."""
    if effect.gaps is None or effect.mean is None:
        return ""
    gap = float(np.nanmean(effect.gaps))
    limit = claim.margin or abs(effect.mean)
    if gap <= limit:
        return ""
    return (
        "No model has the same clean accuracy: that of the nearest differs by "
        f"{gap:.3g} on average, more than {limit:.3g}."
    )


def _mixture_reason(claim: Claim, results: Results) -> str:
    """Why numbers of a variant and seed are not of one model; empty if they are."""
    attacks_on: dict[str, set[str]] = {}
    for point in (point for term in claim.terms for point in term.points):
        source = results.study.spec(point.attack).source
        for variant in filter(None, (point.variant, source)):
            attacks_on.setdefault(variant, set()).add(point.attack)
    for variant, attacks in attacks_on.items():
        for seed in results.seeds:
            models = [results.models(variant, seed, attack) for attack in attacks]
            if len(set().union(*models)) > 1:
                return f"Its numbers of {variant}, seed {seed}, are of several models."
    return ""


def judge(
    claim: Claim,
    effect: float | None,
    interval: tuple[float, float] | None,
    n: int,
    p: float,
    opposite: float,
) -> tuple[str, str]:
    """Returns the verdict and its reason; see `RULES`.

    Args:
      claim: The claim, for its `within` and `margin`.
      effect: Mean over seeds.
      interval: The interval of the effect.
      n: Number of seeds that have the effect.
      p: Corrected p that the effect is above 0, or above the margin.
      opposite: Corrected p that it is below.
    """
    if effect is None or interval is None:
        return OPEN, "No seed has all the numbers that this claim needs."
    low, high = interval
    if n < LEAST_SEEDS:
        return OPEN, f"Only {n} of the {LEAST_SEEDS} seeds that a verdict needs."
    if claim.within is not None:
        return _nearness(claim.within, claim.measure["reference"], low, high)
    margin = claim.margin
    if low > margin and p <= ALPHA:
        side = f"above {_value_text(claim, margin)}" if margin else "positive"
        start = f"{side.capitalize()} over {n} seeds (p {p:.2g}), and the whole"
        return HOLDS, f"{start} interval is {side}."
    if high < margin and opposite <= ALPHA:
        side = f"Below {_value_text(claim, margin)}" if margin else "Negative"
        finding = f"{side} over {n} seeds (p {opposite:.2g})"
        if not margin:
            return FAILS, f"{finding}."
        if high >= 0:
            return FAILS, f"{finding}: too small to matter."
        bound = _value_text(claim, -margin if high < -margin else 0.0)
        return FAILS, f"{finding}; the whole interval is below {bound}."
    return OPEN, _open_reason(claim, low, high, n, p if effect > margin else opposite)


def _value_text(claim: Claim, value: float) -> str:
    """A value of a claim as tables show it."""
    return f"{100 * value:g} points" if claim.relative else f"{value:g}"


def _nearness(within: float, value: float, low: float, high: float) -> tuple[str, str]:
    """The verdict and reason for a claim to be no further than `within` from `value`.

    `low` and `high` are the ends of the interval of the difference.
    """
    if max(abs(low), abs(high)) <= within:
        return HOLDS, f"The whole interval is within {within:g} of {value:g}."
    if low > within or high < -within:
        return FAILS, f"The whole interval is more than {within:g} away from {value:g}."
    return OPEN, f"Only part of the interval is within {within:g} of {value:g}."


def _open_reason(claim: Claim, low: float, high: float, n: int, p: float) -> str:
    """Why a claim is undecided; `p` is that of the side that the effect is on."""
    margin, margin_text = claim.margin, _value_text(claim, claim.margin)
    if low <= margin <= high:
        meaning = ", the smallest effect that matters" if margin else ""
        return f"The interval includes {margin_text}{meaning} (n = {n}, p {p:.2g})."
    side = "above" if low > margin else "below"
    start = f"The whole interval is {side} {margin_text}, but"
    if 2.0**-n > ALPHA:
        return (
            f"{start} {n} seeds cannot give p of {ALPHA:g} or less (1/{2**n} at "
            "best): 5 are needed, or 6 among several directional claims."
        )
    return f"{start} p is {p:.2g} after correction for all claims."
