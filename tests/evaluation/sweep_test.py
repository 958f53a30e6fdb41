# SPDX-License-Identifier: Apache-2.0
"""The cells of a sweep, by hand; running them is in commands/attack_test."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf import tasks as tasks_lib
from mtr_tf.config.attack import AttackConfig
from mtr_tf.errors import InputError
from mtr_tf.evaluation import intervals
from mtr_tf.evaluation import scores
from mtr_tf.evaluation.plan import make_cells
from mtr_tf.tasks.groups import parse_groups

TASKS = ("seg", "depth", "normal")


def cells(tasks=TASKS, **settings):
    return make_cells(AttackConfig(ckpt="x", **settings), tasks)


def test_groups():
    singles = (("seg",), ("depth",), ("normal",))
    assert parse_groups(("each",), TASKS) == singles
    assert parse_groups(("all", "Each"), TASKS) == (TASKS, *singles)
    assert parse_groups(("n+s",), TASKS) == (("seg", "normal"),)
    assert parse_groups(("depth_zbuffer", "d"), TASKS) == (("depth",),)
    assert parse_groups(("each", "all"), ("seg",)) == (("seg",),)
    with pytest.raises(InputError, match="curvature.*seg, depth, normal"):
        parse_groups(("seg+curvature",), TASKS)
    with pytest.raises(InputError, match="twice|2 times"):
        parse_groups(("seg+s",), TASKS)


def test_own_tasks_are_named_by_their_aliases_too():
    """A task in the place of a known one has that one's aliases and letter, too."""
    tasks = tasks_lib.TaskSet(
        (
            tasks_lib.Task("flow", aliases=("Motion", "of")),
            tasks_lib.Task("depth", aliases=("range",)),
            tasks_lib.Task("scene", classes=("in", "out")),
        )
    )
    names = ("motion+d", "OF", "range", "depth_zbuffer+scene")
    groups = (("flow", "depth"), ("flow",), ("depth",), ("depth", "scene"))
    assert parse_groups(names, tasks) == groups
    (cell,) = cells(tasks, eps=(1.0,), attack_tasks=("scene+of",), spare=("range",))
    assert cell.tasks == ("flow", "scene")
    assert cell.objective.spare == ("depth",)
    with pytest.raises(InputError, match="Unknown task 'motoin'. Did you mean 'flow'"):
        parse_groups(("motoin",), tasks)


def test_the_product_without_repetitions():
    sweep_cells = cells(
        attack=("pgd", "fgsm"), eps=(8, 1, 8), attack_tasks=("seg", "s+d")
    )
    assert [(c.attack.name, c.group, c.eps) for c in sweep_cells] == [
        (attack, group, eps)
        for attack in ("pgd", "fgsm")
        for group in ("seg", "seg+depth")
        for eps in (1, 8)
    ]


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        (
            {"eps": (8.0,), "steps": 7, "restarts": 2},
            attacks.PGD(8 / 255, 2 / 255, 7, "linf", restarts=2),
        ),
        (
            {"eps": (0.5,), "step_size": 0.2, "norm": "l2"},
            attacks.PGD(0.5, 0.2, 20, "l2"),
        ),
        ({"eps": (4.0,), "attack": ("fgsm",)}, attacks.FGSM(4 / 255)),
        ({"eps": (0.0,)}, lambda objective, x, seed: x),
    ],
)
def test_units_and_defaults(settings, same):
    (cell,) = cells(attack_tasks=("all",), **settings)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.random((2, 3, 3, 3)), tf.float32)
    slope = tf.constant(rng.normal(size=(3, 3, 3)), tf.float32)

    @attacks.simple
    def objective(x):
        return tf.reduce_sum(slope * tf.sin(3 * x), [1, 2, 3])

    numbers = [tf.constant(number, tf.float64) for number in cell.numbers]
    result = cell.build()(objective, x, 5, *numbers)
    np.testing.assert_array_equal(result, same(objective, x, 5))


def test_one_graph_for_all_radii():
    first, second = cells(eps=(1.0, 4.0), attack_tasks=("all",))
    assert first != second
    assert first.family == second.family
    assert first.family != cells(attack_tasks=("seg",))[0].family


def test_attacked_pixels_are_a_seeded_subset():
    def mask(seed):
        (cell,) = cells(eps=(1.0,), attack_tasks=("seg",), attack_pixels=10, seed=seed)
        return cell.pixel_mask(6, 7)

    assert mask(0).shape == (6, 7)
    assert set(np.unique(mask(0))) == {0, 1}
    assert mask(0).sum() == 10
    np.testing.assert_array_equal(mask(0), mask(0))
    assert (mask(0) != mask(1)).any()
    assert cells(attack_tasks=("seg",))[0].pixel_mask(6, 7) is None
    with pytest.raises(InputError, match="1 to 42.*43"):
        cells(attack_tasks=("seg",), attack_pixels=43)[0].pixel_mask(6, 7)


def test_scores_say_none_for_what_nobody_can_know():
    rows = {"depth": {m.name: np.zeros((4, 2)) for m in sweep_metrics("depth")}}
    score = scores.of_rows(rows, seed=0)["depth"]["mae"]
    assert score == {"value": None, "interval": [None, None]}


def test_scores_are_those_of_the_metrics():
    rng = np.random.default_rng(0)
    counts = np.stack((rng.uniform(1, 9, 50), np.full(50, 10.0)), axis=-1)
    rows = {"depth": {m.name: counts for m in sweep_metrics("depth")}}
    score = scores.of_rows(rows, seed=5)["depth"]["mae"]
    assert score["value"] == pytest.approx(counts[:, 0].mean() / 10)
    interval = intervals.of_metric(sweep_metrics("depth")[0], counts, seed=5)
    assert score["interval"] == pytest.approx(interval)
    # Of a mean: about 2 standard errors to either side.
    error = 1.96 * counts[:, 0].std() / 10 / np.sqrt(50)
    assert interval[1] - interval[0] == pytest.approx(2 * error, rel=0.15)


def sweep_metrics(task):
    return tasks_lib.TASKS[task].metrics
