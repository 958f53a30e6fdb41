# SPDX-License-Identifier: Apache-2.0
"""The effect of a claim for each seed, on all images and on resampled ones."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf import tasks as tasks_lib
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.errors import present
from mtr_tf.evaluation import intervals
from mtr_tf.evaluation import resampling
from mtr_tf.study import claim_checks
from mtr_tf.study import statistics
from mtr_tf.study.claim_checks import MEASURE
from mtr_tf.study.claim_file import Claim
from mtr_tf.study.claim_file import Point
from mtr_tf.study.claim_file import Term
from mtr_tf.study.results import Record
from mtr_tf.study.results import Results
from mtr_tf.study.results import differences
from mtr_tf.study.results import fits
from mtr_tf.study.results import value_of
from mtr_tf.tasks import metric_names
from mtr_tf.tasks import metrics
from mtr_tf.tasks import more_metrics
from mtr_tf.tasks.task import MAP

RESAMPLES = 10_000
CONFIDENCE = 0.95
_MIN_SEEDS = 2  # Fewer seeds are not resampled.
_ROUNDING = 1e-12  # Sums smaller than this share of what is summed count as 0.


@dataclasses.dataclass(frozen=True)
class Effect:
    """A claim's number.

    Attributes:
      by_seed: `[seeds]`, NaN where a part of it is missing.
      draws: Resampled means, `[resamples]`; see `statistics.bootstrap`.
      over: What was resampled: "seeds", "seeds and images", "seeds and 3 cities".
      units: Number of images, or of the units drawn in their place; 0 if none are.
      clean: {variant: clean values `[seeds]`} of all variants that are compared.
      gaps: For `matched` models, the mean absolute difference between their clean
        values and those of their matches, `[seeds]`; for relative claims as a share of
        the match's value. None for other claims.
      negated: For a measure, whether lower values of its metric are better.
      note: Why images were not drawn although there are rows; else empty.
    """

    by_seed: np.ndarray
    draws: np.ndarray
    over: str = "seeds"
    units: int = 0
    clean: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    gaps: np.ndarray | None = None
    negated: bool = False
    note: str = ""

    @property
    def mean(self) -> float | None:
        """The mean over seeds; None if no seed has the effect."""
        values = self.by_seed[~np.isnan(self.by_seed)]
        return float(values.mean()) if len(values) else None

    @property
    def n(self) -> int:
        """The number of seeds that have the effect."""
        return int((~np.isnan(self.by_seed)).sum())

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, by percentiles and widened for few seeds or units."""
        ends = intervals.percentiles(self.draws, CONFIDENCE)
        if self.mean is None or np.isnan(ends[0]):
            return None
        if self.n < _MIN_SEEDS and not self.units:
            return None  # Nothing was drawn.
        counts = [count for count in (self.n, self.units) if count > 1]
        fewest = min(counts, default=1)
        low, high = resampling.widened(ends, self.mean, fewest, CONFIDENCE)
        return float(low), float(high)


def of(claim: Claim, results: Results) -> Effect:
    """The effect of a claim in the results that exist so far.

    Raises:
      InputError: Several records fit one of its numbers, the metrics of a measure do
        not agree in which values are better, or no record has one of them.
    """
    if claim.measure:
        lower_better = _lower_is_better(claim, results)
        by_seed = np.array(
            [_measure_value(claim, results, s, lower_better) for s in results.seeds]
        )
        draws = statistics.bootstrap(by_seed, resamples=RESAMPLES)
        return Effect(by_seed, draws, negated=lower_better)
    return _metric_effect(claim, results)


# Metrics under attack.


def _metric_effect(claim: Claim, results: Results) -> Effect:
    """The effect of a claim about metrics under attack.

    `matched` models are chosen once, on all images, not anew for each resample.
    """
    number_of = functools.cache(functools.partial(_Number, claim.relative, results))
    terms = [_terms(claim, results, i) for i in range(len(results.seeds))]
    parts = [
        [
            (term.weight / len(term.points), number_of(point, i))
            for term in seed_terms
            for point in term.points
        ]
        for i, seed_terms in enumerate(terms)
    ]
    by_seed = np.array(
        [_sum([weight * number.value for weight, number in part]) for part in parts]
    )
    present_parts = [
        part for part, x in zip(parts, by_seed, strict=True) if not np.isnan(x)
    ]
    units, note = _common_units([n for part in present_parts for _, n in part])

    def on_images(counts: np.ndarray) -> np.ndarray:
        effects = np.full((len(counts), len(parts)), np.nan)
        for i, part in enumerate(parts):
            if not np.isnan(by_seed[i]):
                effects[:, i] = sum(w * number.resampled(counts) for w, number in part)
        return effects

    count = units.count if units else 0
    draws = statistics.bootstrap(
        by_seed, on_images if count else None, count, resamples=RESAMPLES
    )
    over = "seeds"
    if units:
        over = (
            units.over if len(present_parts) < _MIN_SEEDS else f"seeds and {units.over}"
        )
    gaps = None
    if claim.matched:
        gaps = np.array([_gap(claim, t, results, i) for i, t in enumerate(terms)])
        gaps[np.isnan(by_seed)] = np.nan
    first_points = {point.variant: point for point in reversed(claim.points)}
    clean = {v: _clean_of(first_points[v], results) for v in claim.variants}
    return Effect(by_seed, draws, over, count, clean, gaps, note=note)


def _gap(claim: Claim, terms: Sequence[Term], results: Results, index: int) -> float:
    """The mean absolute difference of clean values between models and matches."""
    total = 0.0
    for model, match in zip(terms[::2], terms[1::2], strict=True):
        model_clean, match_clean = (
            np.mean([_clean_of(point, results)[index] for point in term.points])
            for term in (model, match)
        )
        scale = match_clean if claim.relative else 1.0
        total += model.weight * (
            abs((model_clean - match_clean) / scale) if scale else np.nan
        )
    return float(total)


def _terms(claim: Claim, results: Results, index: int) -> Sequence[Term]:
    """The terms for the seed at an index, of `matched` models the nearest alone."""
    if not claim.matched:
        return claim.terms
    pairs = zip(claim.terms[::2], claim.terms[1::2], strict=True)
    return [
        term
        for model, candidates in pairs
        for term in (model, _nearest(model, candidates, results, index))
    ]


def _nearest(model: Term, candidates: Term, results: Results, index: int) -> Term:
    """The points of the candidate whose clean value is nearest to the model's.

    A candidate without a clean value may be the nearest one; then all candidates are
    returned, whose mean is not known either.
    """
    model_clean = _clean_of(model.points[0], results)[index]
    clean = {point.variant: _clean_of(point, results) for point in candidates.points}
    distances = {
        name: abs(values[index] - model_clean) for name, values in clean.items()
    }
    if np.isnan(list(distances.values())).any():
        return candidates
    nearest = min(distances, key=distances.__getitem__)
    points = tuple(p for p in candidates.points if p.variant == nearest)
    return dataclasses.replace(candidates, points=points)


def _clean_of(point: Point, results: Results) -> np.ndarray:
    """Clean values on the images of the point's own attack, `[seeds]`."""
    return results.values(point.variant, point.attack, 0.0, point.task, point.metric)


def _sum(values: Sequence[float]) -> float:
    """The sum of values, where mere rounding counts as 0 and not as an effect."""
    total = float(np.sum(values))
    return 0.0 if abs(total) < _ROUNDING * np.abs(values).sum() else total


class _Number:
    """The value of a point for the seed at an index; higher is more robust.

    Attributes:
      fault: A sentence about rows that do not give the value of their record; empty
        where none were met.
    """

    def __init__(self, relative: bool, results: Results, point: Point, index: int):
        self._relative = relative
        self._results = results
        self._radii = (point.eps, 0.0) if relative else (point.eps,)
        self._sums = functools.cache(self._read_sums)  # By radius.
        self._optional_record = results.record(
            point.variant,
            results.seeds[index],
            point.attack,
            point.eps,
            point.task,
            point.metric,
            point.attacked,
            **dict(point.choice),
        )
        self.fault = ""

    @property
    def value(self) -> float:
        """The value on all images; NaN where there is no record."""
        record = self._optional_record
        if record is None:
            return np.nan
        return float(self._robustness(*(value_of(record, eps) for eps in self._radii)))

    @property
    def _record(self) -> dict[str, Any]:
        """The record of a number that has a value."""
        return present(self._optional_record, "record")

    @functools.cached_property
    def _metric(self) -> metrics.Metric:
        """The metric, without the classes that the record leaves out."""
        metric = _metric(self._record)
        if metric.name in ("miou", "image_miou"):
            ignored = self._results.ignored_of(self._record)
            return metrics.without_classes(metric, ignored)
        return metric

    @functools.cached_property
    def units(self) -> resampling.Units | None:
        """The units of its images; None without rows."""
        return self._results.units_of(self._record)

    def has_rows(self) -> bool:
        """Whether there are rows that give the record's values when summed.

        A user's own metric may have the name of another one, or not be such a sum.
        """
        for eps in self._radii:
            value, sums = value_of(self._record, eps), self._sums(eps)
            if sums is None or not np.isfinite(value):
                return False
            try:
                rows_value = self._metric.over(sums)
            except (ValueError, IndexError):  # Rows of another shape.
                rows_value = np.nan
            if not np.isclose(rows_value, value, rtol=1e-4, atol=1e-6):
                self.fault = _mismatch_note(self._record, value, rows_value)
                return False
        return True

    def resampled(self, counts: np.ndarray) -> np.ndarray:
        """Values with units drawn `counts` times.

        Args:
          counts: `[resamples, units]`.

        Returns:
          `[resamples]`.
        """
        units = present(self.units, "units")
        all_sums = [present(self._sums(eps), "rows") for eps in self._radii]
        return self._robustness(
            *(intervals.resampled(self._metric, s, units, counts) for s in all_sums)
        )

    def _robustness(self, attacked: Any, clean: Any = None) -> Any:
        if self._relative:
            return -metrics.relative_vulnerability(self._metric, clean, attacked)
        return attacked if self._metric.better == "higher" else -attacked

    def _read_sums(self, eps: float) -> np.ndarray | None:
        """The sums of rows by unit at a radius; None without rows."""
        rows = self._results.rows_of(self._record, eps)
        if rows is None or self.units is None:
            return None
        return intervals.summed(self._metric, rows, self.units)


def _common_units(
    numbers: Sequence[_Number],
) -> tuple[resampling.Units | None, str]:
    """The units of all rows; None if rows are absent, few or of other images.

    Then the second part says why, if rows do not give the value of their record.
    """
    all_units = []
    for number in numbers:
        if number.units is None or not number.has_rows():
            return None, number.fault
        all_units.append(number.units)
    if not all_units or all_units[0].count < resampling.LEAST:
        return None, ""
    first = all_units[0]
    all_equal = all(np.array_equal(units.of, first.of) for units in all_units)
    return (first if all_equal else None), ""


def _metric(record: Mapping[str, Any]) -> metrics.Metric:
    """The metric of a record.

    Metrics of the same name are the same metric, for all kinds of tasks, if the record
    agrees in which values are better. All others are the user's own, and are taken to
    be means; the record says which of their values are better.
    """
    name, better = record["metric"], record.get("better")
    standard = _metrics_by_name().get(name)
    if standard and better in (None, standard.better):
        return standard
    return metrics.of_function(name, lambda *args: 0, better or "lower")


def _mismatch_note(record: Mapping[str, Any], value: float, rows_value: float) -> str:
    """A sentence about rows that do not give the value of their record."""
    result = "no value" if np.isnan(rows_value) else f"{rows_value:.4g}"
    return (
        f"The interval leaves out the choice of images: the rows of {record['task']} "
        f"{record['metric']} in {record['folder']} give {result}, but its record says "
        f"{value:.4g}; a metric of your own may not be a mean, or may have the name of "
        "another."
    )


@functools.cache
def _metrics_by_name() -> dict[str, metrics.Metric]:
    """The metrics of the eleven tasks and of all kinds by name, but not top-k."""
    kinds = tasks_lib.KINDS.values()
    scores = [
        m for kind in kinds for axes in (0, 1, MAP) for m in kind.metrics("", axes)
    ]
    scores += [m for task in tasks_lib.TASKS.values() for m in task.metrics]
    scores += map(more_metrics.named, metric_names.MORE)
    return {metric.name: metric for metric in scores}


# Measures.


def _measure_value(
    claim: Claim, results: Results, seed: int, lower_better: bool
) -> float:
    """A measure's effect for one seed, the mean over variants; NaN where one is absent.

    Metrics where lower is better are negated, as under attacks. For a claim of
    nearness, the effect is the signed difference from the reference.
    """
    measure = claim.measure
    value, *subtrahends = [
        _variants_mean(claim, side, results, seed) for side in _sides(claim)
    ]
    sign = -1 if lower_better else 1
    parts = [value, *(-x for x in subtrahends), -measure["reference"]]
    return sign * measure["sign"] * _sum(parts)


def _sides(claim: Claim) -> list[Mapping[str, Any]]:
    """The measure of a claim, and the one that is subtracted from it, if any."""
    minus = claim.measure["minus"]
    return [claim.measure, *([{**claim.measure, **minus}] if minus else [])]


def _lower_is_better(claim: Claim, results: Results) -> bool:
    """Whether a measure is of metrics where lower values are better."""
    better = set()
    for measure in _sides(claim):
        for variant in measure["variants"]:
            records = results.measures(measure["attack"], variant)
            if results.study.has_own_data:
                _check_metrics(claim, measure, records)
            matches = _matching_records(measure, records)
            better |= {record.get("better") for record in matches}
    if better >= {"higher", "lower"}:
        raise InputError(f"claim {claim.id!r}: {claim_checks.MIXED}")
    return "lower" in better


def _check_metrics(
    claim: Claim, measure: Mapping[str, Any], records: Sequence[Record]
) -> None:
    """Raises `InputError` if no record of a measure has one of its metrics.

    A study on a user's own data names metrics before it is known which ones exist.
    """
    keys = {k: measure[k] for k in ("measure", "quantity", "tasks") if k in measure}
    matches = _matching_records(keys, records)
    choices = list(dict.fromkeys(r["metric"] for r in matches if "metric" in r))
    names = measure.get("metric", [])
    for name in names if isinstance(names, list) else [names]:
        if choices and name not in choices:
            raise InputError(
                f"claim {claim.id!r} asks for the metric {name!r} of "
                f"{measure['quantity']}, which has {', '.join(choices)}"
                f"{did_you_mean(name, choices, '; did') or '.'} Name one of these."
            )


def _variants_mean(
    claim: Claim, measure: Mapping[str, Any], results: Results, seed: int
) -> float:
    attack = measure["attack"]
    values = [
        _records_mean(claim, measure, results.measures(attack, variant, seed))
        for variant in measure["variants"]
    ]
    return float(np.mean(values))


def _records_mean(
    claim: Claim, measure: Mapping[str, Any], records: Sequence[Record]
) -> float:
    """The mean over the records that a measure chooses; lists choose several values.

    NaN unless there is one record for each combination of these values.
    """
    matches = _matching_records(measure, records)
    list_keys = [key for key in MEASURE if isinstance(measure.get(key), list)]
    _check_unique(claim, matches, list_keys)
    value_sets = [set(measure[key]) for key in list_keys if key != "tasks"]
    if len(matches) < math.prod(map(len, value_sets)):
        return np.nan
    values = []
    for record in matches:
        value, ratio_key = record.get(measure["field"]), measure["ratio_to"]
        divisor = record.get(ratio_key) if ratio_key else 1.0
        if value is None or not divisor:
            return np.nan
        values.append(value / divisor)
    return float(np.mean(values)) if values else np.nan


def _matching_records(
    measure: Mapping[str, Any], records: Sequence[Record]
) -> list[Record]:
    conditions = {key: measure[key] for key in MEASURE if key in measure}
    return [record for record in records if fits(record, conditions)]


def _check_unique(
    claim: Claim, records: Sequence[Record], list_keys: Sequence[str]
) -> None:
    """Refuses several records for one combination of values that the claim lists."""
    combinations = {tuple(str(r.get(key)) for key in list_keys) for r in records}
    if len(combinations) < len(records):
        keys = [key for key in MEASURE if key not in list_keys]
        raise InputError(
            f"claim {claim.id!r}: several records of the measure fit; choose one with "
            f"{differences(records, keys) or 'fewer of them'}."
        )
