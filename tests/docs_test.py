# SPDX-License-Identifier: Apache-2.0
"""Pages name every attack, loss and balance, and what chooses results in a claim."""

from __future__ import annotations

import pathlib
import re
import runpy

from mtr_tf import attacks
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.attacks.kinds import Kind
from mtr_tf.study import results

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "attacks.md").read_text()


def test_the_tables_are_those_of_the_package(monkeypatch):
    fill = runpy.run_path(str(DOCS / "attack_tables.py"))["filled"]
    assert fill(PAGE) == PAGE, "Run: python docs/attack_tables.py"
    kind = Kind(record="their.package:Brighter", does="`|x| + eps`", source="theirs")
    monkeypatch.setitem(KINDS, "brighter", kind)
    row = r"| `brighter` | in `their.package`: `Brighter` | `\|x\| + eps` | theirs |"
    assert row in fill(PAGE).splitlines()


def test_the_page_of_studies_names_what_chooses_one_result():
    section = (DOCS / "studies.md").read_text().split("## Claims")[1]
    text = section.split("- `better`")[0]
    assert set(results.CHOICES) <= set(re.findall(r"`(\w+)`", text))


def test_every_attack_says_what_it_does():
    assert not [name for name, kind in KINDS.items() if not kind.does]


def test_classes_of_the_table_exist():
    section = PAGE.split("## How the image moves")[1].split("\n## ")[0]
    for name in re.findall(r"^\| `\w+` \| `(\w+)", section, re.MULTILINE):
        assert hasattr(attacks, name), name
