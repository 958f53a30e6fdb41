# SPDX-License-Identifier: Apache-2.0
"""Reading a study's folder: what is done, what is not, and what is damaged."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import study_fixture

from mtr_tf.config.attack import MEASURES
from mtr_tf.config.attack import AttackConfig
from mtr_tf.errors import InputError
from mtr_tf.study import claim_checks
from mtr_tf.study import claims
from mtr_tf.study import design
from mtr_tf.study import report
from mtr_tf.study import results as results_lib
from mtr_tf.study.report import verdicts
from mtr_tf.study.results import Results
from mtr_tf.tasks import TASKS

WHERE = ("pgd50", 4, "seg", "miou")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Without the attack on s of seed 1, and without training s+d of seed 3."""

    def done(variant, seed, attack):
        return (variant, seed) != ("s+d", 3) and (variant, seed, attack) != (
            "s",
            1,
            "pgd50",
        )

    workdir = tmp_path_factory.mktemp("study")
    study_fixture.example(workdir, done=done)
    return workdir


@pytest.fixture(scope="module")
def results(folder):
    return Results.read(folder)


def test_cells_that_are_not_done_are_absent(results):
    assert results.seeds == (0, 1, 2, 3, 4)
    assert results.variants == ("s", "s+d")
    nan_s = np.isnan(results.values("s", *WHERE))
    np.testing.assert_array_equal(nan_s, [False, True, False, False, False])
    nan_joint = np.isnan(results.values("s+d", *WHERE))
    np.testing.assert_array_equal(nan_joint, [False, False, False, True, False])
    assert study_fixture.rows_of(results, "s", 1) is None
    assert results.records("pgd50", "s", 1) == []
    assert results.measures("theory", "s+d", 3) == []


def test_values_are_what_the_metric_makes_of_the_rows(results):
    (miou,) = [metric for metric in TASKS["seg"].metrics if metric.name == "miou"]
    rows = study_fixture.rows_of(results, "s", 2)
    assert rows.shape == (12, 3 * study_fixture.CLASSES)
    assert rows.dtype == np.float64
    assert results.values("s", *WHERE)[2] == pytest.approx(miou.value(rows.sum(axis=0)))
    clean = study_fixture.rows_of(results, "s", 2, 0)
    expected = results.values("s", "pgd50", 0, "seg", "miou")[2]
    assert miou.value(clean.sum(axis=0)) == pytest.approx(expected)
    assert expected > results.values("s", *WHERE)[2]
    assert results.values("s", "pgd50", 0, "seg", "miou")[2] == expected


def test_records_say_where_they_are_from(results):
    for record in results.records("pgd50", "s+d", 4):
        assert (record["spec"], record["variant"], record["seed"]) == (
            "pgd50",
            "s+d",
            4,
        )
    assert {r["seed"] for r in results.measures("theory")} == {0, 1, 2, 4}


def test_tasks_attacked_together_may_come_in_any_order(tmp_path):
    text = study_fixture.EXAMPLE.split("[[claims]]")[0]
    text = text.replace('attack_tasks = ["seg"]', 'attack_tasks = ["seg+depth"]')
    text = text.replace('[attacks."pgd50"]', '[attacks."pgd50"]\nvariants = ["s+d"]')
    study_fixture.example(tmp_path, text)
    results = Results.read(tmp_path)
    values = [
        results.values("s+d", *WHERE, attacked=group)
        for group in (["seg", "depth"], ["depth", "seg"])
    ]
    assert not np.isnan(values).any()
    np.testing.assert_array_equal(*values)
    assert np.isnan(results.values("s+d", *WHERE)).all()  # Never seg alone.


@pytest.mark.slow
def test_models_of_one_seed_that_differ_are_found(tmp_path):
    """As where an attack was added without the model, which was trained again."""
    text = study_fixture.EXAMPLE + SOURCE
    study_fixture.example(tmp_path, text)
    assert Results.read(tmp_path).mixed == {}
    sources = {
        seed: Results.read(tmp_path).models("s", seed, "pgd50").pop()
        for seed in range(5)
    }
    for path in tmp_path.glob("runs/*/attacks/again-*/results.json"):
        records = json.loads(path.read_text())
        for record in records:
            record["source_fingerprint"] = sources[record["seed"]]
            if record["seed"] == 2:
                record["source_fingerprint"] = "another"
            if record["seed"] == 3:
                record["model_fingerprint"] = "another"
        path.write_text(json.dumps(records))
    results = Results.read(tmp_path)
    assert results.mixed == {"s": [2], "s+d": [3]}
    models, again_models = (
        results.models("s+d", 3, attack) for attack in ("pgd50", "again")
    )
    assert (len(models), again_models) == (1, {"another"})
    *_, verdict = claims.evaluate(results)
    assert verdict.claim.id == "again"
    assert verdict.verdict == claims.OPEN
    assert verdict.reason == "Its numbers of s+d, seed 3, are of several models."
    warning = verdicts.mixed(results.mixed)
    assert "[s: seed 2; s+d: seed 3] are of several models each" in warning
    assert warning in report.write(tmp_path)
    assert warning in (tmp_path / "report" / "README.md").read_text()


SOURCE = """
[attacks."again"]
attack = ["pgd"]
attack_tasks = ["seg"]
eps = [4]
variants = ["s+d"]
source = "s"
[[claims]]
id = "again"
source = "us"
statement = "Of two attacks, one does more harm."
attack = "again"
eps = 4
task = "seg"
metric = "miou"
[[claims.terms]]
weight = 1
variant = "s+d"
[[claims.terms]]
weight = -1
variant = "s+d"
attack = "pgd50"
eps = 1
"""


def test_several_that_fit_are_named_by_what_tells_them_apart(results):
    records = [
        record | {"algorithm": name}
        for record in results.records("pgd50")
        for name in ("pgd", "apgd")
    ]
    doubled_results = dataclasses.replace(results, _found=tuple(records))
    with pytest.raises(
        InputError, match=r"'pgd50'.*choose one with algorithm \(apgd, pgd"
    ):
        doubled_results.values("s", *WHERE)
    values = doubled_results.values("s", *WHERE, algorithm="apgd")
    np.testing.assert_array_equal(values, results.values("s", *WHERE))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("study.json", None, "study.json does not exist; --workdir must be"),
        ("index.json", None, "index.json does not exist"),
        ("study.json", "{", "study.json cannot be read"),
        ("study.json", "{}", "not from this version"),
    ],
)
def test_a_folder_without_a_study(tmp_path, name, text, message):
    study_fixture.example(tmp_path, done=lambda *cell: False)
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        Results.read(tmp_path)


@pytest.fixture
def rows(tmp_path):
    """(results of a study with one attack, the file with the rows of its record)."""
    cell_key = ("s", 0, "pgd50")
    study_fixture.example(tmp_path, done=lambda *cell: cell == cell_key)
    results = Results.read(tmp_path)
    record = results.record("s", 0, *WHERE)
    return results, tmp_path / record["folder"] / record["rows"]


@pytest.mark.parametrize("kept", [0, 0.5])
def test_damaged_rows_are_named(rows, kept):
    results, file = rows
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=f"{file.name} is missing or damaged"):
        study_fixture.rows_of(results, "s", 0)
    file.unlink()
    with pytest.raises(InputError, match=f"{file.name} is missing or damaged"):
        study_fixture.rows_of(results, "s", 0)
    assert not np.isnan(results.values("s", *WHERE)[0])


# `claim_checks` expects of attacks and measures what they write.


def test_planned_cells_are_those_that_records_come_from(tmp_path):
    text = study_fixture.EXAMPLE.split("[[claims]]")[0].replace(
        'attack = ["pgd"]',
        'attack = ["pgd", "apgd", "fgsm"]\nattack_loss = ["own", "js"]',
    )
    cell_key = ("s", 0, "pgd50")
    study = study_fixture.example(tmp_path, text, done=lambda *cell: cell == cell_key)
    fields = study.attack_fields("pgd50", "s", 0)
    plan = claim_checks.planned(AttackConfig(ckpt="-", **fields), ("seg",))
    keys = ("eps", "attacked", *results_lib.CHOICES)
    records = [
        {key: record[key] for key in keys}
        for record in Results.read(tmp_path).records("pgd50", "s", 0)
        if record["metric"] == "miou"
    ]
    assert records == plan
    assert len(plan) == 3 * 2 * 2


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder's records of all measures, of a model of three tasks."""
    folder = tmp_path_factory.mktemp("measured")
    study_fixture.write_measures(folder, MEASURES, ("seg", "depth", "normal"), 0)
    return results_lib._json(folder / "measures.json")


def test_quantities_have_the_fields_that_records_have(measured):
    settings = {"count", "eps", "draws", "seed", "n"}
    result = {}
    for record in measured:
        numbers = {k for k, v in record.items() if v is None or isinstance(v, float)}
        place = (record["measure"], record["quantity"])
        result.setdefault(place, set()).update(numbers - settings)
    expected = {
        (measure, quantity): set(fields)
        for measure, quantities in claim_checks.QUANTITIES.items()
        for quantity, (fields, _) in quantities.items()
    }
    assert result == expected


def test_the_keys_that_must_be_given_tell_all_records_apart(measured):
    places = []
    for record in measured:
        _, keys = claim_checks.QUANTITIES[record["measure"]][record["quantity"]]
        keys = (*keys, *(["tasks"] if record["measure"] != "tasks" else []))
        values = [str(record[key]) for key in keys]
        places.append((record["measure"], record["quantity"], *values))
    assert len(places) == len(set(places))


def test_the_keys_that_may_be_given_are_those_that_records_have(measured):
    """Except for metrics and sums of any tasks, which are checked separately."""
    tasks = ("seg", "depth", "normal")
    config = AttackConfig(ckpt="-", measure=MEASURES, attack_tasks=("each", "all"))
    for record in measured:
        _, needs = claim_checks.QUANTITIES[record["measure"]][record["quantity"]]
        key_values = claim_checks._key_values(config, record, tasks, (24, 24))
        special_keys = {"measure", "quantity", "tasks", "metric"}
        keys = claim_checks.MEASURE.keys() & record.keys() - special_keys
        assert keys == {*key_values, *needs} - special_keys
        for key in keys - {"eps", "count", "corruption"}:  # Few are in the fixture.
            assert record[key] in key_values[key]
        groups, group = (
            claim_checks._groups(config, record, tasks),
            record.get("tasks"),
        )
        if group is None:
            assert groups == []
        elif record["quantity"] != "norm_of_mean" and group[:1] != group[1:]:
            assert sorted(group) in groups


def test_a_study_of_another_version(tmp_path):
    with pytest.raises(InputError, match="not from this version"):
        design.Study.from_dict({"seeds": [0]})
