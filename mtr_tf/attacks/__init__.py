# SPDX-License-Identifier: Apache-2.0
"""Attacks: frozen records of numbers, called as `attack(objective, x, seed) -> x_adv`.

    objective = attacks.objective(model, targets, masks, tasks=("seg",))
    attack = attacks.PGD(epsilon=8 / 255, step_size=2 / 255, steps=20)
    x_adv = attack(objective, images, seed=0)

An attack never sees a model, a label, a mask or a device: those are the objective's.
"""

from __future__ import annotations

from collections.abc import Callable

from mtr_tf.attacks.objectives import BALANCES
from mtr_tf.attacks.objectives import TaskObjective
from mtr_tf.attacks.objectives import objective
from mtr_tf.attacks.pgd import FGSM
from mtr_tf.attacks.pgd import PGD
from mtr_tf.attacks.threat import NORMS
from mtr_tf.attacks.threat import fold_in

__all__ = [
    "ATTACKS",
    "BALANCES",
    "FGSM",
    "NORMS",
    "PGD",
    "TaskObjective",
    "fold_in",
    "objective",
]


def _fgsm(epsilon, step_size, steps, norm="linf", restarts=1) -> FGSM:
    """FGSM's one step has the radius's length: the other settings do not apply."""
    del step_size, steps, restarts
    return FGSM(epsilon, norm)


def _pgd(epsilon, step_size, steps, norm="linf", restarts=1) -> PGD:
    return PGD(epsilon, step_size, steps, norm, restarts=restarts)


# For the command line: (epsilon, step_size, steps, norm, restarts) -> attack, lengths
# in pixel units of [0, 1]. What applied can be read from the record that is returned.
ATTACKS: dict[str, Callable[..., FGSM | PGD]] = {"fgsm": _fgsm, "pgd": _pgd}
