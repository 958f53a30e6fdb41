# SPDX-License-Identifier: Apache-2.0
"""Studies on a user's own data name tasks that only these data know."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest

from mtr_tf.errors import InputError
from mtr_tf.study import claim_file
from mtr_tf.study import claims
from mtr_tf.study import effects
from mtr_tf.study import statistics
from mtr_tf.study import study_file
from mtr_tf.study.claim_file import Term
from mtr_tf.study.report import verdicts
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


def record(metric, clean, attacked, variant="flow", seed=0, **fields):
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
        **fields,
    }


def test_an_effect_of_a_metric_of_ones_own(tmp_path):
    study = load(tmp_path, "my_data:examples")
    records = [
        record("epe", 1.0, (2.0 if variant == "flow" else 1.5) + seed, variant, seed)
        for variant in ("flow", "flow+scene")
        for seed in (0, 1)
    ]
    results = Results(study, tmp_path, tuple(records))
    (claim,) = claim_file.read(study)
    effect = effects.of(claim, results)
    np.testing.assert_allclose(effect.by_seed, [0.5, 0.5])  # Less of it is better.
    mae_records = tuple(record("mae", 1, 2, v) for v in ("flow", "flow+scene"))
    with pytest.raises(
        InputError, match="asks for 'epe' of flow, whose metrics are mae"
    ):
        effects.of(claim, Results(study, tmp_path, mae_records))
    points = [dataclasses.replace(point, task="seg") for point in claim.terms[0].points]
    claim = dataclasses.replace(claim, terms=(Term(1.0, tuple(points)),))
    mae_records = tuple(r | {"task": "seg"} for r in mae_records)
    with pytest.raises(InputError, match="'epe' of seg, whose metrics are mae"):
        effects.of(claim, Results(study, tmp_path, mae_records))


MEASURED = """
[attacks.corrupt]
attack = ["none"]
measure = ["corruptions"]
[[claims]]
id = "B"
source = "someone"
statement = "Fog is no matter."
[claims.measure]
attack = "corrupt"
measure = "corruptions"
quantity = "mean_corrupted"
tasks = ["flow"]
variants = ["flow"]
metric = METRIC
"""


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ('"epee"', "'epee' of mean_corrupted, which has epe, inliers; did you mean"),
        ('["inliers", "eps"]', "'eps' of mean_corrupted, which has epe, inliers"),
        ('"epe"', ""),
    ],
)
def test_a_metric_that_no_measure_has_is_refused_once_there_are_records(
    tmp_path, metric, said
):
    path = tmp_path / "own.toml"
    text = (STUDY + MEASURED).replace("DATA", "my_data:examples")
    path.write_text(text.replace("METRIC", metric))
    study = study_file.load(str(path))
    _, claim = claim_file.read(study)
    # Before there are records, the mistake cannot be seen.
    assert effects.of(claim, Results(study, tmp_path)).mean is None
    measures = tuple(
        record(name, 1, 2)
        | {"spec": "corrupt", "measure": "corruptions", "quantity": "mean_corrupted"}
        | {"tasks": ["flow"], "value": 3.0}
        for name in ("epe", "inliers")
    )
    results = Results(study, tmp_path, (), measures)
    if said:
        with pytest.raises(InputError, match=f"claim 'B' asks for the metric {said}"):
            effects.of(claim, results)
    else:
        assert effects.of(claim, results).by_seed[0] == -3  # Less of it is better.


def test_metrics_are_known_by_name_or_by_their_record():
    inliers = effects._metric(record("inliers", 1, 1))
    assert inliers.better == "higher"
    assert inliers.value(np.array([6.0, 8.0])) == 0.75
    rmse = effects._metric(record("rmse", 1, 1))
    np.testing.assert_allclose(rmse.value(np.array([8.0, 2.0])), 2.0)
    assert effects._metric(record("f1", 1, 1)).name == "f1"


def test_a_metric_with_the_name_of_another_has_its_own_direction():
    metric = effects._metric(record("rel", 1, 1))
    assert (metric.better, metric.relative) == ("lower", True)
    own_metric = effects._metric(record("rel", 1, 1, better="higher"))
    assert (own_metric.better, own_metric.relative) == ("higher", False)


# Mean IoU of three classes, of which the first may be ignored.

SEEDS, IMAGES = 2, 5


def write_rows(tmp_path: pathlib.Path, ignored: tuple[int, ...], place: str) -> Results:
    """A study with rows of mean IoU; `place` is where its ignored classes are kept."""
    text = STUDY.replace("DATA", "my_data:examples").replace(
        '"epe"\nattacked = ["flow", "seg"]', '"miou"'
    )
    path = tmp_path / "own.toml"
    path.write_text(text)
    rng, records = np.random.default_rng(3), []
    for variant, seed in itertools.product(("flow", "flow+scene"), range(SEEDS)):
        run = tmp_path / f"{variant}{seed}"
        cells = run / "attacks" / "pgd" / "cells"
        cells.mkdir(parents=True)
        areas = rng.integers(20, 40, (IMAGES, 6))
        hits = np.minimum(areas[:, :3], areas[:, 3:]) // 2
        if ignored:  # No target has the class, but outputs do.
            areas[:, 0] = hits[:, 0] = 0
        rows = np.concatenate([hits, areas], axis=1)
        np.savez(cells / "a.npz", **{"row/flow/miou": rows})
        fields = {"folder": f"{run.name}/attacks/pgd", "better": "higher", "n": IMAGES}
        fields |= {"rows": "cells/a.npz", "clean_rows": "cells/a.npz"}
        fields |= {"ignored": list(ignored)} if place == "record" else {}
        tasks = [{"name": "flow"} | ({"ignored": ignored} if place == "run" else {})]
        (run / "config.json").write_text(json.dumps({"tasks": tasks}))
        value = by_hand(rows, ignored)
        fields["attacked"] = ["flow"]
        records.append(record("miou", value, value, variant, seed) | fields)
    return Results(study_file.load(str(path)), tmp_path, tuple(records))


def by_hand(rows: np.ndarray, ignored: tuple[int, ...]) -> float:
    hits, target, output = rows.sum(axis=0).reshape(3, 3)
    classes = [c for c in range(3) if c not in ignored]
    return float(np.mean([hits[c] / (target + output - hits)[c] for c in classes]))


@pytest.mark.parametrize(
    ("ignored", "said"), [((), ""), ((0,), "record"), ((0,), "run")]
)
def test_images_are_drawn_without_the_classes_that_are_ignored(
    tmp_path, monkeypatch, ignored, said
):
    """Against a plain loop over resamples."""
    monkeypatch.setattr(effects, "RESAMPLES", 20)
    results = write_rows(tmp_path, ignored, said)
    (claim,) = claim_file.read(results.study)
    effect = effects.of(claim, results)
    assert (effect.over, effect.note) == ("seeds and images", "")
    images = statistics.resampled_images(IMAGES, 20, 0).astype(int)
    seeds = statistics.resampled_seeds(SEEDS, 20, 0).astype(int)
    for i in range(20):
        indices = np.repeat(np.arange(IMAGES), images[i])
        by_seed = []
        for seed in range(SEEDS):
            rows, reference_rows = (
                results.rows_of(results.records("pgd", variant, seed)[0], 4.0)
                for variant in ("flow+scene", "flow")
            )
            by_seed.append(
                by_hand(rows[indices], ignored)
                - by_hand(reference_rows[indices], ignored)
            )
        assert effect.draws[i] == pytest.approx(np.repeat(by_seed, seeds[i]).mean())


def test_rows_that_do_not_give_the_value_are_not_used_and_it_is_said(tmp_path):
    results = write_rows(tmp_path, (0,), "nowhere")
    (claim,) = claim_file.read(results.study)
    effect = effects.of(claim, results)
    assert effect.over == "seeds"
    first = results.records("pgd", "flow+scene", 0)[0]
    value = by_hand(results.rows_of(first, 4.0), ())
    assert f"flow miou in flow+scene0/attacks/pgd give {value:.4g}" in effect.note
    assert f"its record says {first['attacked_value']:.4g};" in effect.note
    (verdict,) = claims.evaluate(results)
    assert verdict.note == effect.note
    (row,) = verdicts.rows([verdict], results.seeds, [], ())
    assert row.note == effect.note
