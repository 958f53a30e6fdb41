# SPDX-License-Identifier: Apache-2.0
"""Records, table and files from results written down by hand."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest
from results_fixture import CLEAN
from results_fixture import FACTS
from results_fixture import RECORDS
from results_fixture import result

from mtr_tf.evaluation import results

KEYS = ["attack", "norm", "eps", "steps", "step_size", "attacked", "task", "metric"]
KEYS += ["clean", "attacked_value", "relative_vulnerability", "n", "seed"]


def record(eps, task, metric):
    (found,) = (
        r for r in RECORDS if (r["eps"], r["task"], r["metric"]) == (eps, task, metric)
    )
    return found


def test_records():
    assert len(RECORDS) == 2 * (3 + 4)
    assert all(set(KEYS) < set(r) for r in RECORDS)
    found = record(1.0, "seg", "miou")
    expected = ["pgd", "linf", 1.0, 20, 0.25, ["seg", "depth"], "seg", "miou", 0.4, 0.3]
    assert [found[key] for key in KEYS[:10]] == expected
    assert found["relative_vulnerability"] == pytest.approx(0.25)  # Higher is better.
    assert found["attacked_interval"] == pytest.approx([0.29, 0.31])
    assert (found["n"], found["seed"], found["better"]) == (12, 3, "higher")
    found = record(1.0, "depth", "mae")
    assert found["relative_vulnerability"] == pytest.approx(0.5)  # Lower is better.
    assert record(1.0, "depth", "rmse")["relative_vulnerability"] is None  # By 0.
    assert record(8.0, "depth", "mae")["attacked_value"] is None
    assert record(8.0, "depth", "mae")["relative_vulnerability"] is None


def test_what_a_cell_itself_warns_of_is_in_its_records_and_said_once(tmp_path):
    plain, moved = result(4.0, 0.3, 0.3), result(8.0, 0.3, 0.3)
    scale = ((0.5,) * 3, (0.25,) * 3)
    cell = dataclasses.replace(moved.cell, attack="pgd_released", scale=scale)
    moved = dataclasses.replace(moved, cell=cell)
    facts = FACTS | {"warnings": ["of all."]}
    records = results.make_records(CLEAN, [plain, moved], facts)
    assert {tuple(r["warnings"]) for r in records} == {
        ("of all.",),
        ("of all.", *cell.warnings),
    }
    text = results.text("title", records, tmp_path)
    assert "\nintervals: 95 %, over 12 images\n" in text
    assert text.count("of all.") == 1
    assert text.count("up to 63.8 levels") == 1  # 255 (.5 - .25): black becomes dark.


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
    empty = [row for row in rows if row["eps"] == "8.0" and row["metric"] == "mae"]
    assert empty[0]["attacked_value"] == ""


def test_table():
    table = results.table(RECORDS).splitlines()
    assert table[0].split("|")[1].strip() == "seg miou, higher is better"
    assert table[0].split("|")[2].strip() == "depth mae [m], lower is better"
    left, seg, depth = (part.split() for part in table[2].split("|"))
    assert left == ["pgd", "seg+depth", "1"]
    assert seg == ["0.400", "0.300", "0.290", "to", "0.310", "x2.50"]
    assert depth == ["0.200", "0.300", "0.290", "to", "0.310", "x1.50"]
    assert table[3].split("|")[2].split() == ["0.200", "-", "-", "-"]
    assert len({len(line) for line in table}) == 1


def test_a_narrow_table_is_broken_by_task():
    narrow = results.table(RECORDS, width=80)
    assert all(len(line) <= 80 for line in narrow.splitlines())
    first, second = narrow.split("\n\n")
    assert "miou" in first
    assert "mae" not in first
    assert "mae" in second
    assert "seg+depth" in second


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.500"), (12.345, "12.3"), (123.4, "123"), (0.0, "0.00"), (None, "-")],
)
def test_short_numbers(value, text):
    assert results.short(value) == text
