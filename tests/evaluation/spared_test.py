# SPDX-License-Identifier: Apache-2.0
"""`--spare`, from settings to results: what is refused, written and printed."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

import mtr_tf
from mtr_tf import attack_job
from mtr_tf.attacks import sparing
from mtr_tf.config.attack import AttackConfig
from mtr_tf.errors import InputError
from mtr_tf.evaluation import plan
from mtr_tf.evaluation import worst_case
from mtr_tf.evaluation.cell_files import Result

SETTINGS = {"eps": [16], "steps": 6, "checks": False, "num_examples": 6}


@pytest.fixture(scope="module")
def made():
    """A net of two heads on one trunk, and examples for it."""
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="softplus")(10 * image)
    heads = {"seg": keras.layers.Conv2D(3, 1)(x), "depth": keras.layers.Conv2D(1, 1)(x)}
    rng = np.random.default_rng(0)
    examples = [
        {
            "image": rng.integers(0, 256, (8, 8, 3), np.uint8),
            "targets": {
                "seg": rng.integers(0, 3, (8, 8)),
                "depth": rng.uniform(1, 3, (8, 8)).astype(np.float32),
            },
        }
        for _ in range(6)
    ]
    return keras.Model(image, heads), examples


@pytest.mark.slow
def test_records_and_table_show_what_was_spared(made):
    settings = {**SETTINGS, "attacks": ("pgd", "worst"), "ensemble": ("pgd", "fgsm")}
    plain_results = mtr_tf.evaluate(*made, attack_tasks="seg", **settings)
    spared_results = mtr_tf.evaluate(*made, spare="depth", **settings)
    assert {r["attack"] for r in spared_results.records} == {
        "pgd-spare-depth",
        "worst-spare-depth",
    }
    # Both groups, each and all, are the same.
    assert {tuple(r["attacked"]) for r in spared_results.records} == {("seg",)}
    by_metric = {}
    for results in (plain_results, spared_results):
        for r in results.records:
            key = r["algorithm"], r["task"], r["metric"]
            by_metric.setdefault(key, []).append(r)
    for (algorithm, task, metric), (control, record) in by_metric.items():
        assert control["clean"] == pytest.approx(record["clean"])
        assert "spare" not in control
        assert "spared_share" not in control
        assert record["spare"] == ["depth"]
        assert record["spared_share"] == (1.0 if task == "depth" else None)
        if metric == "loss" and task == "depth":
            assert control["attacked_value"] > control["clean"] * 1.02
            assert record["attacked_value"] <= record["clean"] * (1 + 1e-4), algorithm
        if metric == "loss" and task == "seg":
            assert record["attacked_value"] > record["clean"]
    assert "spared" not in plain_results.table()
    lines = spared_results.table().splitlines()
    assert any("images at or below clean" in line for line in lines)
    assert sum("100.0% of 6" in line for line in lines) == 2


def test_cells_and_folders_without_it_are_known_as_before():
    config = AttackConfig(ckpt="x", attack_tasks=("seg",))
    (cell, *_) = plan.make_cells(config, ("seg", "depth"))
    assert "spare" not in cell.to_dict()
    sparing_depth = dataclasses.replace(config, spare=("depth",))
    (spared_cell, *_) = plan.make_cells(sparing_depth, ("seg", "depth"))
    assert spared_cell.to_dict()["spare"] == ("depth",)
    assert spared_cell.passes > cell.passes
    names = {attack_job.default_name(c, "model") for c in (config, sparing_depth)}
    assert len(names) == 2


def test_images_without_a_target_are_not_counted_as_spared():
    config = AttackConfig(ckpt="x", attack_tasks=("seg",), spare=("depth",))
    (cell, *_) = plan.make_cells(config, ("seg", "depth"))
    clean_rows = np.array([[1.0, 1], [0, 0], [0, 0], [2, 1]])
    attacked_rows = np.array([[2.0, 1], [0, 0], [0, 0], [1, 1]])
    rows = [{"depth": {"loss": values}} for values in (attacked_rows, clean_rows)]
    assert worst_case.spared_share(cell, "depth", *rows) == (0.5, 2)
    rows = [{"depth": {"loss": values[1:3]}} for values in (attacked_rows, clean_rows)]
    assert worst_case.spared_share(cell, "depth", *rows) == (None, 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"spare": "normal"}, "--spare names normal, but"),
        ({"spare": "seg,depth"}, "--spare must leave a task to attack"),
        ({"spare": "depth", "attack_tasks": "seg+depth"}, "is in --attack_tasks too"),
        ({"spare": "depth", "attacks": "noise"}, "does not work with noise"),
        (
            {"spare": "depth", "attacks": "pgd_released_start"},
            "does not work with pgd_released_start",
        ),
        ({"spare": "depth", "targets": "own"}, "with --targets=own"),
        ({"spare": "depth", "eot": 2}, "does not work with --eot=2"),
    ],
)
def test_what_cannot_be_spared_is_refused(made, settings, said):
    with pytest.raises(InputError, match=said):
        mtr_tf.evaluate(*made, **{**SETTINGS, **settings})


@pytest.fixture
def worst():
    """The worst of two attacks on `seg` that spare `depth`."""
    config = AttackConfig(
        ckpt="x", attack=("worst",), ensemble=("pgd", "fgsm"), spare=("depth",)
    )
    return plan.make_cells(config, ("seg", "depth"))[0]


def a_result(cell, hits, depth) -> Result:
    """Two images of ten pixels: how many are right, and depth's loss (1 if clean)."""
    hits, ones, zero = np.array(hits), np.ones(2), np.zeros(2)
    # Of two classes each: right pixels, targets, predictions.
    counts = (hits, zero, zero + 10, zero, hits, 10 - hits)
    rows = {
        "seg": {
            "pixel_accuracy": np.stack([hits, 10 * ones], axis=1),
            "miou": np.stack(counts, axis=1).astype(np.int64),
        },
        "depth": {"loss": np.stack([np.array(depth), ones], axis=1)},
    }
    clean_rows = {"depth": {"loss": np.ones((2, 2))}}
    return Result(cell, {}, 2, {}, rows=rows, before_rows=clean_rows)


def test_a_worst_of_several_takes_no_attack_that_hurts_what_is_spared(worst):
    mild = a_result(worst, [6.0, 6.0], [1.0, 0.9])
    harmful = a_result(worst, [1.0, 1.0], [1.2, 1.0])
    np.testing.assert_array_equal(worst_case.choose(worst, [mild, harmful]), [0, 1])
    scores = worst_case.score_of(worst, harmful)
    assert scores[0] < -sparing.FAR
    rows = worst_case.combine(worst, [mild, harmful], np.array([0, 1]))
    np.testing.assert_array_equal(rows["seg"]["miou"][:, 0], [6, 1])


def test_greedy_does_not_go_back_to_what_hurts(worst):
    """It starts from one attack for all images, which does not spare some of them."""
    harmful = a_result(worst, [1.0, 2.0], [1.2, 0.9])
    results = [harmful, a_result(worst, [9.0, 9.0], [0.9, 0.9])]
    choice = worst_case.choose_for_miou(worst, results, "seg", np.array([1, 1]))
    np.testing.assert_array_equal(choice, [1, 0])
