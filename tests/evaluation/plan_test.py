# SPDX-License-Identifier: Apache-2.0
"""What a plan of attacks refuses, and the keys that identify its finished cells."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest

from mtr_tf.attacks import kinds
from mtr_tf.attacks.momentum import MIM
from mtr_tf.attacks.pgd import PGD
from mtr_tf.config.attack import AttackConfig
from mtr_tf.errors import InputError
from mtr_tf.evaluation import plan
from mtr_tf.evaluation import results
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet

PARTS = Task("parts", classes=("wood", "car", "glass"))
SCENE = Task("scene", classes=("in", "out"), places=0)
KNOWN = TaskSet((TASKS["seg"], TASKS["depth"], PARTS))
ROADS = ("road", "car", "sky")


def cells(tasks=KNOWN, **fields):
    return plan.make_cells(AttackConfig(ckpt="x", **fields), tasks, ROADS)


def test_classes_are_those_of_the_attacked_task():
    (seg,) = cells(attack_tasks=("seg",), attack_classes=("sky",), eps=(1.0,))
    (parts,) = cells(attack_tasks=("parts",), attack_classes=("glass", "wood"))[:1]
    assert seg.objective.classes == (2,)
    assert parts.objective.classes == (2, 0)
    with pytest.raises(InputError, match="'sky', but the classes of parts are wood"):
        cells(attack_tasks=("parts",), attack_classes=("sky",))
    with pytest.raises(InputError, match="those of seg and parts differ.*one by one"):
        cells(attack_tasks=("seg+parts",), attack_classes=("car",))
    pair = cells(attack_tasks=("seg", "parts"), attack_classes=("car",), eps=(1.0,))
    assert [cell.objective.classes for cell in pair] == [(1,), (1,)]


def test_a_weight_of_a_task_that_is_not_attacked_is_refused():
    settings = {"attack_tasks": ("seg+depth",), "attack_weights": ("parts:5",)}
    with pytest.raises(InputError, match="names parts, which is not attacked"):
        cells(**settings)
    groups = ("seg", "depth+parts")
    assert cells(**settings | {"attack_tasks": groups})


@pytest.mark.parametrize(
    ("groups", "weight", "refused"),
    [
        (("depth",), "depth:-1", True),
        (("each",), "depth:0", True),
        (("depth", "seg+parts"), "depth:-1", True),
        (("each", "all"), "depth:-1", False),
        (("depth",), "depth:2", False),
    ],
)
def test_a_task_attacked_by_itself_has_no_weight_to_be_made_better(
    groups, weight, refused
):
    settings = {"attack_tasks": groups, "attack_weights": (weight,)}
    if not refused:
        assert cells(**settings)
        return
    with pytest.raises(InputError, match="depth is attacked only by itself"):
        cells(**settings)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"balance": ("dgba_paper",)}, "those of the clean image, and .* depth is 0"),
        ({"balance": ("worst",)}, "those of the clean image"),
        ({"balance": ("wgd",), "random_start": False}, "those of the start, and"),
        ({"balance": ("wgd",)}, ""),
        ({"balance": ("wgd",), "attack": ("worst",)}, ""),
        ({"balance": ("wgd",), "attack": ("fgsm",)}, "those of the start, and"),
        (
            {"balance": ("wgd",), "attack": ("worst",), "ensemble": ("fgsm", "mim")},
            "those of the start, and",
        ),
        (
            {"balance": ("wgd",), "attack": ("worst",), "ensemble": ("pgd", "square")},
            "",
        ),
        # Square starts at random, the released code at a corner, whatever is asked.
        ({"balance": ("wgd",), "attack": ("square",), "random_start": False}, ""),
        ({"balance": ("wgd",), "attack": ("pgd_released_start",)}, ""),
        (
            {
                "balance": ("wgd",),
                "attack": ("worst",),
                "ensemble": ("square", "noise"),
                "random_start": False,
            },
            "",
        ),
        ({"balance": ("worst",), "attack": ("square",)}, "those of the clean image"),
        ({"balance": ("worst",), "attack": ("square",), "judge": "harm"}, ""),
        ({"balance": ("dgba",)}, ""),
        ({"balance": ("worst",), "attack_tasks": ("seg+parts",)}, ""),
        ({"balance": ("worst",), "attack_tasks": ("depth",)}, ""),
        ({"balance": ("worst",), "targeted": True}, ""),  # To another image's outputs.
    ],
)
def test_own_targets_have_no_loss_to_compare_with(fields, said):
    settings = {"attack_tasks": ("seg+depth",), "targets": "own"} | fields
    if not said:
        assert cells(**settings)
        return
    with pytest.raises(InputError, match=said):
        cells(**settings)
    assert cells(**settings | {"targets": "data"})


def test_joint_harm_is_known_by_how_it_is_joined():
    """Older cells, which gave no say to tasks that an image lacks, are done again."""
    (joint,) = cells(attack_tasks=("seg+depth",), judge="harm", eps=(1.0,))
    (loss,) = cells(attack_tasks=("seg+depth",), judge="loss", eps=(1.0,))
    (single,) = cells(attack_tasks=("seg",), judge="harm", eps=(1.0,))
    values = [cell.to_dict().get("joint_harm") for cell in (joint, loss, single)]
    assert values == [2, None, None]


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"attack_tasks": ("scene+depth",)}, 2),
        ({"attack_tasks": ("seg+depth",), "attack_classes": ("sky",)}, 2),
        ({"attack_tasks": ("seg+depth",)}, None),  # No map has a loss of exactly 0.
        ({"attack_tasks": ("scene+depth",), "balance": ("sum",)}, None),
        ({"attack_tasks": ("scene",)}, None),
        ({"attack_tasks": ("seg+depth",), "targeted": True}, 3),
        ({"attack_tasks": ("seg",), "targeted": True}, None),
        ({"attack_tasks": ("seg+depth",), "targeted": True, "judge": "harm"}, None),
        ({"attack_tasks": ("scene+depth",), "targeted": True, "judge": "harm"}, 2),
    ],
)
def test_losses_that_may_be_0_are_known_by_what_they_count_as(fields, known):
    """Older cells, which never climbed such a task, are done again."""
    tasks = TaskSet((TASKS["seg"], TASKS["depth"], SCENE))
    (cell,) = cells(tasks, **{"balance": ("worst",), "eps": (1.0,)} | fields)
    assert cell.to_dict().get("losses_of_0") == known


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"attack_tasks": ("scene",)}, 1),
        ({"attack_tasks": ("scene",), "judge": "loss"}, None),
        ({"attack_tasks": ("scene",), "judge": "auto"}, None),
        ({"attack_tasks": ("scene",), "judge": "auto", "attack_loss": ("margin",)}, 1),
        ({"attack_tasks": ("scene",), "judge": "auto", "attack": ("worst",)}, 1),
        ({"attack_tasks": ("scene+depth",)}, None),
        ({"attack_tasks": ("seg",)}, None),
        ({"attack_tasks": ("seg",), "attack_pixels": 1}, 1),
        ({"attack_tasks": ("seg",), "attack_classes": ("sky",)}, 1),
        ({"attack_tasks": ("depth",), "attack_pixels": 1}, None),
        ({"attack_tasks": ("scene+seg",), "attack_weights": ("seg:0.5",)}, None),
    ],
)
def test_ties_of_harm_are_known_by_how_they_are_broken(fields, known):
    """Older cells, whose attacks could not see which way to go, are done again."""
    tasks = TaskSet((TASKS["seg"], TASKS["depth"], SCENE))
    (cell,) = cells(tasks, **{"judge": "harm", "eps": (1.0,)} | fields)
    assert cell.to_dict().get("ties") == known
    assert [m.to_dict().get("ties") for m in cell.members] == [known] * len(
        cell.members
    )


def own_attack(base, **body):
    """A subclass that always has the same name, whatever its base and body."""
    return type("Mine", (base,), {"__module__": "mine", **body})


def note(self):
    return 1


def other_note(self):
    return 2


def test_an_attack_of_ones_own_is_known_by_its_code(monkeypatch):
    subclasses = [
        own_attack(own_attack(PGD, note=method)) for method in (note, other_note)
    ]
    variants = [
        (own_attack(PGD), {}),
        (own_attack(PGD), {"keep": "last"}),
        (own_attack(MIM), {}),
        (own_attack(PGD, note=note), {}),
        (own_attack(PGD, note=other_note), {}),
        (own_attack(PGD, note=staticmethod(note)), {}),
        (own_attack(PGD, note=property(other_note)), {}),
        (own_attack(PGD, RATE=1), {}),
        (own_attack(PGD, RATE=2), {}),
        *((subclass, {}) for subclass in subclasses),
    ]

    def code_of(record, fixed):
        kind = dataclasses.replace(kinds.KINDS["pgd"], record=record, fixed=fixed)
        monkeypatch.setitem(kinds.KINDS, "mine", kind)
        (cell,) = cells(attack=("mine",), attack_tasks=("seg",), eps=(1.0,))
        return cell.to_dict()["code"]

    codes = [code_of(*variant) for variant in variants]
    assert codes == [code_of(*variant) for variant in variants]
    assert len(set(codes[:5] + codes[7:9])) == 7
    assert len({codes[0], codes[5], codes[6]}) == 3  # Code inside of wrappers counts.
    assert codes[9] != codes[10]
    (pgd_cell,) = cells(attack=("pgd",), attack_tasks=("seg",), eps=(1.0,))
    assert "code" not in pgd_cell.to_dict()


@pytest.mark.parametrize(
    ("fields", "warned"),
    [
        ({"balance": ("dgba",)}, True),
        ({"balance": ("normalized",)}, True),
        ({"balance": ("sum",)}, False),
        ({"balance": ("dgba",), "attack_tasks": ("aim",)}, False),
        ({"balance": ("dgba",), "attack_tasks": ("seg",)}, False),
    ],
)
def test_a_negative_loss_that_is_divided_is_said(fields, warned):
    aim = Task(
        "aim", kind="directions", loss=lambda target, output, mask: mask[:, 0, 0]
    )
    tasks = TaskSet((TASKS["seg"], aim))
    settings = {"attack_tasks": ("seg+aim",), "eps": (1.0,)} | fields
    clean = types.SimpleNamespace(
        scores={"aim": {}}, rows={"aim": {"loss": np.array([[-0.5, 1], [0.2, 1]])}}
    )
    warnings = results.negative_losses(clean, cells(tasks, **settings))
    assert len(warnings) == warned
    if warned:
        assert "the loss of aim is below 0 on clean images, but" in warnings[0]
    clean.rows["aim"]["loss"][:, 0] = 0.1
    assert not results.negative_losses(clean, cells(tasks, **settings))


def test_a_negative_loss_that_no_member_of_an_ensemble_raises_is_not_said():
    """SEA has losses of its own for classes."""
    seg = Task("seg", classes=ROADS, loss=lambda target, output, mask: -mask[:, 0, 0])
    tasks, rows = TaskSet((seg, TASKS["depth"])), {"loss": np.array([[-0.5, 1]])}
    clean = types.SimpleNamespace(scores={"seg": {}}, rows={"seg": rows})
    settings = {"attack_tasks": ("seg+depth",), "balance": ("dgba",), "eps": (1.0,)}
    for attack, warned in (("sea", False), ("pgd", True)):
        attack_cells = cells(tasks, attack=(attack,), **settings)
        assert bool(results.negative_losses(clean, attack_cells)) == warned


@pytest.mark.parametrize(
    ("fields", "warned"),
    [
        ({"judge": "harm"}, True),
        ({"judge": "harm", "attack_tasks": ("depth",)}, False),
        ({"judge": "loss"}, False),
        ({"judge": "loss", "balance": ("dgba",)}, False),
    ],
)
def test_a_negative_error_whose_logarithm_is_taken_is_said(fields, warned):
    """Minus a PSNR, which would have the same part in joint harm at every point."""

    def minus_psnr(target, output, mask):
        return -mask[:, 0, 0]

    minus_psnr.better = "lower"
    tasks = TaskSet((TASKS["seg"], Task("depth", metrics=(minus_psnr,))))
    rows = {"minus_psnr": np.array([[-30.0, 1]]), "loss": np.array([[0.1, 1]])}
    clean = types.SimpleNamespace(scores={"depth": {}}, rows={"depth": rows})
    settings = {"attack_tasks": ("seg+depth",), "eps": (1.0,)} | fields
    warnings = results.negative_losses(clean, cells(tasks, **settings))
    assert len(warnings) == warned
    if warned:
        assert "the minus_psnr of depth is below 0 on clean images" in warnings[0]
        assert "give it a first metric that is 0 at best" in warnings[0]


@pytest.mark.parametrize(
    ("fields", "packed", "known"),
    [
        ({"balance": ("normalized",), "attack_channels": (0, 1)}, False, 1),
        ({"balance": ("normalized",)}, True, 1),
        ({"balance": ("normalized",)}, False, None),
        ({"balance": ("normalized",), "attack_tasks": ("seg",)}, True, None),
        ({"balance": ("normalized",), "attack": ("square",)}, True, None),
        ({"balance": ("sign_sum",), "attack_channels": (0, 1)}, True, None),
        ({"balance": ("sum",), "attack_channels": (0, 1)}, True, None),
    ],
)
def test_norms_of_a_part_of_the_images_are_known_by_it(fields, packed, known):
    """Older cells, which divided by the norms of all gradients, are done again."""
    config = AttackConfig(
        ckpt="x", **{"attack_tasks": ("seg+depth",), "eps": (1.0,)} | fields
    )
    (cell,) = plan.make_cells(config, KNOWN, ROADS, packed=packed)
    assert cell.to_dict().get("norms_of_movable") == known
    assert "packed" not in cell.to_dict()
