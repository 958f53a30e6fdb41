# SPDX-License-Identifier: Apache-2.0
"""The worst of several attacks, against all possible choices."""

from __future__ import annotations

import dataclasses
import itertools

import cells_fixture
import numpy as np
import pytest

from mtr_tf.evaluation import worst_case
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.tasks import metrics


def a_cell(name="worst", **settings):
    return cells_fixture.a_cell(name, step_size=2.0, steps=5, **settings)


def a_result(losses, correct=None, wanted=None) -> Result:
    """One task, images of 10 pixels and two classes; `correct` pixels of the first."""
    losses = np.array(losses, np.float32)
    correct = np.array([5] * len(losses) if correct is None else correct, np.float32)
    ones, zeros = np.ones_like(losses), np.zeros_like(losses)
    rows = {
        "miou": np.stack(
            [correct, zeros, 10 * ones, zeros, correct, 10 - correct], axis=-1
        ),
        "pixel_accuracy": np.stack([correct, 10 * ones], axis=-1),
        "loss": np.stack([losses, ones], axis=-1),
    }
    wanted_rows = {}
    if wanted is not None:
        wanted_rows = {"seg": {"loss": np.stack([np.array(wanted), ones], axis=-1)}}
    return Result(None, {}, len(losses), {}, {"seg": rows}, {}, wanted_rows)


def test_the_largest_loss_per_image_wins():
    results = [a_result([1, 5, 2, np.nan]), a_result([2, 4, 2, 1])]
    np.testing.assert_array_equal(worst_case.choose(a_cell(), results), [1, 0, 0, 1])
    rows = worst_case.take(np.array([1, 0, 0, 1]), [r.rows for r in results])
    np.testing.assert_array_equal(rows["seg"]["loss"][:, 0], [2, 5, 2, 1])


def test_harm_is_wrong_pixels():
    results = [a_result([1, 9], [3, 8]), a_result([2, 1], [4, 7])]
    cell = a_cell(judge="harm")
    np.testing.assert_array_equal(worst_case.choose(cell, results), [0, 1])
    np.testing.assert_array_equal(worst_case.choose(a_cell(), results), [1, 0])


def test_targeted_goes_by_the_wanted_targets():
    results = [a_result([9, 1], wanted=[3, 8]), a_result([1, 9], wanted=[4, 7])]
    cell = a_cell(targeted=True)
    np.testing.assert_array_equal(worst_case.choose(cell, results), [0, 1])


def test_attacks_on_some_pixels_go_by_these():
    results = [a_result([9, 1]), a_result([1, 9])]
    for result, losses in zip(results, ([3, 8], [4, 7]), strict=True):
        rows = np.stack([np.array(losses), np.ones(2)], axis=-1)
        result.aimed_rows["seg"] = {"loss": rows}
    np.testing.assert_array_equal(worst_case.choose(a_cell(), results), [1, 0])
    targeted = a_cell(targeted=True)
    np.testing.assert_array_equal(worst_case.choose(targeted, results), [0, 1])


def test_weights_of_the_attack_are_those_of_the_choice():
    results = [a_result([2]), a_result([1])]
    for number, result in enumerate(results):  # A second task, the other way round.
        result.rows["depth"] = {"loss": np.array([[1.0 + number, 1.0]])}
    cell = a_cell(tasks=("seg", "depth"))
    assert worst_case.choose(cell, results) == [0]  # 3 to 3: the first.
    goal = dataclasses.replace(cell.objective, weights=(("depth", 2.0),))
    weighted = dataclasses.replace(cell, objective=goal)
    assert worst_case.choose(weighted, results) == [1]


@pytest.mark.parametrize(("weight", "correct"), [(1, 2), (0, 9), (-1, 9)])
def test_mean_iou_is_lowered_only_for_tasks_that_are_to_get_worse(weight, correct):
    results = [a_result([1, 1], [9, 9]), a_result([2, 2], [2, 2])]
    cell = a_cell(tasks=("seg", "depth"), weights=(("seg", weight),))
    rows = worst_case.combine(cell, results, np.array([0, 0]))["seg"]
    np.testing.assert_array_equal(rows["miou"][:, 0], [correct] * 2)
    np.testing.assert_array_equal(rows["pixel_accuracy"][:, 0], [9, 9])


@pytest.mark.parametrize("seed", range(8))
def test_greedy_mean_iou_against_all_choices(seed):
    rng = np.random.default_rng(seed)
    metric = metrics.miou()
    pairs = rng.integers(0, 9, (3, 6, 3, 3))  # Attacks, images, target, prediction.
    hits = np.diagonal(pairs, axis1=2, axis2=3)
    rows = np.concatenate([hits, pairs.sum(axis=3), pairs.sum(axis=2)], axis=-1)
    images = np.arange(6)

    def value(choice):
        return metric.value(rows[np.array(choice), images].sum(axis=0))

    best = worst_case.greedy(metric, rows, np.zeros(6, int), seed=0)
    all_values = [value(choice) for choice in itertools.product(range(3), repeat=6)]
    single_values = [value([number] * 6) for number in range(3)]
    assert min(all_values) <= value(best) <= min(single_values)
    for image, attack in itertools.product(images, range(3)):  # No exchange is better.
        exchange = best.copy()
        exchange[image] = attack
        assert value(exchange) >= value(best) - 1e-6
    # At most a quarter of the possible gain is missed.
    assert value(best) - min(all_values) <= 0.25 * (
        min(single_values) - min(all_values)
    )


def test_greedy_starts_from_the_choice_if_that_is_lower():
    metric = metrics.miou()
    rows = np.zeros((2, 2, 6))
    rows[:, :, 0] = rows[:, :, 4] = [[9, 1], [1, 9]]  # Hits of class 0,
    rows[:, :, 2] = 10
    rows[:, :, 5] = 10 - rows[:, :, 0]  # the rest is missed.
    np.testing.assert_array_equal(
        worst_case.greedy(metric, rows, np.array([1, 0]), 0), [1, 0]
    )
