# SPDX-License-Identifier: Apache-2.0
"""Attacks: frozen records of numbers, called as `attack(objective, x, seed) -> x_adv`.

    objective = attacks.objective(model, targets, masks, tasks=("seg",))
    attack = attacks.PGD(epsilon=8 / 255, step_size=2 / 255, steps=20)
    x_adv = attack(objective, images, seed=0)

An attack never sees a model, a label, a mask or a device: those are the objective's.
`KINDS` is the table of those that have a name. TensorFlow is imported with the first of
the other names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING
from typing import Any

from mtr_tf.attacks.kinds import KINDS
from mtr_tf.attacks.kinds import make

if TYPE_CHECKING:
    from mtr_tf.attacks.apgd import APGD
    from mtr_tf.attacks.attack_losses import ATTACK_LOSSES
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

_MODULES = {
    "APGD": "apgd",
    "ATTACK_LOSSES": "attack_losses",
    "Attack": "base",
    "BALANCES": "balance",
    "Corner": "baselines",
    "FGSM": "pgd",
    "JUDGES": "judging",
    "MIM": "momentum",
    "NORMS": "threat",
    "Noise": "baselines",
    "PGD": "pgd",
    "SEA": "ensemble",
    "Square": "square",
    "TaskObjective": "objectives",
    "Worst": "ensemble",
    "block": "output_mask",
    "fold_in": "threat",
    "objective": "objectives",
    "random_pixels": "output_mask",
    "simple": "base",
}

__all__ = [
    "APGD",
    "ATTACK_LOSSES",
    "BALANCES",
    "FGSM",
    "JUDGES",
    "KINDS",
    "MIM",
    "NORMS",
    "PGD",
    "SEA",
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


def __getattr__(name: str) -> Any:
    """What is asked for, from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"mtr_tf.attacks.{_MODULES[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
