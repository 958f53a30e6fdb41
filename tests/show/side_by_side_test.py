# SPDX-License-Identifier: Apache-2.0
"""Which attacks on several models can be compared, and the errors for the others."""

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
    """Writes the records of each named run, and reads the runs as models."""

    def read(**runs) -> list[side_by_side.Model]:
        for name, records in runs.items():
            folder = tmp_path / name / "attacks" / "quick"
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(records))
        return side_by_side.read([str(tmp_path / name) for name in runs])

    return read


def test_the_attacks_that_were_asked_for_are_those_that_differ(read):
    """Another attack is the same on both, but nobody asked for it."""
    fgsm = attacked(1, "fgsm")
    models = read(a=[attacked(20), fgsm], b=[attacked(50), fgsm])
    with pytest.raises(InputError, match=r"but steps is 20 in .*/a and 50 in .*/b\."):
        side_by_side.compare(models, attacks=["pgd"])
    (comparison,) = side_by_side.compare(models)
    assert comparison.facts["attack"] == "fgsm"


def test_attacks_that_only_some_of_many_models_share(read):
    ten, twenty, fifty = attacked(10), attacked(20), attacked(50)
    models = read(a=[ten, twenty], b=[ten], c=[twenty])
    with pytest.raises(InputError, match=r"steps is 10 in .*/b and 20 in .*/c\."):
        side_by_side.compare(models)
    models = read(d=[ten, twenty], e=[twenty, fifty], f=[ten, fifty])
    message = "each attack is missing in the results of one of .*/d, .*/e, .*/f; repeat"
    with pytest.raises(InputError, match=message):
        side_by_side.compare(models)


def test_a_task_must_be_attacked_alone_in_the_same_way_in_all(read):
    records = [attacked(10, task="seg"), attacked(20, task="depth")]
    other_records = [attacked(10, task="depth"), attacked(20, task="seg")]
    models = read(a=records, b=other_records)
    with pytest.raises(InputError, match="A task must have been attacked alone in all"):
        side_by_side.compare(models)
    more_models = read(c=[*records, *other_records], d=records)
    comparisons = side_by_side.compare(more_models)
    assert [(c.task, c.facts["steps"]) for c in comparisons] == [
        ("seg", 10),
        ("depth", 20),
    ]


def test_models_are_judged_by_the_same_classes(read):
    models = read(a=[attacked(10)], b=[attacked(10, ignored=[3])])
    message = "numbers of those left out are none in a and .3. in b; attack both on"
    with pytest.raises(InputError, match=message):
        side_by_side.compare(models)
    more_models = read(c=[attacked(10, ignored=[3])], d=[attacked(10, ignored=[3])])
    assert len(side_by_side.compare(more_models)) == 1
