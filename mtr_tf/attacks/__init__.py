# SPDX-License-Identifier: Apache-2.0
"""Attacks: frozen records of numbers, called as `attack(objective, x, seed) -> x_adv`.

    objective = attacks.objective(model, targets, masks, tasks=("seg",))
    attack = attacks.PGD(epsilon=8 / 255, step_size=2 / 255, steps=20)
    x_adv = attack(objective, images, seed=0)

An attack never sees a model, a label, a mask or a device: those are the objective's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mtr_tf.attacks.apgd import APGD
from mtr_tf.attacks.attack_losses import SURROGATES
from mtr_tf.attacks.balance import BALANCES
from mtr_tf.attacks.base import Attack
from mtr_tf.attacks.base import simple
from mtr_tf.attacks.baselines import Corner
from mtr_tf.attacks.baselines import Noise
from mtr_tf.attacks.ensemble import SEA
from mtr_tf.attacks.ensemble import Worst
from mtr_tf.attacks.judging import JUDGES
from mtr_tf.attacks.momentum import MIM
from mtr_tf.attacks.objectives import TaskObjective
from mtr_tf.attacks.objectives import objective
from mtr_tf.attacks.output_mask import block
from mtr_tf.attacks.output_mask import random_pixels
from mtr_tf.attacks.pgd import FGSM
from mtr_tf.attacks.pgd import PGD
from mtr_tf.attacks.square import Square
from mtr_tf.attacks.threat import NORMS
from mtr_tf.attacks.threat import fold_in

__all__ = [
    "APGD",
    "ATTACKS",
    "BALANCES",
    "FGSM",
    "JUDGES",
    "MIM",
    "NORMS",
    "PGD",
    "SEA",
    "SURROGATES",
    "Attack",
    "Corner",
    "Noise",
    "Square",
    "TaskObjective",
    "Worst",
    "block",
    "fold_in",
    "make",
    "objective",
    "random_pixels",
    "simple",
]


def _built(record: type[Attack], epsilon: float | tf.Tensor, **settings: Any) -> Attack:
    """The record with those settings that it has."""
    names = {field.name for field in dataclasses.fields(record)}
    known = {name: value for name, value in settings.items() if name in names}
    return record(epsilon, **known)


def _square(epsilon: float | tf.Tensor, steps: int, **settings: Any) -> Square:
    return _built(Square, epsilon, queries=steps, **settings)


def _floor(record: type[Attack], epsilon, restarts: int = 1, **settings) -> Attack:
    return _built(record, epsilon, draws=restarts, **settings)


# For the command line: (epsilon, **settings) -> attack, lengths in pixel units of
# [0, 1]; of step_size, steps, norm, restarts, random_start and radii each takes what
# applies. Square's queries are steps, the draws of noise restarts.
ATTACKS: dict[str, Callable[..., Attack]] = {
    "apgd": functools.partial(_built, APGD),
    "corner": functools.partial(_floor, Corner),
    "fgsm": functools.partial(_built, FGSM),
    "mim": functools.partial(_built, MIM),
    "mim_released": functools.partial(
        _built, MIM, decay=0.5, normalize=False, random_start=True
    ),
    "noise": functools.partial(_floor, Noise),
    "pgd": functools.partial(_built, PGD),
    "sea": functools.partial(_built, SEA),
    "square": _square,
}


def make(name: str, epsilon: float | tf.Tensor, **settings: Any) -> Attack:
    """Returns the attack of that name in ATTACKS; see there."""
    return ATTACKS[name](epsilon, **settings)
