# SPDX-License-Identifier: Apache-2.0
"""The files of measures when several commands write them in turn."""

from __future__ import annotations

import csv
import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtr_tf.show import measure_files

FACTS = {"model": "m", "split": "validation", "tasks": ("seg",)}
RHO = {"measure": "tasks", "quantity": "rho", "value": 0.5}


def rise(value: float) -> dict:
    """A record of `first_order`, which has a curve in TensorBoard and no plot here."""
    record = {
        "measure": "first_order",
        "quantity": "rise",
        "tasks": ["seg"],
        "eps": 2.0,
    }
    return record | {"norm": "linf", "predicted": 1.0, "ratio": 1.0, "value": value}


def test_records_of_other_measures_stay_while_all_they_depend_on_is_the_same(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(measure_files.theory, "save_run", lambda *arguments: [])

    def write_record(record, facts=FACTS):
        name = record["measure"]
        text = measure_files.write([record], tmp_path, [name], facts)
        assert ("linf" in text) == (name == "first_order")  # It has its own table.
        events = EventAccumulator(str(tmp_path / "measures"), {"tensors": 0})
        events.Reload()
        with open(tmp_path / "measures.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        records = json.loads((tmp_path / "measures.json").read_text())
        assert [row["measure"] for row in rows] == [r["measure"] for r in records]
        curves = [name for name in events.Tags()["tensors"] if "first_order" in name]
        assert len(curves) == sum(r["measure"] == "first_order" for r in records)
        return records

    assert write_record(rise(1.0)) == [rise(1.0)]
    assert write_record(RHO) == [rise(1.0), RHO]
    assert write_record(rise(2.0)) == [RHO, rise(2.0)]
    assert write_record(RHO, FACTS | {"model": "other"}) == [RHO]
    assert write_record(rise(1.0)) == [rise(1.0)]
    (tmp_path / "measures.json").write_text("[")
    assert write_record(RHO) == [RHO]
    (tmp_path / "measures" / "facts.json").unlink()  # As in older folders.
    assert write_record(rise(1.0)) == [rise(1.0)]
