# SPDX-License-Identifier: Apache-2.0
"""Plots: what is drawn, from results written down by hand."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import results_fixture as hand
from matplotlib.figure import Figure

from mtr_tf.show import plots


def test_curves_start_at_the_clean_value(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plots.save_curves(hand.RECORDS, tmp_path / "curves.png")
    seg, depth = (axes for axes in figures[0].axes if axes.get_visible())
    titles = ("seg (higher is better)", "depth (lower is better)")
    assert (seg.get_title(), depth.get_title()) == titles
    assert seg.get_ylabel() == "miou"
    assert depth.get_ylabel() == "mae [m]"
    lines = {line.get_label(): line.get_xydata().tolist() for line in seg.lines}
    assert lines == {
        "pgd on seg+depth": [[0, 0.4], [1, 0.3]],
        "pgd on seg": [[0, 0.4], [8, 0.1]],
    }
    assert np.isnan(depth.lines[1].get_ydata()[1])  # What is not known is not drawn.
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == list(lines)
    about = "intervals: 95 %, over 12 images"
    assert figures[0].get_suptitle() == about


def test_the_gallery_is_of_most_tasks_then_of_the_largest_radius():
    both = ("seg", "depth")
    results = [
        hand.result(4.0, 0.3, 0.3, both),
        hand.result(8.0, 0.2, 0.4, both),
        hand.result(9.0, 0.1, 0.5, ("seg",)),
    ]
    assert plots.gallery_result(results) is results[1]


def test_the_gallery_has_a_row_per_example_and_task(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plots.save_gallery(hand.CLEAN, hand.RESULTS[0], tmp_path / "gallery.png")
    assert len(figures[0].axes) == 2 * 2 * 6
    pictures = [len(axes.images) for axes in figures[0].axes]
    assert pictures == 2 * [1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1]


def test_files_are_pictures(tmp_path):
    figure = Figure((2, 1))
    figure.subplots()
    plots._save(figure, tmp_path / "a.png")
    assert matplotlib.image.imread(tmp_path / "a.png").shape == (110, 220, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
