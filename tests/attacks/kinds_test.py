# SPDX-License-Identifier: Apache-2.0
"""The table of attacks: nothing else knows a name; finished cells are still found."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import json
import pathlib

import keras
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
# {digest of all cells' keys, as they were before there was a table: the settings}.
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
    "c7d08ff22f747282": {  # Its ensembles break ties, unlike in 0.2.0.dev1.
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
    result = evaluator.run(
        columns, batch_size=2, num_examples=2, keep_examples=2, numbers=cell.numbers
    )
    np.testing.assert_allclose(result.examples.adversarial, 0.6, rtol=1e-6)


def test_a_new_entry_is_counted_and_checked(brighter):
    cell, worst = plan.make_cells(brighter, ("depth",))
    assert cell.passes == worst.passes == pytest.approx(1 + 0.4 * 3)
    config = dataclasses.replace(brighter, attack=("brighter",))
    run = TrainConfig(tasks=("depth",))
    assert costs.of_attack(config, run) > costs.of_attack(
        dataclasses.replace(config, restarts=1), run
    )
    probe = sanity_checks.probe([cell, worst])
    assert (probe.attack.name, probe.eps) == ("pgd", 51)


def test_a_new_entry_is_in_the_results(brighter):
    (cell, _) = plan.make_cells(brighter, ("depth",))
    result = Result(cell, CLEAN.scores, 12, {})
    records = results.make_records(CLEAN, [result], FACTS)
    assert {record["attack"] for record in records} == {"brighter"}
    assert {record["restarts"] for record in records} == {3}


def test_a_setting_that_an_entry_does_not_use_is_left_to_its_record(monkeypatch):
    kind = kinds.Kind(record=attacks.APGD, fixed={"steps": 7})
    monkeypatch.setitem(KINDS, "fixed", kind)
    config = AttackConfig(ckpt="-", attack=("fixed",), steps=50, restarts=3)
    (cell, *_) = plan.make_cells(config, ("depth",))
    attack = cell.attack.make("linf", 0.1, 0.1)
    assert (attack.steps, attack.restarts) == (7, 1)


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
        ("pgd", {"epsilon": "0.1"}, "epsilon must be a finite number; got '0.1'"),
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
        attacks.make(name, **{"epsilon": 0.1} | settings)


def test_an_entry_may_be_of_another_package():
    kind = kinds.Kind(record="mtr_tf.attacks.pgd:FGSM")
    assert kind.make(0.1) == attacks.FGSM(0.1)
    assert kinds.Kind(record=attacks.FGSM).place == kind.place


def test_the_table_needs_no_tensorflow():
    assert "tensorflow" not in imported_by("import mtr_tf.attacks.kinds")


def key_of(cell: plan.Cell) -> str:
    """A cell's key, hashed as in the store of version 0.2.0.dev1."""
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
    places = []
    for path in pathlib.Path(mtr_tf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                parts = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
                words = {n.value for n in parts if isinstance(n.value, str)}
                # One of the released attacks' starts is called "corner" too.
                if words & set(KINDS) and path.name != "released.py":
                    places.append(f"{path.name}:{node.lineno}")
    assert not places


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
    attack = Kind(record=Stepping, uses=frozenset({"step_size"})).make(
        0.1, step_size=0.2
    )
    assert attack.step_size == 0.2


def test_a_record_whose_first_field_is_not_its_radius_is_refused():
    other_record = dataclasses.make_dataclass("Other", [("eps", float)], frozen=True)
    with pytest.raises(
        InputError, match="first field of Other must be epsilon.*got eps"
    ):
        Kind(record=other_record).make(0.1)
    empty_record = dataclasses.make_dataclass("Empty", [], frozen=True)
    with pytest.raises(InputError, match="first field of Empty.*got none"):
        Kind(record=empty_record).make(0.1)


def test_fixed_fields_stay_unless_uses_names_them(monkeypatch):
    fixed = {"random_start": False, "keep": "last", "norm": "l2"}
    kind = Kind(
        record=attacks.PGD,
        uses=frozenset({"steps", "step_size"}),
        fixed=fixed,
        step=0.5,
    )
    expected = attacks.PGD(0.1, 0.05, 3, "l2", random_start=False, keep="last")
    assert kind.make(0.1, steps=3, random_start=True, norm="linf") == expected
    with pytest.raises(InputError, match="PGD takes .*but got 'keep'"):
        kind.make(0.1, steps=3, keep="best")
    free_kind = dataclasses.replace(kind, uses=kind.uses | {"random_start"})
    assert free_kind.make(0.1, steps=3, random_start=True).random_start
    assert not free_kind.make(0.1, steps=3).random_start

    monkeypatch.setitem(KINDS, "fixed", kind)
    config = AttackConfig(ckpt="-", attack=("fixed",), steps=3, eps=(1.0,), norm="l2")
    cell, *_ = plan.make_cells(config, ("depth",))
    assert cell.attack.random_start is False
    assert cell.attack.make("l2", 0.1, 0.05) == expected
    with pytest.raises(InputError, match="--attack=fixed needs --norm=l2, got linf"):
        cell.attack.make("linf", 0.1, 0.05)


@pytest.mark.parametrize("name", ["pgd", "mim", "mim_released", "apgd"])
def test_a_radius_of_0_needs_no_step_size(name):
    assert attacks.make(name, 0.0, steps=5).epsilon == 0
    assert attacks.make("pgd", 0.1, steps=5).step_size == 0.025


@dataclasses.dataclass(frozen=True)
class Derived(Brighter):
    """`Brighter` with its shift computed when the record is made."""

    def __post_init__(self):
        object.__setattr__(self, "shift", np.float32(self.epsilon))

    def search(self, objective, x, keys):
        return x + self.shift


@dataclasses.dataclass(frozen=True)
class Renamed(Brighter):
    """`Brighter` with a step length that the entry calls `step_size`."""

    alpha: float = 0.0

    def search(self, objective, x, keys):
        lengths = [tf.cast(number, x.dtype) for number in (self.alpha, self.epsilon)]
        return x + tf.minimum(*lengths)


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (Brighter, {}),
        (Derived, {}),
        (Renamed, {"named": {"alpha": "step_size"}, "step": 1.0}),
    ],
)
def test_a_record_of_ones_own_is_run_at_the_radii_of_the_plan(
    monkeypatch, record, fields
):
    kind = Kind(record=record, uses=frozenset({"restarts", "step_size"}), **fields)
    monkeypatch.setitem(KINDS, "mine", kind)
    config = AttackConfig(ckpt="-", attack=("mine",), eps=(0.0, 5.1, 51.0))
    cells = plan.make_cells(config, ("depth",))
    x = tf.fill((1, 4, 4, 3), 0.4)
    one_family = record is Brighter
    assert len({cell.family for cell in cells}) == (1 if one_family else 3)
    for cell in cells:
        member = dataclasses.replace(cell, place=1)
        for variant in (cell, member):
            numbers = (tf.constant(n, tf.float64) for n in variant.numbers)
            keys = tf.zeros((1, 2), tf.int64)
            images = variant.family.build()(None, x, keys, *numbers)
            np.testing.assert_allclose(images - x, cell.eps / 255, atol=1e-6)
        # Earlier results may be wrong if the record stores lengths.
        if cell.eps:
            assert cell.to_dict().get("lengths") == (None if one_family else 1)


@dataclasses.dataclass(frozen=True)
class Positive(Derived):
    """`Derived`, except that it refuses a radius of 0."""

    def __post_init__(self):
        assert self.epsilon > 0
        super().__post_init__()


@pytest.mark.parametrize("record", [Derived, Positive])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_family_agrees_on_what_a_record_makes_of_its_radius(
    monkeypatch, record, norm
):
    """Also where the radius in units of [0, 1] is 0 or 1, in either norm."""
    kind = Kind(record=record, uses=frozenset({"restarts", "step_size"}))
    monkeypatch.setitem(KINDS, "mine", kind)
    radii = (0.0, 1.0, 255.0)
    config = AttackConfig(ckpt="-", attack=("mine",), eps=radii, norm=norm)
    x = tf.zeros((1, 4, 4, 3))
    for cell in plan.make_cells(config, ("depth",)):
        assert cell.to_dict()["lengths"] == 1
        images = cell.family.build()(None, x, tf.zeros((1, 2), tf.int64), *cell.numbers)
        np.testing.assert_allclose(images, cell.numbers[0], atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Farther(Brighter):
    """An attack that leaves the ball, or the box."""

    times: float = 2.0

    def search(self, objective, x, keys):
        return x + self.times * tf.cast(self.epsilon, x.dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "bright", "norm", "said"),
    [
        (2.0, 0.4, "linf", r"--attack=mine must stay within --eps=8.*by 16; end"),
        (1.0, 0.4, "l2", r"must stay within --eps=8, but it moved an image by 110\.9"),
        (1.0, 0.99, "linf", r"must return images in \[0, 1\], got .* to 1\.02; end"),
        (1.0, 0.4, "linf", ""),
    ],
)
def test_a_sweep_ends_where_an_attack_leaves_the_ball(
    monkeypatch, times, bright, norm, said
):
    kind = Kind(record=Farther, fixed={"times": times})
    monkeypatch.setitem(KINDS, "mine", kind)
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, {"depth": keras.layers.Conv2D(1, 1)(image)})
    x = np.full((8, 8, 3), bright, np.float32)
    examples = [{"image": x, "targets": {"depth": x[..., :1]}}] * 4
    settings = {"attacks": ["mine"], "eps": [8], "norm": norm, "checks": False}
    with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
        assert mtr_tf.evaluate(model, examples, **settings).records
