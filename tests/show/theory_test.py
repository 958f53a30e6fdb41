# SPDX-License-Identifier: Apache-2.0
"""Plots of measures, of one run and of many seeds; no words are cut off."""

from __future__ import annotations

import json

import figure_fixture
import numpy as np
import pytest
import study_fixture
from tiers_fixture import slow

from mtr_tf.show import series
from mtr_tf.show import theory
from mtr_tf.tasks import TASKS


def test_slope_in_the_plot_is_that_of_the_points():
    """Against a straight line fitted by NumPy to the logarithms."""
    k = np.arange(1, 6)
    rows = []
    for seed, (size, power) in enumerate([(2.0, -0.3), (3.0, -0.4)]):
        y = size * k**power * np.array([1, 1.1, 0.9, 1, 1])
        fit = np.polyfit(np.log(k), np.log(y), 1)[0]
        facts = {"measure": "tasks", "spec": "t", "variant": "v", "seed": seed}
        facts |= {"norm": "l2", "normalisation": "unit"}
        rows.append({**facts, "quantity": "slope", "value": fit, "predicted": -0.5})
        rows += [
            {
                **facts,
                "quantity": "norm_by_size",
                "count": int(n),
                "value": value,
                "predicted": 1.0,
                "factor": 1.0,
            }
            for n, value in zip(k, y, strict=True)
        ]
    axes = theory.plot(theory.sizes, "title", rows).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    mean_line, slope_line = lines["mean, measured"], lines["line of the slope"]
    points = np.log(mean_line.get_ydata())
    expected = np.poly1d(np.polyfit(np.log(k), points, 1))(np.log(k))
    np.testing.assert_allclose(np.log(slope_line.get_ydata()), expected, atol=0.01)
    slopes = [row["value"] for row in rows if row["quantity"] == "slope"]
    slope = np.diff(np.log(slope_line.get_ydata())) / np.diff(np.log(k))
    np.testing.assert_allclose(slope, np.mean(slopes))
    label = f"slope {np.mean(slopes):.2f}, by theory -0.50".replace("-", "−")
    assert label in axes.get_xlabel()


def test_matrix_is_symmetric_and_a_mean_over_seeds():
    rows = [
        {"quantity": "cosine", "tasks": list(pair), "value": value}
        for values in ((1.0, 0.2, 1.0), (1.0, 0.4, 1.0), (1.0, None, 1.0))
        for pair, value in zip(("aa", "ab", "bb"), values, strict=True)
    ]
    tasks, matrix = series.matrix(rows, "cosine")
    assert tasks == ("a", "b")
    np.testing.assert_allclose(matrix, [[1, 0.3], [0.3, 1]])


def measures(folder, count: int, seed: int = 0) -> list[dict]:
    """The records of all measures of the first `count` tasks."""
    names = ("tasks", "pixels", "blocks", "first_order")
    kinds = names if count <= 5 else names[1:]
    study_fixture.write_measures(folder, kinds, list(TASKS)[:count], seed)
    return json.loads((folder / "measures.json").read_text())


@pytest.mark.parametrize("count", [1, slow(2), 11])
def test_words_of_the_plots_of_a_run_are_whole(tmp_path, count):
    records = measures(tmp_path, count)
    figures = [theory.pixels_of_run, theory.attacks_of_run, theory.first_order_of_run]
    if count <= 5:
        figures += [theory.sizes_of_run, theory.cosines_of_run]
    for draw in figures:
        figure = figure_fixture.drawn(lambda draw=draw: draw(records))
        figure_fixture.check(figure)
        for axes in figure.axes:
            assert "" not in [x.get_text() for x in axes.get_xticklabels()]


def test_attacks_on_pixels_of_a_task_with_no_other_metric_show_its_loss(tmp_path):
    records = [r for r in measures(tmp_path, 2) if r.get("metric") in (None, "loss")]
    figure = theory.attacks_of_run(records)
    assert [axes.get_title() for axes in figure.axes] == list(TASKS)[:2]
    assert all(axes.get_ylabel().startswith("loss") for axes in figure.axes)


def test_files_of_a_run_are_those_with_records(tmp_path, monkeypatch):
    """Each is drawn; how figures are written is tested in style_test."""

    def save(draw, path):
        assert draw().axes
        path.touch()

    monkeypatch.setattr(theory.style, "save", save)
    records = [r for r in measures(tmp_path, 2) if r["measure"] != "first_order"]
    old_plot = tmp_path / "measure_first_order.png"  # From an earlier command.
    old_plot.touch()
    paths = theory.save_run(records, tmp_path)
    assert not old_plot.exists()
    assert [path.name for path in paths] == [
        "measure_tasks.png",
        "measure_cosines.png",
        "measure_gradients.png",
        "measure_pixels.png",
    ]
    assert all(path.exists() for path in paths)


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_seed_has_its_interval_and_many_their_range(tmp_path, seeds):
    records = [r for n in range(seeds) for r in measures(tmp_path, 2, n)]
    rises = series.chosen(records, quantity="rise", tasks=["seg"])
    figure = figure_fixture.drawn(
        lambda: theory.plot(theory.first_order, "a title", rises)
    )
    figure_fixture.check(figure)
    path = figure.axes[0].collections[0].get_paths()[0]
    heights = path.vertices[np.isclose(path.vertices[:, 0], 4), 1]
    last_rises = series.chosen(rises, eps=4.0)
    if seeds == 1:
        expected = last_rises[0]["interval"]
        note = "band: 95 % interval over images"
    else:
        expected = sorted(r["value"] for r in last_rises)
        note = "band: from the lowest to the highest seed"
    np.testing.assert_allclose([heights.min(), heights.max()], expected)
    assert note in figure.texts[-1].get_text()


def test_records_of_one_run_need_no_seed():
    records = [{"count": count, "value": 1.0 / count} for count in (2, 1)]
    x, values = series.over(records, "count", "value")
    assert x.tolist() == [1, 2]
    assert values.tolist() == [[[1, 0.5]]]
