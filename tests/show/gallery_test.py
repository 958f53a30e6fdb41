# SPDX-License-Identifier: Apache-2.0
"""Galleries: which pictures stand where, and that nothing is empty."""

from __future__ import annotations

import dataclasses

import cells_fixture
import figure_fixture
import numpy as np
import pytest
import results_fixture as hand
from cells_fixture import a_cell
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tiers_fixture import slow

from mtr_tf.evaluation.cell_files import Result
from mtr_tf.show import gallery
from mtr_tf.show import style
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task


def test_the_gallery_is_of_most_tasks_then_of_the_largest_radius():
    tasks = ("seg", "depth")
    results = [
        hand.result(4.0, 0.3, 0.3, tasks),
        hand.result(8.0, 0.2, 0.4, tasks),
        hand.result(9.0, 0.1, 0.5, ("seg",)),
    ]
    assert gallery.shown_result(results) is results[1]


def results_of(tasks, examples=3, size=(12, 16)) -> tuple[Result, Result]:
    """A clean and an attacked result; all pixels of a picture are its own number."""
    numbers = iter(range(1, 250))

    def pictures(*names):
        return {
            name: np.stack(
                [np.full((*size, 3), next(numbers), np.uint8) for _ in range(examples)]
            )
            for name in names
        }

    outputs = [f"output/{task}" for task in tasks]
    targets = [f"target/{task}" for task in tasks]
    scores = dict.fromkeys(tasks, {})
    clean = Result(None, scores, 3, pictures("image", *targets, *outputs))
    cell = a_cell(tasks=tuple(tasks), step_size=2.0, steps=20)
    names = ("adversarial", "perturbation", *outputs)
    return clean, Result(cell, scores, 3, pictures(*names))


@pytest.mark.parametrize(
    ("count", "size", "shape", "shown"),
    [
        (1, (16, 16), (6, 3), [0, 1, 2]),
        (3, (12, 24), (12, 3), [0, 1, 2]),
        (4, (16, 16), (5, 6), [0, 1]),
        slow(6, (12, 24), (7, 6), [0, 1]),
        slow(11, (16, 16), (12, 6), [0, 1]),
    ],
)
def test_each_example_has_its_images_and_a_row_per_task(count, size, shape, shown):
    """No words are cut off, and no large part is empty."""
    tasks = list(TASKS)[:count]
    clean, attacked = results_of(tasks, size=size)
    figure = style.drawn(lambda: gallery.of_run(clean, attacked))
    FigureCanvasAgg(figure)
    assert figure_fixture.empty_share(figure) < 0.11  # Also lays it out.
    figure_fixture.check(figure)
    boxes = [axes.get_window_extent() for axes in figure.axes]
    width, height = figure.canvas.get_width_height()
    tiles = sum(box.width * box.height for box in boxes)
    assert tiles / (width * height) > 0.6
    pixels = [axes.images[0].get_array()[0, 0, 0] for axes in figure.axes]
    grid = np.reshape(pixels, shape)
    clean_pictures, attacked_pictures = clean.pictures, attacked.pictures
    first_row = [
        clean_pictures["image"],
        attacked_pictures["adversarial"],
        attacked_pictures["perturbation"],
    ]
    rows = [first_row] + [
        [
            clean_pictures[f"target/{t}"],
            clean_pictures[f"output/{t}"],
            attacked_pictures[f"output/{t}"],
        ]
        for t in tasks
    ]
    blocks = [
        [[picture[example][0, 0, 0] for picture in row] for row in rows]
        for example in shown
    ]
    expected = np.concatenate(blocks, axis=1 if shape[1] == 6 else 0)
    np.testing.assert_array_equal(grid, expected)
    names = [axes.get_ylabel() for axes in figure.axes]
    assert [name for name in names if name] == tasks * (len(shown) * 3 // shape[1])


def test_the_legend_has_the_classes_that_are_seen():
    """Classes seen in their own task's targets, clean outputs or attacked outputs."""
    clean, attacked = results_of(["seg", "depth"])
    seg_pictures = [
        clean.pictures["target/seg"][2],
        clean.pictures["output/seg"][0],
        attacked.pictures["output/seg"][1],
    ]
    colors = {f"class {n}": tuple(p[0, 0]) for n, p in enumerate(seg_pictures)}
    colors["of depth"] = tuple(clean.pictures["target/depth"][0, 0, 0])
    colors["nowhere"] = (1, 2, 3)
    figure = figure_fixture.drawn(
        lambda: gallery.of_run(clean, attacked, {"seg": colors})
    )
    figure_fixture.check(figure)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "class 0",
        "class 1",
        "class 2",
    ]
    marks = [tuple(np.rint(255 * np.array(m.get_color()))) for m in legend.get_lines()]
    assert marks == [colors[f"class {n}"] for n in range(3)]


def test_the_title_says_what_is_not_in_the_name_of_the_attack():
    clean, attacked = results_of(["seg"])
    clean.pictures["target/seg"][:, 0, 0] = (250, 0, 0)
    colors = {"seg": {"_background_": (250, 0, 0)}}
    figure = gallery.of_run(clean, attacked, colors, "attacked images made on B")
    title = figure.get_suptitle().replace("\n", " ")
    attack = "pgd on seg, linf eps 8 (levels of 0-255)"
    assert title == f"{attack}; attacked images made on B"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [" _background_"]


def test_where_tasks_have_other_colors_the_legend_names_them():
    clean, attacked = results_of(["seg", "depth"])
    red, blue = (250, 0, 0), (0, 0, 250)
    for name, color in (("seg", red), ("depth", blue)):
        clean.pictures[f"target/{name}"][:, 0, 0] = color
    colors = {"seg": {"sky": red, "car": blue}, "depth": {"sky": blue, "car": red}}
    figure = figure_fixture.drawn(lambda: gallery.of_run(clean, attacked, colors))
    (legend,) = figure.legends
    entries = {
        text.get_text(): tuple(np.rint(255 * np.array(mark.get_color())))
        for text, mark in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert entries == {"seg: sky": red, "depth: sky": blue}


def test_colors_of_tasks_with_a_class_for_each_pixel():
    tasks = [
        Task("kinds", classes=("a", "b"), colors=((1, 2, 3), (4, 5, 6))),
        Task("scene", kind="classes", classes=("in", "out"), places=0),
        TASKS["seg"],
        TASKS["depth"],
    ]
    classes = {"classes": ("dark", "bright"), "colors": ((9, 9, 9), (9, 9, 9))}
    info = dataclasses.replace(cells_fixture.depth_info(1, 8), **classes)
    assert gallery.class_colors(tasks, info) == {
        "kinds": {"a": (1, 2, 3), "b": (4, 5, 6)},
        "seg": {"dark": (9, 9, 9), "bright": (9, 9, 9)},
    }


@pytest.mark.parametrize("count", [1, 6, slow(13)])
def test_a_study_has_a_row_per_variant(count):
    variants = [f"variant {n}" for n in range(count - 1)] + ["+".join(TASKS)]
    tiles = np.zeros((2, 8, 8, 3), np.uint8)
    pictures = [
        [tiles + 10 * row + column for column in range(6)] for row in range(count)
    ]
    title = f"seg under pgd50 (pgd on {'+'.join(TASKS)}), linf eps 8, seed 0"
    figure = figure_fixture.drawn(
        lambda: gallery.of_variants(title, variants, pictures)
    )
    figure_fixture.check(figure)
    pixels = [axes.images[0].get_array()[0, 0, 0] for axes in figure.axes]
    expected = [10 * row + column for row in range(count) for column in range(6)]
    assert pixels == expected
    assert figure.get_suptitle().replace("\n", " ").endswith("seed 0")
    headings = [axes.get_title().replace("\n", " ") for axes in figure.axes[:6]]
    assert headings[0] == "image"
    assert headings[-1] == "output, attacked"
