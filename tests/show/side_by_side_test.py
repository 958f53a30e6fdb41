# SPDX-License-Identifier: Apache-2.0
"""Which attacks on several models can be compared, and what is said of the others."""

from __future__ import annotations

import json

import pytest

from mtr_tf.errors import InputError
from mtr_tf.show import side_by_side


def attacked(steps: int, attack: str = "pgd", task: str = "seg", **changes) -> dict:
    """A record of an attack on one task alone."""
    record = {"attack": attack, "steps": steps, "norm": "linf", "eps": 1.0, "n": 7}
    record |= {"attacked": [task], "task": task, "metric": "miou", "dataset": "rooms"}
    record |= {"split": "validation", "clean": 0.5, "attacked_value": 0.4}
    return record | {"clean_interval": [0, 1], "attacked_interval": [0, 1]} | changes


@pytest.fixture
def read(tmp_path):
    """Reads models of these names from the records of their attacks."""

    def read(**runs) -> list[side_by_side.Model]:
        for name, records in runs.items():
            folder = tmp_path / name / "attacks" / "quick"
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(records))
        return side_by_side.read([str(tmp_path / name) for name in runs])

    return read


def test_the_attacks_that_were_asked_for_are_those_that_differ(read):
    """Another attack is the same on both, but nobody asked for it."""
    same = attacked(1, "fgsm")
    models = read(a=[attacked(20), same], b=[attacked(50), same])
    with pytest.raises(InputError, match=r"but steps is 20 in .*/a and 50 in .*/b\."):
        side_by_side.compare(models, attacks=["pgd"])
    (shared,) = side_by_side.compare(models)
    assert shared.facts["attack"] == "fgsm"


def test_attacks_that_only_some_of_many_models_share(read):
    few, some, many = attacked(10), attacked(20), attacked(50)
    models = read(a=[few, some], b=[few], c=[some])
    with pytest.raises(InputError, match=r"steps is 10 in .*/b and 20 in .*/c\."):
        side_by_side.compare(models)
    models = read(d=[few, some], e=[some, many], f=[few, many])
    message = "each attack is missing in the results of one of .*/d, .*/e, .*/f; repeat"
    with pytest.raises(InputError, match=message):
        side_by_side.compare(models)


def test_a_task_must_be_attacked_alone_in_the_same_way_in_all(read):
    pairs = [attacked(10, task="seg"), attacked(20, task="depth")]
    other = [attacked(10, task="depth"), attacked(20, task="seg")]
    models = read(a=pairs, b=other)
    with pytest.raises(InputError, match="A task must have been attacked alone in all"):
        side_by_side.compare(models)
    both = read(c=[*pairs, *other], d=pairs)
    found = side_by_side.compare(both)
    assert [(one.task, one.facts["steps"]) for one in found] == [
        ("seg", 10),
        ("depth", 20),
    ]


def test_models_are_judged_by_the_same_classes(read):
    models = read(a=[attacked(10)], b=[attacked(10, ignored=[3])])
    message = "numbers of those left out are none in a and .3. in b; attack both on"
    with pytest.raises(InputError, match=message):
        side_by_side.compare(models)
    both = read(c=[attacked(10, ignored=[3])], d=[attacked(10, ignored=[3])])
    assert len(side_by_side.compare(both)) == 1
