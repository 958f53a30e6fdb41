# SPDX-License-Identifier: Apache-2.0
"""The page about attacks names every attack, loss, balance and check that there is."""

from __future__ import annotations

import pathlib
import re

import pytest

from mtr_tf import attacks
from mtr_tf.attacks.kinds import KINDS

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "attacks.md").read_text()


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("How the image moves", KINDS),
        ("What is raised", attacks.ATTACK_LOSSES),
        ("How several tasks", attacks.BALANCES),
    ],
)
def test_tables_are_complete(heading, names):
    section = PAGE.split(f"## {heading}")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == set(names)


def test_classes_of_the_table_exist():
    section = PAGE.split("## How the image moves")[1].split("\n## ")[0]
    for name in re.findall(r"^\| `\w+` \| `(\w+)", section, re.MULTILINE):
        assert hasattr(attacks, name), name
