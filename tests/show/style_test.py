# SPDX-License-Identifier: Apache-2.0
"""The style of figures: names, ticks, titles, legends, files."""

from __future__ import annotations

import figure_fixture
import matplotlib.image
import numpy as np
import pytest

from mtr_tf.show import style

GROUP = "seg+depth+depth_euclidean+normal+edge_texture+edge_occlusion+keypoints2d"


def test_looks_of_lines_differ():
    looks = [tuple(style.look(place).values()) for place in range(19)]
    assert len({look[:2] for look in looks}) == 19
    looks = [style.attack_look(*divmod(n, 13)) for n in range(4 * 13)]
    assert len({(look["linestyle"], look["color"]) for look in looks}) == 4 * 13
    more_looks = [
        style.attack_look(attack, n) for attack in range(3) for n in range(40)
    ]
    assert len({tuple(look.values()) for look in more_looks}) == 3 * 40
    single_looks = [style.attack_look(0, group, single=True) for group in range(4 * 13)]
    assert len({(look["linestyle"], look["color"]) for look in single_looks}) == 4 * 13


def test_legends_have_names_that_begin_with_an_underscore():
    figure, (axes,) = style.multiples(1, (3, 3))
    for name in ("_old", "new", "_nolegend_", None):
        axes.plot([0, 1], [0, 1], label=name)
    style.end_legend(axes, {"_old": 1.0, "new": 0.0})
    style.finish(figure, "title")
    for legend in (axes.get_legend(), figure.legends[0]):
        assert [text.get_text() for text in legend.get_texts()] == [" _old", "new"]


def test_long_names_lose_their_middle_and_stay_apart():
    other_group = GROUP.replace("normal", "reshading")
    long_name = "a_very_long_name_of_a_variant_that_goes_on"
    short_names = style.short_names(["seg+depth", GROUP, other_group, long_name])
    assert list(short_names.values()) == [
        "seg+depth",
        "seg+…+keypoints2d (7 tasks)",
        "seg+…+keypoints2d (7 tasks) #2",
        "a_very_long_na…_that_goes_on",
    ]
    lines = style.spelt_out(short_names)
    assert lines[0] == f"seg+…+keypoints2d (7 tasks): {GROUP.replace('+', ' + ')}"
    assert len(lines) == 3


def a_figure(ticks, *, log=False, width=4.0, **settings):
    figure, (axes,) = style.multiples(1, (width, 3))
    axes.plot(ticks, np.linspace(1, 2, len(ticks)), label="line")
    if settings:
        style.radii(axes, ticks, settings["norm"])
    elif log:
        style.log_x(axes, ticks)
    else:
        style.x_ticks(axes, ticks)
    return style.finish(figure, "title")


def tick_labels(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


@pytest.mark.parametrize("log", [False, True])
def test_ticks_with_room_have_their_numbers(log):
    figure = figure_fixture.drawn(lambda: a_figure([1, 2, 5, 10], log=log))
    assert tick_labels(figure) == ["1", "2", "5", "10"]
    figure_fixture.check(figure)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("ticks", [range(1, 12), [0.25, 0.5, 1, 2, 4, 1000, 1001]])
def test_ticks_without_room_are_left_out_but_not_the_ends(ticks, log):
    figure = figure_fixture.drawn(lambda: a_figure(list(ticks), log=log, width=2))
    figure_fixture.check(figure)
    labels = tick_labels(figure)
    assert [labels[0], labels[-1]] == [f"{min(ticks):g}", f"{max(ticks):g}"]
    assert "" not in labels


def test_radii_of_many_sizes_are_all_written():
    radii = [0, 0.25, 0.5, 1, 2, 4, 8, 16]
    figure = figure_fixture.drawn(lambda: a_figure(radii, norm="linf"))
    assert tick_labels(figure) == [f"{radius:g}" for radius in radii]
    figure_fixture.check(figure)
    label = "eps, linf (levels of 0-255); 0: clean"
    assert figure.axes[0].get_xlabel() == label


def test_values_of_many_sizes_get_a_logarithmic_axis():
    figure, axes = style.multiples(2, style.SIZE)
    for ax, values in zip(axes, ([1, 50], [1, 500]), strict=True):
        ax.plot([0, 1], values)
        style.log_y_if_wide(ax)
    assert [ax.get_yscale() for ax in axes] == ["linear", "log"]
    axes[1].plot([0, 1], [0, 1])  # 0 has no logarithm.
    axes[1].set_yscale("linear")
    style.log_y_if_wide(axes[1])
    assert axes[1].get_yscale() == "linear"


@pytest.mark.parametrize("width", [3, 8])
def test_titles_keep_their_end_and_spell_groups_out(width):
    title = f"seg miou less that of $a_b$ under pgd50 (apgd-js on {GROUP}), the end"

    def draw():
        figure, (axes,) = style.multiples(1, (width, 3))
        axes.plot([0, 1], [0, 1], label="a label that is rather long, and goes on")
        axes.plot([0, 1], [1, 0], label="another")
        return style.finish(figure, title, ["a note"])

    figure = figure_fixture.drawn(draw)
    figure_fixture.check(figure)
    heading = figure.get_suptitle().replace("\n", " ")
    assert heading == title.replace(GROUP, "seg+…+keypoints2d (7 tasks)")
    notes = " ".join(figure.texts[-1].get_text().split())
    assert GROUP.replace("+", " + ") in notes
    assert notes.endswith("a note")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["a label that is rather long, and goes on", "another"]


@pytest.mark.parametrize("count", range(1, 14))
def test_small_multiples_have_at_most_one_empty_place(count):
    _, axes = style.multiples(count, (2, 2))
    rows, columns = axes[0].get_gridspec().get_geometry()
    assert len(axes) == count
    assert 0 <= rows * columns - count <= 1
    assert columns <= 4


def test_files_are_pictures_and_drawings(tmp_path):
    def draw():
        return style.finish(style.multiples(1, (2, 1))[0], "")

    svg = style.save(draw, tmp_path / "a.png")
    pixels = matplotlib.image.imread(tmp_path / "a.png")
    height, width, _ = pixels.shape
    assert pixels.std() > 0.02  # It is not empty.
    assert width == 2 * 144
    assert 144 < height < 200
    assert b"<svg" in svg
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert style.save(draw, tmp_path / "b.png") == svg


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_equal_figures_are_equal_files_of_every_kind(tmp_path, suffix):
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        style.save(lambda: a_figure([0, 1, 2]), path)
    content_a, content_b = (path.read_bytes() for path in paths)
    assert content_a == content_b
    start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert content_a.startswith(start)


def test_a_suffix_in_capitals_is_that_of_the_same_kind(tmp_path):
    """Such files have no date either."""
    calls = []

    class Recorder:
        def savefig(self, file, **settings):
            calls.append(settings)
            if settings.get("format") is None:  # The file, not the copy in memory.
                file.touch()

        def set_layout_engine(self, name):
            pass

    style.save(Recorder, tmp_path / "a.SVG")
    assert calls[0]["metadata"] == calls[1]["metadata"] == {"Date": None}
