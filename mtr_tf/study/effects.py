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
_SEVERAL = 2  # Seeds, at least, that can be drawn.
_ROUNDING = 1e-12  # Sums this much smaller than what is summed are 0.

Weighted = tuple[tuple[float, Point], ...]


@dataclasses.dataclass(frozen=True)
class Effect:
    """A claim's number.

    Attributes:
      by_seed: `[seeds]`, NaN where a part of it is missing.
      draws: Resampled means, `[resamples]`; see `statistics.bootstrap`.
      over: What was resampled: "seeds", "seeds and images", "seeds and 3 cities".
      units: How many of images, or of what is drawn in their place; 0: none.
      clean: {variant: its clean values `[seeds]`} of all that are compared.
      gaps: Of `matched` models: by how much clean values differ from those of the
        matches, up or down, the mean over models, `[seeds]`; of relative claims as a
        share of the match's. None of others.
      negated: Of a measure: whether lower values of its metric are better.
      note: Why images were not drawn though there are rows; else empty.
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
        """Over the seeds; None where no seed has it."""
        known = self.by_seed[~np.isnan(self.by_seed)]
        return float(known.mean()) if len(known) else None

    @property
    def n(self) -> int:
        """How many seeds have it."""
        return int((~np.isnan(self.by_seed)).sum())

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, by percentiles and widened for few seeds or units."""
        ends = intervals.percentiles(self.draws, CONFIDENCE)
        if self.mean is None or np.isnan(ends[0]):
            return None
        if self.n < _SEVERAL and not self.units:
            return None  # Nothing was drawn.
        counts = [count for count in (self.n, self.units) if count > 1]
        few = min(counts, default=1)
        low, high = resampling.widened(ends, self.mean, few, CONFIDENCE)
        return float(low), float(high)


def of(claim: Claim, results: Results) -> Effect:
    """The effect of a claim in the results that there are.

    Raises:
      InputError: Several records fit one of its numbers, or metrics of a measure do
        not agree in which values are better, or no record ever has one of them.
    """
    if claim.measure:
        _check_metrics(claim, results)
        lower = _is_lower(claim, results)
        by_seed = np.array([_measured(claim, results, s, lower) for s in results.seeds])
        draws = statistics.bootstrap(by_seed, resamples=RESAMPLES)
        return Effect(by_seed, draws, negated=lower)
    return _compared(claim, results)


# Metrics under attack.


def _compared(claim: Claim, results: Results) -> Effect:
    """Choices among `matched` models are made on all images, and stay."""
    parts = [_parts(claim, results, i) for i in range(len(results.seeds))]
    numbers = _Numbers(claim, results)
    by_seed = np.array([numbers.sum(part, i) for i, part in enumerate(parts)])
    clean = {v: _clean(claim, results, v) for v in claim.variants}
    units = numbers.units(parts, by_seed)

    def on_images(counts: np.ndarray) -> np.ndarray:
        found = np.full((len(counts), len(parts)), np.nan)
        for i, part in enumerate(parts):
            if not np.isnan(by_seed[i]):
                found[:, i] = sum(
                    weight * numbers.resampled(point, i, counts)
                    for weight, point in part
                )
        return found

    count = units.count if units else 0
    draws = statistics.bootstrap(
        by_seed, on_images if count else None, count, resamples=RESAMPLES
    )
    over = "seeds"
    if units:
        alone = (~np.isnan(by_seed)).sum() < _SEVERAL
        over = units.over if alone else f"{over} and {units.over}"
    gaps = None
    if claim.matched:
        gaps = np.array([_gap(claim, results, i) for i in range(len(parts))])
        gaps[np.isnan(by_seed)] = np.nan
    return Effect(by_seed, draws, over, count, clean, gaps, note=numbers.note)


def _gap(claim: Claim, results: Results, place: int) -> float:
    """By how much clean values of matched models differ, up or down, on average."""
    total = 0.0
    for ours, theirs in _pairs(claim, results, place):
        clean, other = (
            np.mean([_clean_of(point, results)[place] for point in term.points])
            for term in (ours, theirs)
        )
        scale = other if claim.relative else 1.0
        total += ours.weight * (abs((clean - other) / scale) if scale else np.nan)
    return float(total)


def _pairs(claim: Claim, results: Results, place: int) -> list[tuple[Term, Term]]:
    """The models of a `matched` claim, each with that of the nearest clean value."""
    pairs = zip(claim.terms[::2], claim.terms[1::2], strict=True)
    return [
        (ours, _nearest(ours, candidates, results, place)) for ours, candidates in pairs
    ]


def _parts(claim: Claim, results: Results, place: int) -> Weighted:
    """The weighted points of one seed."""
    terms = claim.terms
    if claim.matched:
        terms = tuple(term for pair in _pairs(claim, results, place) for term in pair)
    return tuple(
        (term.weight / len(term.points), point)
        for term in terms
        for point in term.points
    )


def _nearest(ours: Term, candidates: Term, results: Results, place: int) -> Term:
    """The points of the candidate whose clean value is nearest to ours.

    While one of them lacks its clean value it may be the nearest: all are returned,
    whose mean is then not known either.
    """
    wanted = _clean_of(ours.points[0], results)[place]
    clean = {point.variant: _clean_of(point, results) for point in candidates.points}
    far = {name: abs(values[place] - wanted) for name, values in clean.items()}
    if np.isnan(list(far.values())).any():
        return candidates
    chosen = min(far, key=far.__getitem__)
    points = tuple(p for p in candidates.points if p.variant == chosen)
    return dataclasses.replace(candidates, points=points)


def _clean(claim: Claim, results: Results, variant: str) -> np.ndarray:
    points = [p for term in claim.terms for p in term.points if p.variant == variant]
    return _clean_of(points[0], results)


def _clean_of(point: Point, results: Results) -> np.ndarray:
    """On the images of the point's own attack, `[seeds]`."""
    return results.values(point.variant, point.attack, 0.0, point.task, point.metric)


def _sum(values: Sequence[float]) -> float:
    """Their sum; what is only rounding is 0, or it would be above 0 in all seeds."""
    total = float(np.sum(values))
    return 0.0 if abs(total) < _ROUNDING * np.abs(values).sum() else total


class _Numbers:
    """Values of points, upwards the more robust; what is read is kept.

    Attributes:
      note: Which rows, as far as was looked, do not give the value of their record.
    """

    def __init__(self, claim: Claim, results: Results):
        self._relative = claim.relative
        self._results = results
        self._rows: dict[tuple[Point, int, bool], np.ndarray | None] = {}
        self._units: dict[str, resampling.Units | None] = {}
        self._metrics: dict[tuple[Any, ...], metrics.Metric] = {}
        self.note = ""

    def value(self, point: Point, place: int) -> float:
        """Of the seed at a place; NaN where absent."""
        record = self._record(point, place)
        if record is None:
            return np.nan
        metric = self._metric(record)
        values = [
            np.nan if record[key] is None else record[key]
            for key in ("clean", "attacked_value" if point.eps else "clean")
        ]
        return float(self._upwards(metric, *values))

    def sum(self, part: Weighted, place: int) -> float:
        """The effect of the seed at a place."""
        return _sum([weight * self.value(point, place) for weight, point in part])

    def units(
        self, parts: Sequence[Weighted], by_seed: np.ndarray
    ) -> resampling.Units | None:
        """What all rows are of; None where some are absent, of other images, or few."""
        found = []
        for place, part in enumerate(parts):
            if np.isnan(by_seed[place]):
                continue
            for _, point in part:
                units = self._units_of(self._present(point, place))
                if units is None or not self._has_rows(point, place):
                    return None
                found.append(units)
        if not found or found[0].count < resampling.LEAST:
            return None
        alike = all(np.array_equal(each.of, found[0].of) for each in found)
        return found[0] if alike else None

    def _has_rows(self, point: Point, place: int) -> bool:
        """Whether rows are there whose sums give the record's values.

        A metric of a user's own may have the name of another, or another sum.
        """
        record = self._present(point, place)
        metric = self._metric(record)
        for clean in {False, self._relative}:
            value = value_of(record, 0.0 if clean else point.eps)
            of_units = self._of(point, place, clean)
            if of_units is None or not np.isfinite(value):
                return False
            try:
                again = metric.over(of_units)
            except (ValueError, IndexError):  # Rows of another shape.
                again = np.nan
            if not np.isclose(again, value, rtol=1e-4, atol=1e-6):
                self.note = _unlike(record, value, again)
                return False
        return True

    def resampled(self, point: Point, place: int, counts: np.ndarray) -> np.ndarray:
        """Of the seed at a place, on units drawn so often, `[resamples]`."""
        record = self._present(point, place)
        metric, units = self._metric(record), present(self._units_of(record), "units")

        def drawn(clean: bool) -> np.ndarray:
            of_units = present(self._of(point, place, clean), "rows")
            return intervals.resampled(metric, of_units, units, counts)

        attacked = drawn(clean=False)
        clean = drawn(clean=True) if self._relative else attacked
        return self._upwards(metric, clean, attacked)

    def _upwards(self, metric: metrics.Metric, clean: Any, attacked: Any) -> Any:
        if self._relative:
            return -metrics.relative_vulnerability(metric, clean, attacked)
        return attacked if metric.better == "higher" else -attacked

    def _of(self, point: Point, place: int, clean: bool) -> np.ndarray | None:
        key = (point, place, clean)
        if key not in self._rows:
            record = self._present(point, place)
            rows = self._results.rows_of(record, 0.0 if clean else point.eps)
            units = self._units_of(record)
            self._rows[key] = None
            if rows is not None and units is not None:
                self._rows[key] = intervals.summed(self._metric(record), rows, units)
        return self._rows[key]

    def _metric(self, record: dict[str, Any]) -> metrics.Metric:
        """That of a record, without the classes that it leaves out."""
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

    def _present(self, point: Point, place: int) -> dict[str, Any]:
        """The record of a point that has a value at this seed."""
        return present(self._record(point, place), "record")

    def _record(self, point: Point, place: int) -> dict[str, Any] | None:
        return self._results.record(
            point.variant,
            self._results.seeds[place],
            point.attack,
            point.eps,
            point.task,
            point.metric,
            point.attacked,
            **dict(point.choice),
        )


def _metric(record: Mapping[str, Any]) -> metrics.Metric:
    """The metric of a record.

    Equal names are equal metrics, of all kinds of tasks, if the record agrees in what
    is better. Others are of a user's own: means, as those of functions are, of which
    the record says what is better.
    """
    name, better = record["metric"], record.get("better")
    known = _known_metrics().get(name)
    if known and better in (None, known.better):
        return known
    return metrics.of_function(name, lambda *given: 0, better or "lower")


def _unlike(record: Mapping[str, Any], value: float, again: float) -> str:
    """A sentence about rows that do not give the value of their record."""
    given = "no value" if np.isnan(again) else f"{again:.4g}"
    return (
        f"The interval leaves out the choice of images: the rows of {record['task']} "
        f"{record['metric']} in {record['folder']} give {given}, but its record says "
        f"{value:.4g}; a metric of your own may not be a mean, or may have the name of "
        "another."
    )


@functools.cache
def _known_metrics() -> dict[str, metrics.Metric]:
    """The metrics of the eleven and of all kinds by name, but top-k of any k."""
    kinds = tasks_lib.KINDS.values()
    scores = [
        m for kind in kinds for axes in (0, 1, MAP) for m in kind.metrics("", axes)
    ]
    scores += [m for task in tasks_lib.TASKS.values() for m in task.metrics]
    scores += map(more_metrics.named, metric_names.MORE)
    return {metric.name: metric for metric in scores}


# Measures.


def _measured(claim: Claim, results: Results, seed: int, lower: bool) -> float:
    """A measure's number of one seed, the mean over variants; NaN where one is absent.

    That of a metric which is lower the better is negated, as under attacks. A claim of
    nearness has the distance from the reference with its sign.
    """
    measure = claim.measure
    parts = [_mean_measured(claim, results, seed, {})]
    if measure["minus"]:
        parts.append(-_mean_measured(claim, results, seed, measure["minus"]))
    sign = -1 if lower else 1
    return sign * measure["sign"] * _sum([*parts, -measure["reference"]])


def _is_lower(claim: Claim, results: Results) -> bool:
    """Whether a measure is of metrics where lower values are better."""
    better = set()
    for changes in ({}, claim.measure["minus"]):
        measure = {**claim.measure, **changes}
        for variant in measure["variants"]:
            found = _fitting(measure, results.measures(measure["attack"], variant))
            better |= {record.get("better") for record in found}
    if better >= {"higher", "lower"}:
        raise InputError(f"claim {claim.id!r}: {claim_checks.MIXED}")
    return "lower" in better


def _check_metrics(claim: Claim, results: Results) -> None:
    """Raises `InputError` where no record of a measure ever has one of its metrics.

    A study on a user's own data names them before anybody knows what there are.
    """
    if not results.study.has_own_data:
        return
    for changes in ({}, claim.measure["minus"]):
        measure = {**claim.measure, **changes}
        given = measure.get("metric", [])
        of = {k: measure[k] for k in ("measure", "quantity", "tasks") if k in measure}
        for variant in measure["variants"]:
            found = _fitting(of, results.measures(measure["attack"], variant))
            known = list(dict.fromkeys(r["metric"] for r in found if "metric" in r))
            for name in given if isinstance(given, list) else [given]:
                if known and name not in known:
                    raise InputError(
                        f"claim {claim.id!r} asks for the metric {name!r} of "
                        f"{measure['quantity']}, which has {', '.join(known)}"
                        f"{did_you_mean(name, known, '; did') or '.'} Name one of "
                        "these."
                    )


def _mean_measured(
    claim: Claim, results: Results, seed: int, changes: Mapping[str, Any]
) -> float:
    measure = {**claim.measure, **changes}
    values = [
        _read(claim, results.measures(measure["attack"], variant, seed), changes)
        for variant in measure["variants"]
    ]
    return float(np.mean(values))


def _read(
    claim: Claim, records: Sequence[Mapping[str, Any]], changes: Mapping[str, Any]
) -> float:
    """The mean over the records that a measure chooses; lists choose several values.

    NaN unless there is one of each combination of these values.
    """
    measure = {**claim.measure, **changes}
    fitting = _fitting(measure, records)
    listed = [key for key in MEASURE if isinstance(measure.get(key), list)]
    _check_one_each(claim, fitting, listed)
    several = [set(measure[key]) for key in listed if key != "tasks"]
    if len(fitting) < math.prod(map(len, several)):
        return np.nan
    found = []
    for record in fitting:
        value, below = record.get(measure["field"]), measure["ratio_to"]
        divisor = record.get(below) if below else 1.0
        if value is None or not divisor:
            return np.nan
        found.append(value / divisor)
    return float(np.mean(found)) if found else np.nan


def _fitting(
    measure: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    wanted = [(key, measure[key]) for key in MEASURE if key in measure]
    return [r for r in records if all(_fits(r.get(k), v) for k, v in wanted)]


def _fits(given: Any, wanted: Any) -> bool:
    """Tasks are a list themselves; of other keys a list is a choice."""
    if isinstance(given, list):
        return sorted(given) == sorted(wanted)
    return given in wanted if isinstance(wanted, list) else given == wanted


def _check_one_each(
    claim: Claim, records: Sequence[Any], listed: Sequence[str]
) -> None:
    """Refuses two records that differ in nothing that the claim lists."""
    seen = set()
    for record in records:
        place = tuple(str(record.get(key)) for key in listed)
        if place not in seen:
            seen.add(place)
            continue
        differing = [
            f"{key} ({', '.join(sorted({str(r.get(key)) for r in records}))})"
            for key in MEASURE
            if key not in listed and len({str(r.get(key)) for r in records}) > 1
        ]
        raise InputError(
            f"claim {claim.id!r}: several records of the measure fit; choose one with "
            f"{' and '.join(differing) or 'fewer of them'}."
        )
