# SPDX-License-Identifier: Apache-2.0
"""Plots of whether the gradient's norm predicts which nets of a study resist."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf.show import series
from mtr_tf.show import text
from mtr_tf.show import theory
from mtr_tf.study import statistics
from mtr_tf.study.report.curves import Curve
from mtr_tf.study.report.plots import Plot

Record = Mapping[str, Any]


def plots(
    curves: Sequence[Curve], measures: Sequence[Record], seeds: Sequence[int]
) -> list[Plot]:
    """A plot for each attack on one task whose gradients were measured.

    Args:
      curves: All curves of the report, without differences.
      measures: The records of measures.json; the predicted rise of `first_order`,
        divided by eps, is the gradient's mean dual norm.
      seeds: The seeds of the study, in the order of the curves' values.
    """
    plot_list = []
    for curve in curves:
        if not curve.first or len(curve.attacked) > 1:
            continue
        nets = _nets(curve, _norms(measures, curve), seeds)
        if len(nets) >= statistics.LEAST_RANKED:
            plot_list.append(_plot(curve, nets))
    return plot_list


def _norms(measures: Sequence[Record], curve: Curve) -> dict[tuple[str, int], float]:
    """{(variant, seed): norm of the gradient of the task's loss}."""
    rise_records = series.chosen(
        measures,
        measure="first_order",
        quantity="rise",
        tasks=[curve.task],
        norm=curve.facts["norm"],
    )
    rise_records.sort(
        key=lambda record: -record["eps"]
    )  # Smallest eps last: it is kept.
    return {
        (record["variant"], record["seed"]): record["predicted"] / record["eps"]
        for record in rise_records
        if record.get("predicted")
    }


def _nets(
    curve: Curve, norms: Mapping[tuple[str, int], float], seeds: Sequence[int]
) -> list[theory.Net]:
    """The nets with a norm, a value at each radius, and a clean value above 0."""
    sign = 1 if curve.facts["better"] == "higher" else -1
    nets = []
    for variant, values in curve.values.items():
        for seed, row in zip(seeds, values, strict=True):
            norm = norms.get((variant, seed))
            if norm and row[0] > 0 and not np.isnan(row).any():
                loss = sign * (row[0] - row[1:]) / row[0]
                nets.append(theory.Net(variant, norm, 100 * loss))
    return nets


def _plot(curve: Curve, nets: Sequence[theory.Net]) -> Plot:
    norms = np.array([net.norm for net in nets])
    losses = np.array([net.lost for net in nets])
    titles = []
    for index, eps in enumerate(curve.eps[1:]):
        rho = statistics.rank_correlation(norms, losses[:, index])
        ends = statistics.rank_interval(rho, len(nets)) if abs(rho) < 1 else None
        titles.append(
            f"eps {eps:g}: ρ {text.number(rho)} ({text.interval(ends, text.number)})"
        )
    title = f"{curve.task} {curve.metric} lost under {curve.attack}, by gradient norm"
    return Plot(
        text.identifier("resistance", curve.spec, curve.label, curve.task),
        title,
        f"{len(nets)} nets, each a mark. ρ: Spearman's rank correlation with its 95 % "
        "interval, nets taken as independent; above 0, nets of larger gradients lose "
        "more.",
        f"{title}: {'; '.join(titles)}.",
        functools.partial(theory.resistance, title, titles, nets, curve.facts["norm"]),
    )
