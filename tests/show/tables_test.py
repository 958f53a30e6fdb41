# SPDX-License-Identifier: Apache-2.0
"""What commands print: tables of any rows, of attacks, of measures."""

from __future__ import annotations

import csv
import json

import pytest
import study_fixture
from results_fixture import RECORDS

from mtr_tf.show import tables
from mtr_tf.show import text


def test_columns_stand_below_each_other():
    rows = [("name", "n", "seconds"), ("a", "1", "10.5"), ("longer", "200", "")]
    assert tables.aligned(rows) == (
        "name    n    seconds\na       1    10.5\nlonger  200"
    )
    assert tables.aligned(rows, "lr") == (
        "name      n  seconds\na         1     10.5\nlonger  200"
    )
    assert tables.aligned([("a\nb", "c"), ("long", "d")], bars=True) == (
        "a    | c\nb    |\nlong | d"
    )


def test_words_are_neither_read_nor_cut(monkeypatch):
    """Not read as rich's markup, emoji or links, nor cut at the width of a terminal."""
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    words = ["[bold]seg[/bold]", ":smile:", "mae [m]", "https://a.b/c", "x" * 500]
    assert tables.aligned([words]) == "  ".join(words)


def test_wide_characters_take_two_places():
    assert tables.aligned([("東京", "a"), ("abc", "b")]) == "東京  a\nabc   b"


def test_table():
    table = tables.table(RECORDS).splitlines()
    assert table[0].split("|")[1].strip() == "seg miou, higher is better"
    assert table[0].split("|")[2].strip() == "depth mae [m], lower is better"
    assert [part.strip() for part in table[1].split("|")[1:]] == [
        "clean: 0.400",
        "clean: 0.200",
    ]
    labels, seg, depth = (part.split() for part in table[3].split("|"))
    assert labels == ["pgd", "seg+depth", "1"]
    assert seg == ["0.300", "0.290", "to", "0.310", "x2.50"]
    assert depth == ["0.300", "0.290", "to", "0.310", "x1.50"]
    assert table[4].split("|")[2].split() == ["-", "-", "-"]
    bars = [[i for i, c in enumerate(line) if c == "|"] for line in table]
    assert bars == [bars[0]] * len(table)


def test_doubts_come_before_notes():
    warnings = ["note: maps are resized.", "the range is wrong.", "gradients vanish."]
    output = tables.about("t", [{**r, "warnings": warnings} for r in RECORDS], 100)
    assert output.endswith(
        "\n\nWARNING, before you trust these numbers:\n- the range is wrong.\n"
        "- gradients vanish.\n\nnote: maps are resized."
    )
    output = tables.about("t", [{**r, "warnings": warnings[:1]} for r in RECORDS], 100)
    assert "WARNING" not in output


def test_markdown():
    rows = [("eps", "a|b"), ("1", "0.5")]
    assert tables.markdown(rows) == "| eps | a\\|b |\n| --- | ---: |\n| 1 | 0.5 |"


def test_other_formats_have_the_same_numbers(tmp_path):
    outputs = {
        form: tables.printed(form, "title", RECORDS, tmp_path)
        for form in ("text", "markdown", "csv", "json")
    }
    assert "tensorboard --logdir=" in outputs["text"]
    assert json.loads(outputs["json"]) == RECORDS
    rows = list(csv.DictReader(outputs["csv"].splitlines()))
    assert [float(row["eps"]) for row in rows] == [r["eps"] for r in RECORDS]
    row = "| pgd | seg+depth | 1 | 0.300 (0.290-0.310) | 0.300 (0.290-0.310) |"
    assert row in outputs["markdown"]
    assert "seg miou (clean 0.400) | depth mae [m] (clean 0.200)" in outputs["markdown"]


def test_metrics_that_were_asked_for_are_in_a_table_of_their_own(tmp_path):
    default = tables.about("title", RECORDS, 100)
    assert tables.about("title", RECORDS, 100, ("delta1",)) == default
    output = tables.about("title", RECORDS, 60, ("rmse",))
    assert "depth rmse" in output
    assert "rel" not in output.split()
    all_metrics = tables.about("title", RECORDS, 60, ("all",))
    for name in ("seg pixel_accuracy", "depth rmse", "depth rel"):
        assert name in all_metrics
    assert max(map(len, all_metrics.splitlines())) <= 60
    record = next(r for r in RECORDS if r["metric"] == "rmse")
    assert f"clean: {text.plain(record['clean'])}" in output
    # Two radii.
    assert output.count(f"| {text.plain(record['attacked_value'])}\n") == 2
    markdown = tables.printed("markdown", "title", RECORDS, tmp_path, ("rmse",))
    assert "| depth rmse" in markdown


def test_a_narrow_table_is_broken_by_task():
    table = tables.table(RECORDS, width=70)
    assert all(len(line) <= 70 for line in table.splitlines())
    first, second = table.split("\n\n")
    assert "miou" in first
    assert "mae" not in first
    assert "mae" in second
    assert "seg+depth" in second


def test_outputs_against_targets_that_attacks_want():
    assert tables.wanted_table(RECORDS) == ""
    wanted = {"targeted": True, "wanted_clean": 0.25, "wanted_value": 1234.5}
    head, *rows = tables.wanted_table([r | wanted for r in RECORDS]).splitlines()
    assert head.split() == [
        "attack",
        "attacked",
        "eps",
        "task",
        "metric",
        "clean",
        "attacked",
    ]
    assert rows[0].split() == ["pgd", "seg+depth", "1", "seg", "miou", "0.250", "1234"]
    assert [row.split()[3:5] for row in rows] == [["seg", "miou"], ["depth", "mae"]] * 2


def test_measures(tmp_path):
    """Each measure has a block of lines, with its numbers in columns."""
    measures = ("tasks", "pixels", "first_order")
    study_fixture.write_measures(tmp_path, measures, ("seg", "depth"), 0)
    records = json.loads((tmp_path / "measures.json").read_text())
    blocks = tables.measures(records).split("\n\n")
    assert [block.splitlines()[1].split()[0] for block in blocks] == [
        "norm",
        "task",
        "task",
        "attacked",
    ]
    slope = next(
        r
        for r in records
        if r["quantity"] == "slope" and (r["norm"], r["normalisation"]) == ("l2", "raw")
    )
    row = blocks[0].splitlines()[2].split()
    assert row[:3] == ["l2", "raw", "1.00"]
    assert float(row[-2]) == pytest.approx(slope["value"], rel=5e-3)
    assert (
        tables.measures([r for r in records if r["measure"] == "first_order"])
        == (blocks[3])
    )
    assert tables.measures([]) == ""


def test_attacks_on_pixels_of_a_task_with_no_other_metric_show_its_loss():
    """Such as a task with mean IoU alone, which says nothing about few pixels."""
    record = {"measure": "pixels", "quantity": "attacked_pixels", "eps": 8.0}
    record |= {"count": 4, "value": 0.5, "clean": 0.25}
    pairs = [("seg", "loss"), ("depth", "mae"), ("depth", "loss")]
    records = [record | {"tasks": [task], "metric": name} for task, name in pairs]
    assert tables.measures(records).splitlines()[1:] == [
        "        task   metric  n=4",
        "pixels  seg    loss    0.500/0.250",
        "pixels  depth  mae     0.500/0.250",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, "0.500"),
        (12.345, "12.3"),
        (123.4, "123"),
        (1234.5, "1234"),
        (0.0, "0.00"),
        (-0.5, "-0.500"),
        (None, "-"),
    ],
)
def test_plain_numbers(value, expected):
    assert text.plain(value) == expected
