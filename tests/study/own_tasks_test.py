# SPDX-License-Identifier: Apache-2.0
"""Studies on a user's own data name tasks that only these data know."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from mtr_tf.errors import InputError
from mtr_tf.study import claim_file
from mtr_tf.study import effects
from mtr_tf.study import study_file
from mtr_tf.study.results import Results

STUDY = """
about = "Tasks of one's own."
seeds = [0, 1]
[train]
dataset = "DATA"
[variants."flow"]
tasks = ["flow", "s"]
[variants."flow+scene"]
tasks = ["flow", "seg", "scene"]
main_tasks = ["flow"]
[attacks."pgd"]
attack_tasks = ["flow", "flow+s", "each"]
eps = [4]
[[claims]]
id = "A"
source = "someone"
statement = "The scene makes flow more robust."
attack = "pgd"
eps = [4]
task = "flow"
metric = "epe"
attacked = ["flow", "seg"]
better = ["flow+scene"]
than = ["flow"]
"""


def load(tmp_path: pathlib.Path, dataset: str):
    path = tmp_path / "own.toml"
    path.write_text(STUDY.replace("DATA", dataset))
    return study_file.load(str(path))


def test_names_of_own_tasks_are_taken_with_own_data(tmp_path):
    study = load(tmp_path, "my_data:examples")
    assert study.train_config("flow", 0).tasks == ("flow", "seg")
    assert study.attack_fields("pgd", "flow", 0)["attack_tasks"] == (
        "flow",
        "flow+seg",
        "each",
    )
    (claim,) = claim_file.read(study)
    assert claim.terms[0].points[0].metric == "epe"
    assert set(claim.terms[0].points[0].attacked) == {"flow", "seg"}


def test_with_data_of_ours_they_are_unknown(tmp_path):
    with pytest.raises(InputError, match="Unknown task 'flow'"):
        load(tmp_path, "rooms")


def record(metric, clean, attacked, variant="flow", seed=0, **more):
    return {
        "spec": "pgd",
        "variant": variant,
        "seed": seed,
        "task": "flow",
        "metric": metric,
        "eps": 4.0,
        "attacked": ["flow", "seg"],
        "clean": clean,
        "attacked_value": attacked,
        "better": "higher" if metric == "inliers" else "lower",
        "folder": "nowhere",
        **more,
    }


def test_an_effect_of_a_metric_of_ones_own(tmp_path):
    study = load(tmp_path, "my_data:examples")
    found = [
        record("epe", 1.0, (2.0 if variant == "flow" else 1.5) + seed, variant, seed)
        for variant in ("flow", "flow+scene")
        for seed in (0, 1)
    ]
    results = Results(study, tmp_path, tuple(found))
    (claim,) = claim_file.read(study)
    effect = effects.of(claim, results)
    np.testing.assert_allclose(effect.by_seed, [0.5, 0.5])  # Less of it is better.
    others = tuple(record("mae", 1, 2, v) for v in ("flow", "flow+scene"))
    with pytest.raises(
        InputError, match="asks for 'epe' of flow, whose metrics are mae"
    ):
        effects.of(claim, Results(study, tmp_path, others))


def test_metrics_are_known_by_name_or_by_their_record():
    own = effects._metric(record("inliers", 1, 1))
    assert own.better == "higher"
    assert own.value(np.array([6.0, 8.0])) == 0.75
    rmse = effects._metric(record("rmse", 1, 1))
    np.testing.assert_allclose(rmse.value(np.array([8.0, 2.0])), 2.0)
    assert effects._metric(record("f1", 1, 1)).name == "f1"
