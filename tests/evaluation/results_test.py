# SPDX-License-Identifier: Apache-2.0
"""Records and files from results written down by hand."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
from results_fixture import CLEAN
from results_fixture import FACTS
from results_fixture import RECORDS
from results_fixture import result

from mtr_tf.evaluation import results
from mtr_tf.show import tables
from mtr_tf.tasks import TASKS

KEYS = ["attack", "norm", "eps", "steps", "step_size", "attacked", "task", "metric"]
KEYS += ["clean", "attacked_value", "relative_vulnerability", "n", "seed"]


def record(eps, task, metric):
    (match,) = (
        r for r in RECORDS if (r["eps"], r["task"], r["metric"]) == (eps, task, metric)
    )
    return match


def test_records():
    assert len(RECORDS) == 2 * (3 + 4)
    assert all(set(KEYS) < set(r) for r in RECORDS)
    entry = record(1.0, "seg", "miou")
    expected = ["pgd", "linf", 1.0, 20, 0.25, ["seg", "depth"], "seg", "miou", 0.4, 0.3]
    assert [entry[key] for key in KEYS[:10]] == expected
    assert entry["relative_vulnerability"] == pytest.approx(0.25)  # Higher is better.
    assert entry["attacked_interval"] == pytest.approx([0.29, 0.31])
    assert (entry["n"], entry["seed"], entry["better"]) == (12, 3, "higher")
    entry = record(1.0, "depth", "mae")
    assert entry["relative_vulnerability"] == pytest.approx(0.5)  # Lower is better.
    assert record(1.0, "depth", "rmse")["relative_vulnerability"] is None  # By 0.
    assert record(8.0, "depth", "mae")["attacked_value"] is None
    assert record(8.0, "depth", "mae")["relative_vulnerability"] is None


def test_records_say_which_channels_were_attacked_where_some_were():
    assert not any("attack_channels" in record for record in RECORDS)
    attacked = result(4.0, 0.3, 0.3)
    threat = dataclasses.replace(attacked.cell.threat, channels=(0, 2))
    cell = dataclasses.replace(attacked.cell, threat=threat)
    attacked = dataclasses.replace(attacked, cell=cell)
    records = results.make_records(CLEAN, [attacked], FACTS)
    assert all(record["attack_channels"] == [0, 2] for record in records)


def test_records_say_which_classes_mean_ious_leave_out_where_some_are():
    assert not any("ignored" in record for record in RECORDS)
    tasks = dict(TASKS) | {"seg": TASKS["seg"].bound(ignored=(0, 2))}
    records = results.make_records(CLEAN, [result(4.0, 0.3, 0.3)], FACTS, tasks=tasks)
    assert {record["task"]: record.get("ignored") for record in records} == {
        "seg": [0, 2],
        "depth": None,
    }


def test_what_a_cell_itself_warns_of_is_in_its_records_and_said_once(tmp_path):
    plain_result, moved_result = result(4.0, 0.3, 0.3), result(8.0, 0.3, 0.3)
    scale = ((0.5,) * 3, (0.25,) * 3)
    attack = dataclasses.replace(
        moved_result.cell.attack, name="pgd_released", scale=scale
    )
    cell = dataclasses.replace(moved_result.cell, attack=attack)
    moved_result = dataclasses.replace(moved_result, cell=cell)
    facts = FACTS | {"warnings": ["of all."]}
    records = results.make_records(CLEAN, [plain_result, moved_result], facts)
    assert {tuple(r["warnings"]) for r in records} == {
        ("of all.",),
        ("of all.", *cell.warnings),
    }
    text = tables.printed("text", "title", records, tmp_path)
    assert "\nintervals: 95 %, over 12 images\n" in text
    assert text.count("of all.") == 1
    assert text.count("up to 63.8 levels") == 1  # 255 (.5 - .25): black becomes dark.


def test_a_task_without_any_target_is_told():
    valid_rows, void = np.array([[2, 1], [0, 0]]), np.zeros((2, 2))
    rows = {
        "seg": {"miou": void, "loss": void},
        "depth": {"mae": valid_rows, "loss": void},
    }
    (sentence,) = results.without_targets(dataclasses.replace(CLEAN, rows=rows))
    assert sentence.startswith("seg has no target in any of the 12 images")
    assert results.without_targets(CLEAN) == []  # It has no rows.


def test_files(tmp_path):
    json_path, csv_path = results.write(RECORDS, tmp_path)
    assert json.loads(json_path.read_text()) == RECORDS
    assert "NaN" not in json_path.read_text()
    with open(csv_path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(RECORDS)
    assert rows[0]["attacked"] == "seg+depth"
    assert float(rows[0]["clean"]) == 0.4
    assert float(rows[0]["attacked_interval_low"]) == pytest.approx(0.29)
    empty_rows = [row for row in rows if row["eps"] == "8.0" and row["metric"] == "mae"]
    assert empty_rows[0]["attacked_value"] == ""
