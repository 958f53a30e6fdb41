# SPDX-License-Identifier: Apache-2.0
"""Robustness curves of runs and studies, drawn from values written by hand."""

from __future__ import annotations

import figure_fixture
import numpy as np
import pytest
import results_fixture as hand

from mtr_tf.show import curves
from mtr_tf.show import style
from mtr_tf.tasks import TASKS

FACTS = {"metric": "miou", "unit": "", "better": "higher", "norm": "linf"}
EPS = np.array([0.0, 1, 4])


def test_curves_of_a_run_start_at_the_clean_value():
    figure = figure_fixture.drawn(lambda: curves.of_run(hand.RECORDS))
    figure_fixture.check(figure)
    seg, depth = figure.axes
    assert [axes.get_title() for axes in (seg, depth)] == ["seg", "depth"]
    assert seg.get_ylabel() == "miou\nhigher is better"
    assert depth.get_ylabel() == "mae [m]\nlower is better"
    lines = {line.get_label(): line.get_xydata().tolist() for line in seg.lines}
    assert lines == {
        "pgd on seg+depth": [[0, 0.4], [1, 0.3]],
        "pgd on seg": [[0, 0.4], [8, 0.1]],
    }
    # Missing values are not drawn.
    assert depth.lines[1].get_xydata().tolist() == [[0, 0.2]]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == list(lines)
    assert "intervals: 95 %, over 12 images" in figure.texts[-1].get_text()
    # The line of an attack on another task is thinner.
    joint_line, seg_line = depth.lines
    assert joint_line.get_linewidth() > seg_line.get_linewidth()


def test_the_title_of_a_run_says_what_is_not_in_the_names_of_attacks():
    figure = curves.of_run(hand.RECORDS, "5 output pixels attacked")
    assert figure.get_suptitle() == "Tasks under pgd; 5 output pixels attacked"


def records(tasks, attacks=("pgd",), eps=(1, 2, 4, 8)) -> list[dict]:
    """Records of attacks on each task and on all: each task's first metric and loss."""
    groups = [(task,) for task in tasks] + [tuple(tasks)] * (len(tasks) > 1)
    return [
        {
            **{"attack": attack, "attacked": list(group), "task": task, "eps": radius},
            **{"metric": metric.name, "unit": metric.unit, "better": metric.better},
            **{"norm": "linf", "clean": 1.0, "clean_interval": [0.9, 1.1]},
            **{"attacked_value": 1 + radius, "attacked_interval": [radius, 2 + radius]},
            **{"n": 3, "interval_over": "images"},
        }
        for attack in attacks
        for group in groups
        for radius in eps
        for task in tasks
        for metric in (TASKS[task].metrics[0], TASKS[task].metrics[-1])
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 11])
def test_words_of_a_run_of_many_tasks_are_whole(count):
    run_records = records(list(TASKS)[:count], ("pgd", "apgd-js-targeted-eot4"))
    figure = figure_fixture.drawn(lambda: curves.of_run(run_records))
    figure_fixture.check(figure)
    assert len(figure.axes) == count
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert len(labels) == 2 * (count + (count > 1))
    if count == 11:
        assert "pgd on seg+…+autoencoder (11 tasks)" in labels
        assert " + ".join(TASKS) in " ".join(figure.texts[-1].get_text().split())


def line(name, place, values, ends=None) -> curves.Line:
    return curves.Line(name, EPS, np.array(values, float), ends, style.look(place))


def corners(axes) -> set[tuple[float, float]]:
    path = axes.collections[0].get_paths()[0]
    return {tuple(corner) for corner in path.vertices.round(9)}


def test_lines_are_means_and_bands_reach_over_seeds():
    values = [[0.8, 0.5, np.nan], [0.6, 0.1, 0.2], [0.7, np.nan, np.nan]]
    lines = [line("a", 1, values, np.zeros((2, 3, 3)))]
    axes = figure_fixture.drawn(lambda: curves.of_variants("t", lines, FACTS)).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), EPS)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.7, 0.3, 0.2])
    assert axes.lines[0].get_color() == style.COLORS[1]
    assert corners(axes) == {(0, 0.6), (0, 0.8), (1, 0.1), (1, 0.5)}


def test_the_band_of_one_seed_is_its_interval_over_images():
    ends = np.array([[[0.7, 0.4, 0.1]], [[0.9, 0.6, 0.3]]])
    lines = [line("a", 0, [[0.8, 0.5, 0.2]], ends)]
    axes = figure_fixture.drawn(lambda: curves.of_variants("t", lines, FACTS)).axes[0]
    pairs = zip(EPS, *ends[:, 0], strict=True)
    assert corners(axes) == {(x, y) for x, *ys in pairs for y in ys}
    bare_lines = [line("a", 0, [[0.8, 0.5, 0.2]], np.full((2, 1, 3), np.nan))]
    axes = figure_fixture.drawn(
        lambda: curves.of_variants("t", bare_lines, FACTS)
    ).axes[0]
    assert not axes.collections


@pytest.mark.parametrize("reference", ["", "variant 0"])
@pytest.mark.parametrize(("count", "plots"), [(1, 1), (4, 1), (7, 2), (13, 4)])
def test_many_variants_are_plots_of_a_few_with_the_others_in_grey(
    count, plots, reference
):
    shift = 0.01 if not reference else -0.01
    names = [f"variant {place}" for place in range(count)]
    names[-1] = "+".join(TASKS)
    lines = [
        line(name, place, [np.array([0.8, 0.6, 0.3]) + shift * place] * 2)
        for place, name in enumerate(names)
    ]
    figure = figure_fixture.drawn(
        lambda: curves.of_variants("title", lines, FACTS, reference)
    )
    figure_fixture.check(figure)
    assert len(figure.axes) == plots + (plots > 1 and bool(reference))
    labels = []
    for axes in figure.axes:
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        ends = {x.get_label(): x.get_ydata()[-1] for x in axes.lines}
        assert legend == sorted(legend, key=ends.get, reverse=True)
        colors = {x.get_color() for x in axes.lines if x.get_label() in legend}
        assert len(colors) == len(legend)
        assert len(legend) <= 4
        labels += legend
        grey_lines = [x for x in axes.lines if x.get_label() == "_nolegend_"]
        assert len(grey_lines) == count - len(legend)
        if plots > 1:  # 0 lies on the left, the largest radius on the right.
            assert axes.get_xlim()[0] > -2
    assert len({*labels}) == count


def test_a_run_and_its_values_that_do_not_exist():
    empty_lines = [line("a", 0, np.full((1, 3), np.nan))]
    figure = figure_fixture.drawn(lambda: curves.of_variants("t", empty_lines, FACTS))
    figure_fixture.check(figure)
    point = (1.0, None, None, None)
    curve = curves.from_points("a", [(0.0, 0.5, 0.4, 0.6), point], style.look(0))
    np.testing.assert_array_equal(curve.values, [[0.5, np.nan]])
    np.testing.assert_array_equal(curve.ends[:, 0, 0], [0.4, 0.6])
