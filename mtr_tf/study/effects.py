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
from mtr_tf.study.results import Results
from mtr_tf.study.results import value_of
from mtr_tf.tasks import metric_names
from mtr_tf.tasks import metrics
from mtr_tf.tasks import more_metrics
from mtr_tf.tasks.task import MAP

RESAMPLES = 10_000
CONFIDENCE = 0.95
_MIN_SEEDS = 2  # Fewer seeds are not resampled.
_ROUNDING = 1e-12  # Sums smaller than this share of what is summed count as 0.

Weighted = tuple[tuple[float, Point], ...]


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
        _check_metrics(claim, results)
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
    parts = [_parts(claim, results, i) for i in range(len(results.seeds))]
    numbers = _Numbers(claim, results)
    by_seed = np.array([numbers.sum(part, i) for i, part in enumerate(parts)])
    clean = {v: _clean(claim, results, v) for v in claim.variants}
    units = numbers.units(parts, by_seed)

    def on_images(counts: np.ndarray) -> np.ndarray:
        effects = np.full((len(counts), len(parts)), np.nan)
        for i, part in enumerate(parts):
            if not np.isnan(by_seed[i]):
                effects[:, i] = sum(
                    weight * numbers.resampled(point, i, counts)
                    for weight, point in part
                )
        return effects

    count = units.count if units else 0
    draws = statistics.bootstrap(
        by_seed, on_images if count else None, count, resamples=RESAMPLES
    )
    over = "seeds"
    if units:
        single_seed = (~np.isnan(by_seed)).sum() < _MIN_SEEDS
        over = units.over if single_seed else f"{over} and {units.over}"
    gaps = None
    if claim.matched:
        gaps = np.array([_gap(claim, results, i) for i in range(len(parts))])
        gaps[np.isnan(by_seed)] = np.nan
    return Effect(by_seed, draws, over, count, clean, gaps, note=numbers.note)


def _gap(claim: Claim, results: Results, index: int) -> float:
    """The mean absolute difference of clean values between models and matches."""
    total = 0.0
    for model, match in _pairs(claim, results, index):
        model_clean, match_clean = (
            np.mean([_clean_of(point, results)[index] for point in term.points])
            for term in (model, match)
        )
        scale = match_clean if claim.relative else 1.0
        total += model.weight * (
            abs((model_clean - match_clean) / scale) if scale else np.nan
        )
    return float(total)


def _pairs(claim: Claim, results: Results, index: int) -> list[tuple[Term, Term]]:
    """The models of a `matched` claim, each with its match of nearest clean value."""
    pairs = zip(claim.terms[::2], claim.terms[1::2], strict=True)
    return [
        (model, _nearest(model, candidates, results, index))
        for model, candidates in pairs
    ]


def _parts(claim: Claim, results: Results, index: int) -> Weighted:
    """The weighted points of the seed at an index."""
    terms = claim.terms
    if claim.matched:
        terms = tuple(term for pair in _pairs(claim, results, index) for term in pair)
    return tuple(
        (term.weight / len(term.points), point)
        for term in terms
        for point in term.points
    )


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


def _clean(claim: Claim, results: Results, variant: str) -> np.ndarray:
    points = [p for term in claim.terms for p in term.points if p.variant == variant]
    return _clean_of(points[0], results)


def _clean_of(point: Point, results: Results) -> np.ndarray:
    """Clean values on the images of the point's own attack, `[seeds]`."""
    return results.values(point.variant, point.attack, 0.0, point.task, point.metric)


def _sum(values: Sequence[float]) -> float:
    """The sum of values, where mere rounding counts as 0 and not as an effect."""
    total = float(np.sum(values))
    return 0.0 if abs(total) < _ROUNDING * np.abs(values).sum() else total


class _Numbers:
    """Values of points, where higher is more robust; keeps what it has read.

    Attributes:
      note: A sentence about rows that do not give the value of their record; empty if
        none were met.
    """

    def __init__(self, claim: Claim, results: Results):
        self._relative = claim.relative
        self._results = results
        self._rows: dict[tuple[Point, int, bool], np.ndarray | None] = {}
        self._units: dict[str, resampling.Units | None] = {}
        self._metrics: dict[tuple[Any, ...], metrics.Metric] = {}
        self.note = ""

    def value(self, point: Point, index: int) -> float:
        """The value of a point for the seed at an index; NaN where absent."""
        record = self._record(point, index)
        if record is None:
            return np.nan
        metric = self._metric(record)
        values = [
            np.nan if record[key] is None else record[key]
            for key in ("clean", "attacked_value" if point.eps else "clean")
        ]
        return float(self._robustness(metric, *values))

    def sum(self, part: Weighted, index: int) -> float:
        """The effect for the seed at an index."""
        return _sum([weight * self.value(point, index) for weight, point in part])

    def units(
        self, parts: Sequence[Weighted], by_seed: np.ndarray
    ) -> resampling.Units | None:
        """The units of all rows; None if rows are absent, few or of other images."""
        all_units = []
        for index, part in enumerate(parts):
            if np.isnan(by_seed[index]):
                continue
            for _, point in part:
                units = self._units_of(self._existing_record(point, index))
                if units is None or not self._has_rows(point, index):
                    return None
                all_units.append(units)
        if not all_units or all_units[0].count < resampling.LEAST:
            return None
        all_equal = all(
            np.array_equal(units.of, all_units[0].of) for units in all_units
        )
        return all_units[0] if all_equal else None

    def _has_rows(self, point: Point, index: int) -> bool:
        """Whether there are rows that give the record's values when summed.

        A user's own metric may have the name of another one, or not be such a sum.
        """
        record = self._existing_record(point, index)
        metric = self._metric(record)
        for clean in {False, self._relative}:
            value = value_of(record, 0.0 if clean else point.eps)
            sums = self._unit_sums(point, index, clean)
            if sums is None or not np.isfinite(value):
                return False
            try:
                rows_value = metric.over(sums)
            except (ValueError, IndexError):  # Rows of another shape.
                rows_value = np.nan
            if not np.isclose(rows_value, value, rtol=1e-4, atol=1e-6):
                self.note = _mismatch_note(record, value, rows_value)
                return False
        return True

    def resampled(self, point: Point, index: int, counts: np.ndarray) -> np.ndarray:
        """Values for the seed at an index, with units drawn `counts` times.

        Args:
          point: The point.
          index: Index of the seed.
          counts: `[resamples, units]`.

        Returns:
          `[resamples]`.
        """
        record = self._existing_record(point, index)
        metric, units = self._metric(record), present(self._units_of(record), "units")

        def resample(clean: bool) -> np.ndarray:
            sums = present(self._unit_sums(point, index, clean), "rows")
            return intervals.resampled(metric, sums, units, counts)

        attacked = resample(clean=False)
        clean = resample(clean=True) if self._relative else attacked
        return self._robustness(metric, clean, attacked)

    def _robustness(self, metric: metrics.Metric, clean: Any, attacked: Any) -> Any:
        if self._relative:
            return -metrics.relative_vulnerability(metric, clean, attacked)
        return attacked if metric.better == "higher" else -attacked

    def _unit_sums(self, point: Point, index: int, clean: bool) -> np.ndarray | None:
        key = (point, index, clean)
        if key not in self._rows:
            record = self._existing_record(point, index)
            rows = self._results.rows_of(record, 0.0 if clean else point.eps)
            units = self._units_of(record)
            self._rows[key] = None
            if rows is not None and units is not None:
                self._rows[key] = intervals.summed(self._metric(record), rows, units)
        return self._rows[key]

    def _metric(self, record: dict[str, Any]) -> metrics.Metric:
        """The metric of a record, without the classes that the record leaves out."""
        names = ("folder", "task", "metric", "better")
        key = tuple(record.get(name) for name in names)
        if key not in self._metrics:
            metric = _metric(record)
            if metric.name in ("miou", "image_miou"):
                ignored = self._results.ignored_of(record)
                metric = metrics.without_classes(metric, ignored)
            self._metrics[key] = metric
        return self._metrics[key]

    def _units_of(self, record: dict[str, Any]) -> resampling.Units | None:
        path = f"{record['folder']}/{record.get('clean_rows')}"
        if path not in self._units:
            self._units[path] = self._results.units_of(record)
        return self._units[path]

    def _existing_record(self, point: Point, index: int) -> dict[str, Any]:
        """The record of a point that has a value at this seed."""
        return present(self._record(point, index), "record")

    def _record(self, point: Point, index: int) -> dict[str, Any] | None:
        return self._results.record(
            point.variant,
            self._results.seeds[index],
            point.attack,
            point.eps,
            point.task,
            point.metric,
            point.attacked,
            **dict(point.choice),
        )


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
    parts = [_variants_mean(claim, results, seed, {})]
    if measure["minus"]:
        parts.append(-_variants_mean(claim, results, seed, measure["minus"]))
    sign = -1 if lower_better else 1
    return sign * measure["sign"] * _sum([*parts, -measure["reference"]])


def _lower_is_better(claim: Claim, results: Results) -> bool:
    """Whether a measure is of metrics where lower values are better."""
    better = set()
    for changes in ({}, claim.measure["minus"]):
        measure = {**claim.measure, **changes}
        for variant in measure["variants"]:
            records = _matching_records(
                measure, results.measures(measure["attack"], variant)
            )
            better |= {record.get("better") for record in records}
    if better >= {"higher", "lower"}:
        raise InputError(f"claim {claim.id!r}: {claim_checks.MIXED}")
    return "lower" in better


def _check_metrics(claim: Claim, results: Results) -> None:
    """Raises `InputError` if no record of a measure has one of its metrics.

    A study on a user's own data names metrics before it is known which ones exist.
    """
    if not results.study.has_own_data:
        return
    for changes in ({}, claim.measure["minus"]):
        measure = {**claim.measure, **changes}
        names = measure.get("metric", [])
        keys = {k: measure[k] for k in ("measure", "quantity", "tasks") if k in measure}
        for variant in measure["variants"]:
            records = _matching_records(
                keys, results.measures(measure["attack"], variant)
            )
            choices = list(dict.fromkeys(r["metric"] for r in records if "metric" in r))
            for name in names if isinstance(names, list) else [names]:
                if choices and name not in choices:
                    raise InputError(
                        f"claim {claim.id!r} asks for the metric {name!r} of "
                        f"{measure['quantity']}, which has {', '.join(choices)}"
                        f"{did_you_mean(name, choices, '; did') or '.'} Name one of "
                        "these."
                    )


def _variants_mean(
    claim: Claim, results: Results, seed: int, changes: Mapping[str, Any]
) -> float:
    measure = {**claim.measure, **changes}
    values = [
        _records_mean(
            claim, results.measures(measure["attack"], variant, seed), changes
        )
        for variant in measure["variants"]
    ]
    return float(np.mean(values))


def _records_mean(
    claim: Claim, records: Sequence[Mapping[str, Any]], changes: Mapping[str, Any]
) -> float:
    """The mean over the records that a measure chooses; lists choose several values.

    NaN unless there is one record for each combination of these values.
    """
    measure = {**claim.measure, **changes}
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
    measure: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    conditions = [(key, measure[key]) for key in MEASURE if key in measure]
    return [r for r in records if all(_matches(r.get(k), v) for k, v in conditions)]


def _matches(value: Any, condition: Any) -> bool:
    """Whether a value fits; lists of tasks must be equal, others are a choice."""
    if isinstance(value, list):
        return sorted(value) == sorted(condition)
    return value in condition if isinstance(condition, list) else value == condition


def _check_unique(
    claim: Claim, records: Sequence[Any], list_keys: Sequence[str]
) -> None:
    """Refuses several records for one combination of values that the claim lists."""
    combinations = set()
    for record in records:
        combination = tuple(str(record.get(key)) for key in list_keys)
        if combination not in combinations:
            combinations.add(combination)
            continue
        differences = [
            f"{key} ({', '.join(sorted({str(r.get(key)) for r in records}))})"
            for key in MEASURE
            if key not in list_keys and len({str(r.get(key)) for r in records}) > 1
        ]
        raise InputError(
            f"claim {claim.id!r}: several records of the measure fit; choose one with "
            f"{' and '.join(differences) or 'fewer of them'}."
        )
