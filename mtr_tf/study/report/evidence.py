# SPDX-License-Identifier: Apache-2.0
"""What a claim rests on: the plot that shows it, and warnings about its attacks."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence
from typing import Any

from mtr_tf.study.claim_file import Claim
from mtr_tf.study.claim_file import Point
from mtr_tf.study.report import curves as curves_lib
from mtr_tf.study.report import plots
from mtr_tf.study.report.curves import Curve


def plot_of(
    claim: Claim, curves: Sequence[Curve], known: Collection[str]
) -> str | None:
    """The `id` of the plot that shows a claim's numbers; None if there is none.

    Args:
      claim: The claim; of a sum its first term is looked at.
      curves: All of the report.
      known: The ids of all its plots.
    """
    if claim.measure:  # An attack has one norm, which a claim may leave out.
        wanted = [_of_measure(claim, norm) for norm in ("l2", "linf")]
    else:
        curve = _curve_of(claim, curves)
        wanted = [curve.id] if curve else []
    return next((plot for plot in wanted if plot in known), None)


def attack_of(claim: Claim, curves: Sequence[Curve]) -> str:
    """The attack of a claim in words; empty for a measure, or where none is done."""
    curve = None if claim.measure else _curve_of(claim, curves)
    return curve.attack if curve else ""


def _curve_of(claim: Claim, curves: Sequence[Curve]) -> Curve | None:
    """The curve of the first number that a claim compares."""
    point = claim.terms[0].points[0]
    for curve in curves:
        shown = (curve.task, curve.metric) == (point.task, point.metric)
        if shown and _is_under(point, curve):
            return curve
    return None


def _is_under(point: Point, curve: Curve) -> bool:
    """Whether a point of a claim is under the attack that a curve is of."""
    same = (point.attack, {*point.attacked}) == (curve.spec, {*curve.attacked})
    return same and dict(point.choice).items() <= curve.facts.items()


def _of_measure(claim: Claim, norm: str) -> str:
    """The plot of the first variant, norm and so on that are named, else of `norm`."""
    chosen = {name: _first(value) for name, value in claim.measure.items()}
    quantity, kind = chosen["quantity"], chosen["measure"]
    norm = chosen.get("norm", norm)
    if kind == "tasks" and "cosine" in quantity:
        what = (quantity.removeprefix("mean_"),)
    elif kind == "tasks":
        what = (kind, norm, chosen.get("normalisation", "raw"))
    elif quantity == "attacked_pixels":
        what = (quantity, chosen.get("tasks", ""), chosen.get("metric", ""))
    elif kind == "first_order":
        what = (kind, norm, "ratio")
    else:
        what = (kind, norm)
    return plots.measure_id(chosen["attack"], chosen["variants"], *what)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value


def warnings_of(claim: Claim, curves: Sequence[Curve]) -> list[str]:
    """What the checks of the attacks found on the models that a claim compares."""
    points = [point for term in claim.terms for point in term.points]
    found: dict[str, dict[str, set[int]]] = {}
    for curve in curves:
        variants = {point.variant for point in points if _is_under(point, curve)}
        for reason, whose in curve.warnings.items():
            for variant in (v for v in whose if v in variants):
                of = found.setdefault(f"{curve.spec}: {reason}", {})
                of.setdefault(variant, set()).update(whose[variant])
    return curves_lib.warning_lines(found)
