# SPDX-License-Identifier: Apache-2.0
"""The table of attacks: nothing else knows a name; finished cells are still found."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from process_fixture import imported_by
from results_fixture import CLEAN
from results_fixture import FACTS

import mtr_tf
from mtr_tf import attacks
from mtr_tf.attacks import base
from mtr_tf.attacks import kinds
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.attacks.kinds import Kind
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.data.source import Columns
from mtr_tf.errors import InputError
from mtr_tf.evaluation import plan
from mtr_tf.evaluation import results
from mtr_tf.evaluation import sanity_checks
from mtr_tf.evaluation.cell_store import Result
from mtr_tf.evaluation.evaluator import Evaluator
from mtr_tf.runs.workers import Workers
from mtr_tf.study import costs

SCALE = ((0.3,) * 3, (0.2,) * 3)
NAMES = ("pgd", "fgsm", "mim", "mim_released", "apgd", "square", "noise", "corner")
NAMES += ("sea", "worst", "pgd_released", "pgd_released_start", "pgd_released_scale")
# Of all cells' keys, as they were before there was a table; and the settings.
KEYS = {
    "18f5f06024021c5b": {},
    "9ae489ed68f2aa0a": {
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
    "c713dabdc7400ba0": {
        "random_start": False,
        "eps": (8,),
        "ensemble": ("mim", "noise", "fgsm", "corner", "mim_released", "square"),
        "attack_loss": ("own", "js+angular", "cospgd"),
        "judge": "harm",
    },
    "c7d08ff22f747282": {  # Its ensembles break ties: others than in 0.2.0.dev1.
        "attack_block": "4x4+1+2",
        "attack_classes": ("b",),
        "eps": (1, 4.0),
    },
}


@dataclasses.dataclass(frozen=True)
class Brighter(base.Attack):
    """All pixels as bright as the ball allows."""

    epsilon: float | tf.Tensor
    rounds: int = 1

    @property
    def passes(self) -> int:
        return self.rounds

    def search(self, objective, x, keys):
        del objective, keys
        return tf.minimum(x + tf.cast(self.epsilon, x.dtype), 1)


@pytest.fixture
def brighter(monkeypatch):
    """An entry beside ours, which is all that a new attack takes."""
    kind = kinds.Kind(
        record=Brighter,
        does="all values `+ eps`",
        uses=frozenset({"restarts"}),
        named={"rounds": "restarts"},
        gradient=False,
    )
    monkeypatch.setitem(KINDS, "brighter", kind)
    return AttackConfig(
        ckpt="-",
        attack=("brighter", "worst"),
        ensemble=("brighter",),
        restarts=3,
        eps=(51.0,),
    )


def test_a_new_entry_is_planned_and_run(brighter):
    cell, worst = plan.make_cells(brighter, ("depth",))
    (member,) = worst.members
    assert member.attack == cell.attack
    assert (cell.attack.restarts, cell.attack.steps) == (3, 1)
    assert attacks.make("brighter", 0.2, steps=9, restarts=3) == Brighter(0.2, 3)
    x = np.full((2, 4, 4, 3), 102, np.uint8)
    evaluator = Evaluator(
        lambda images: {"depth": images[..., :1]},
        ("depth",),
        2,
        Workers(tf.distribute.get_strategy()),
        attack=cell.build(),
        objective=cell.objective_settings(4, 4),
        clean=False,
    )
    columns = Columns(x, {"depth": x[..., :1] / np.float32(255)}, {})
    found = evaluator.run(
        columns, batch_size=2, num_examples=2, keep_examples=2, numbers=cell.numbers
    )
    np.testing.assert_allclose(found.examples.adversarial, 0.6, rtol=1e-6)


def test_a_new_entry_is_counted_and_checked(brighter):
    cell, worst = plan.make_cells(brighter, ("depth",))
    assert cell.passes == worst.passes == pytest.approx(1 + 0.4 * 3)
    one = dataclasses.replace(brighter, attack=("brighter",))
    run = TrainConfig(tasks=("depth",))
    assert costs.of_attack(one, run) > costs.of_attack(
        dataclasses.replace(one, restarts=1), run
    )
    probe = sanity_checks.probe([cell, worst])
    assert (probe.attack.name, probe.eps) == ("pgd", 51)


def test_a_new_entry_is_in_the_results(brighter):
    (cell, _) = plan.make_cells(brighter, ("depth",))
    found = Result(cell, CLEAN.scores, 12, {})
    records = results.make_records(CLEAN, [found], FACTS)
    assert {record["attack"] for record in records} == {"brighter"}
    assert {record["restarts"] for record in records} == {3}


def test_a_setting_that_an_entry_does_not_use_is_left_to_its_record(monkeypatch):
    kind = kinds.Kind(record=attacks.APGD, fixed={"steps": 7})
    monkeypatch.setitem(KINDS, "fixed", kind)
    config = AttackConfig(ckpt="-", attack=("fixed",), steps=50, restarts=3)
    (cell, *_) = plan.make_cells(config, ("depth",))
    made = cell.attack.make("linf", 0.1, 0.1)
    assert (made.steps, made.restarts) == (7, 1)


@pytest.mark.parametrize(
    ("name", "settings", "made"),
    [
        ("square", {"queries": 5000}, attacks.Square(0.1, 5000)),
        ("square", {"steps": 7}, attacks.Square(0.1, 7)),
        ("square", {"queries": 5000, "steps": 7}, attacks.Square(0.1, 5000)),
        ("noise", {"draws": 10}, attacks.Noise(0.1, draws=10)),
        ("corner", {"restarts": 3}, attacks.Corner(0.1, draws=3)),
        (
            "pgd",
            {"steps": 20, "keep": "last"},
            attacks.PGD(0.1, 0.025, 20, keep="last"),
        ),
        ("pgd", {"steps": 20, "step_size": 0.02}, attacks.PGD(0.1, 0.02, 20)),
        ("fgsm", {"steps": 20, "step_size": 0.02}, attacks.FGSM(0.1)),
    ],
)
def test_settings_may_have_the_names_of_commands_or_of_fields(name, settings, made):
    assert attacks.make(name, 0.1, **settings) == made


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("apgd", {"restart": 5}, "APGD takes .*got 'restart'. Did you mean 'restarts'"),
        (
            "sea",
            {"losses": ("js",)},
            "SEA takes the settings step_size, .*got 'losses'",
        ),
        ("pgd", {"draws": 10}, "PGD takes .*keep, but got 'draws'"),
        ("pgd", {}, "PGD needs steps, which has no default; give it"),
    ],
)
def test_settings_that_nothing_takes_or_that_are_missing_are_refused(
    name, settings, said
):
    with pytest.raises(InputError, match=said):
        attacks.make(name, 0.1, **settings)


def test_an_entry_may_be_of_another_package():
    kind = kinds.Kind(record="mtr_tf.attacks.pgd:FGSM")
    assert kind.make(0.1) == attacks.FGSM(0.1)
    assert kinds.Kind(record=attacks.FGSM).place == kind.place


def test_the_table_needs_no_tensorflow():
    assert "tensorflow" not in imported_by("import mtr_tf.attacks.kinds")


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


@dataclasses.dataclass(frozen=True)
class Stepping(attacks.Attack):
    """An attack with a step size of its own."""

    epsilon: float
    step_size: float = 0.1

    @property
    def passes(self) -> int:
        return 1

    def search(self, objective, x, keys):
        return x


def test_a_step_size_that_would_be_overwritten_is_refused():
    with pytest.raises(InputError, match="Stepping has a step_size.*got nothing"):
        Kind(record=Stepping).make(0.1)
    made = Kind(record=Stepping, uses=frozenset({"step_size"})).make(0.1, step_size=0.2)
    assert made.step_size == 0.2
