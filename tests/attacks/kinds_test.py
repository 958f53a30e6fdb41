# SPDX-License-Identifier: Apache-2.0
"""The table of attacks: nothing else knows a name; finished cells are still found."""

from __future__ import annotations

import ast
import hashlib
import json
import pathlib

import pytest

import mtr_tf
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.config.attack import AttackConfig
from mtr_tf.evaluation import plan

SCALE = ((0.3,) * 3, (0.2,) * 3)
NAMES = ("pgd", "fgsm", "mim", "mim_released", "apgd", "square", "noise", "corner")
NAMES += ("sea", "worst", "pgd_released", "pgd_released_start", "pgd_released_scale")
# Of all cells' keys, as they were before there was a table; and the settings.
KEYS = {
    "affca37ad84c5c95": {},
    "ab23a05dad4d2c50": {
        "norm": "l2",
        "eps": (0.0, 0.5),
        "steps": 7,
        "step_size": 0.1,
        "restarts": 3,
        "queries": 40,
        "seed": 5,
        "attack_weights": ("seg:2", "depth:0.5"),
        "balance": ("sum", "dgba"),
    },
    "11b5e0c24d79f085": {
        "random_start": False,
        "eps": (8,),
        "ensemble": ("mim", "noise", "fgsm", "corner", "mim_released", "square"),
        "attack_loss": ("own", "js+angular", "cospgd"),
        "judge": "harm",
    },
    "3746f589703728fc": {
        "attack_block": "4x4+1+2",
        "attack_classes": ("b",),
        "eps": (1, 4.0),
    },
}


def key_of(cell: plan.Cell) -> str:
    """As the store of version 0.2.0.dev1 hashes it."""
    key = {"format": 4, "model": "m", "seed": 0, "attack": cell.to_dict()}
    text = json.dumps(key, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("digest", KEYS)
def test_finished_cells_are_found_under_the_same_keys(digest):
    config = AttackConfig(ckpt="-", attack=NAMES, **KEYS[digest])
    cells = plan.make_cells(config, ("seg", "depth", "normal"), ("a", "b"), SCALE)
    keys = [key_of(c) for cell in cells for c in (cell, *cell.members)]
    assert hashlib.sha256("".join(keys).encode()).hexdigest()[:16] == digest


def test_nothing_compares_with_the_name_of_an_attack():
    found = []
    for path in pathlib.Path(mtr_tf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                parts = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
                words = {n.value for n in parts if isinstance(n.value, str)}
                # One of the released attacks' starts is called "corner" too.
                if words & set(KINDS) and path.name != "released.py":
                    found.append(f"{path.name}:{node.lineno}")
    assert not found
