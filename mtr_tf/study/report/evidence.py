# SPDX-License-Identifier: Apache-2.0
"""The evidence for a claim: the plot that shows it, and warnings about its attacks."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence
from typing import Any

from mtr_tf.study.claim_file import Claim
from mtr_tf.study.claim_file import Point
from mtr_tf.study.report import curves as curves_lib
from mtr_tf.study.report import plots
from mtr_tf.study.report.curves import Curve


def plot_of(claim: Claim, curves: Sequence[Curve], ids: Collection[str]) -> str | None:
    """The `id` of the plot that shows a claim's numbers; None if there is none.

    Args:
      claim: The claim; only its first term counts.
      curves: All curves of the report.
      ids: The ids of all plots of the report.
    """
    if claim.measure:  # An attack has one norm, which a claim may leave out.
        candidates = [_measure_plot(claim, norm) for norm in ("l2", "linf")]
    else:
        curve = _curve_of(claim, curves)
        candidates = [curve.id] if curve else []
    return next((plot for plot in candidates if plot in ids), None)


def attack_of(claim: Claim, curves: Sequence[Curve]) -> str:
    """The attack of a claim in words; empty for a measure, or without results."""
    curve = None if claim.measure else _curve_of(claim, curves)
    return curve.attack if curve else ""


def _curve_of(claim: Claim, curves: Sequence[Curve]) -> Curve | None:
    """The curve of the first point of a claim; None if there is none."""
    point = claim.terms[0].points[0]
    for curve in curves:
        same_metric = (curve.task, curve.metric) == (point.task, point.metric)
        if same_metric and _is_under(point, curve):
            return curve
    return None


def _is_under(point: Point, curve: Curve) -> bool:
    """Whether a point of a claim and a curve are of the same attack."""
    same_attack = (point.attack, {*point.attacked}) == (curve.spec, {*curve.attacked})
    return same_attack and dict(point.choice).items() <= curve.facts.items()


def _measure_plot(claim: Claim, norm: str) -> str:
    """The id of a measure's plot, for the first variant, norm and so on that it names.

    `norm` is used if the claim names no norm.
    """
    choice = {name: _first_value(value) for name, value in claim.measure.items()}
    quantity, kind = choice["quantity"], choice["measure"]
    norm = choice.get("norm", norm)
    if kind == "tasks" and "cosine" in quantity:
        parts = (quantity.removeprefix("mean_"),)
    elif kind == "tasks":
        parts = (kind, norm, choice.get("normalisation", "raw"))
    elif quantity == "attacked_pixels":
        parts = (quantity, choice.get("tasks", ""), choice.get("metric", ""))
    elif kind == "first_order":
        parts = (kind, norm, "ratio")
    else:
        parts = (kind, norm)
    return plots.measure_id(choice["attack"], choice["variants"], *parts)


def _first_value(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value


def warnings_of(claim: Claim, curves: Sequence[Curve]) -> list[str]:
    """The warnings from checks of attacks on the models that a claim compares."""
    points = [point for term in claim.terms for point in term.points]
    by_reason: dict[str, dict[str, set[int]]] = {}
    for curve in curves:
        variants = {point.variant for point in points if _is_under(point, curve)}
        for reason, seeds in curve.warnings.items():
            for variant in (v for v in seeds if v in variants):
                by_variant = by_reason.setdefault(f"{curve.spec}: {reason}", {})
                by_variant.setdefault(variant, set()).update(seeds[variant])
    return curves_lib.warning_lines(by_reason)
