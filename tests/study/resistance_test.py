# SPDX-License-Identifier: Apache-2.0
"""Gradient norms against what nets lose under attack, computed by hand."""

from __future__ import annotations

import figure_fixture
import numpy as np
import pytest
import scipy.stats

from mtr_tf.study.report import resistance
from mtr_tf.study.report.curves import Curve

SEEDS = (3, 4, 5)
VALUES = {
    "s": np.array([[0.5, 0.4, 0.1], [0.5, 0.3, 0.2], [0.4, 0.3, 0.1]]),
    "s+d": np.array([[0.5, 0.45, 0.3], [0.5, 0.42, 0.2], [0.4, np.nan, 0.2]]),
    "s+n": np.array([[0.5, 0.44, 0.3], [0.6, 0.42, 0.2], [0.4, 0.35, 0.2]]),
}
NORMS = {"s": [3.0, 5.0, 4.0], "s+d": [1.0, 2.0, 1.5], "s+n": [1.2, 2.5, 0.5]}


def curve(attacked=("seg",), **facts):
    facts = {"unit": "", "better": "higher", "norm": "linf"} | facts
    eps = np.array([0.0, 1.0, 2.0])
    fields = ("strong", "apgd", attacked, "seg", "miou", True, facts, eps, VALUES, {})
    return Curve(*fields)


def measures():
    return [
        {"measure": "first_order", "quantity": "rise", "tasks": ["seg"]}
        | {"norm": "linf", "variant": variant, "seed": seed, "eps": eps}
        | {"predicted": norm * eps * (1 if eps < 1 else 7)}  # Larger radii are ignored.
        for variant, norms in NORMS.items()
        for seed, norm in zip(SEEDS, norms, strict=True)
        for eps in (0.25, 4.0)
    ]


def test_the_rank_correlation_is_that_of_all_nets_with_both_numbers():
    (plot,) = resistance.plots([curve()], measures(), SEEDS)
    norms, drops = [], []
    for variant, values in VALUES.items():
        for norm, row in zip(NORMS[variant], values, strict=True):
            if not np.isnan(row).any():
                norms.append(norm)
                drops.append((row[0] - row[1]) / row[0])
    rho = scipy.stats.spearmanr(norms, drops).statistic
    assert len(norms) == 8
    assert "8 nets" in plot.caption
    assert f"eps 1: ρ {rho:.3f} (" in plot.alt
    axes, *_, last = figure_fixture.drawn(plot.draw).axes
    figure_fixture.check(axes.figure)
    label = "dual norm of the gradient\n[loss over eps, linf (levels of 0-255)]"
    assert last.get_xlabel() == label
    points = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_allclose(points["s+d"], [[1.0, 10], [2.0, 16]])


def test_nets_without_a_clean_value_above_0_have_no_share_to_lose(monkeypatch):
    """As with minus PSNR: the share lost from -20 to -25 would have the wrong sign."""
    values = {**VALUES, "s+d": -VALUES["s+d"]}
    monkeypatch.setitem(globals(), "VALUES", values)
    nets = resistance._nets(curve(), resistance._norms(measures(), curve()), SEEDS)
    assert [net.variant for net in nets] == ["s"] * 3 + ["s+n"] * 3


@pytest.mark.parametrize(
    "changes", [{"attacked": ("seg", "depth")}, {"norm": "l2"}, {"few": True}]
)
def test_no_plot_where_norms_are_of_something_else_or_nets_are_few(changes):
    few_nets = changes.pop("few", False)
    records = [r for r in measures() if not few_nets or r["variant"] == "s"]
    assert resistance.plots([curve(**changes)], records, SEEDS) == []
