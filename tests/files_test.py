# SPDX-License-Identifier: Apache-2.0
"""Files: CSV that reads back, and runs nothing in a spreadsheet."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest

from mtr_tf import files


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_lists_tables_and_intervals_become_plain_columns(tmp_path):
    records = [
        {"a": ["x", "y"], "b": {"seg": 0.5, "depth": 1}, "clean_interval": [1.5, None]},
        {"a": (), "b": {}, "clean_interval": None, "more": "two\nlines, 'quoted\""},
    ]
    files.write_csv(tmp_path / "a.csv", records)
    assert read(tmp_path / "a.csv") == [
        {
            "a": "x+y",
            "b": "seg:0.5+depth:1",
            "clean_interval_low": "1.5",
            "clean_interval_high": "",
            "more": "",
        },
        {
            "a": "",
            "b": "",
            "clean_interval_low": "",
            "clean_interval_high": "",
            "more": "two\nlines, 'quoted\"",
        },
    ]
    files.write_csv(tmp_path / "b.csv", [], ("a", "b"))
    assert (tmp_path / "b.csv").read_text() == "a,b\n"


@pytest.mark.parametrize(
    "sign", ["=", "+", "-", "@", "\t", "\r", "\N{FULLWIDTH EQUALS SIGN}"]
)
def test_texts_are_no_formulas_and_numbers_stay(tmp_path, sign):
    formula = f"{sign}HYPERLINK(1)"
    record = {"text": formula, "list": [formula], "table": {formula: 1}, "number": -0.5}
    files.write_csv(tmp_path / "a.csv", [record])
    (row,) = read(tmp_path / "a.csv")
    assert row == {
        "text": f"'{formula}",
        "list": f"'{formula}",
        "table": f"'{formula}:1",
        "number": "-0.5",
    }


def test_texts_are_utf_8_in_any_locale(tmp_path):
    code = """
import pathlib
from mtr_tf import files
files.write_text(pathlib.Path("a").absolute(), "\\u2713")
files.write_csv(pathlib.Path("b").absolute(), [{"c": "\\u2713"}])
"""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    environment |= {"PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "a").read_text("utf-8") == "\u2713"
    assert (tmp_path / "b").read_text("utf-8") == "c\n\u2713\n"
