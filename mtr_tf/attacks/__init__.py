# SPDX-License-Identifier: Apache-2.0
"""Attacks: frozen records of numbers, called as `attack(objective, x, seed) -> x_adv`.

    objective = attacks.objective(model, targets, masks, tasks=("seg",))
    attack = attacks.PGD(epsilon=8 / 255, step_size=2 / 255, steps=20)
    x_adv = attack(objective, images, seed=0)

An attack never sees a model, a label, a mask or a device: these belong to the
objective. `KINDS` is the table of attacks that have a name. TensorFlow is imported when
one of the other names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING
from typing import Any

from mtr_tf.attacks.kinds import KINDS
from mtr_tf.attacks.kinds import make

if TYPE_CHECKING:
    from mtr_tf.attacks.apgd import APGD as APGD
    from mtr_tf.attacks.attack_losses import ATTACK_LOSSES as ATTACK_LOSSES
    from mtr_tf.attacks.balance import BALANCES as BALANCES
    from mtr_tf.attacks.base import Attack as Attack
    from mtr_tf.attacks.base import simple as simple
    from mtr_tf.attacks.baselines import Corner as Corner
    from mtr_tf.attacks.baselines import Noise as Noise
    from mtr_tf.attacks.channels import on_channels as on_channels
    from mtr_tf.attacks.ensemble import SEA as SEA
    from mtr_tf.attacks.ensemble import Worst as Worst
    from mtr_tf.attacks.judging import JUDGES as JUDGES
    from mtr_tf.attacks.momentum import MIM as MIM
    from mtr_tf.attacks.objectives import TaskObjective as TaskObjective
    from mtr_tf.attacks.objectives import objective as objective
    from mtr_tf.attacks.output_mask import block as block
    from mtr_tf.attacks.output_mask import random_pixels as random_pixels
    from mtr_tf.attacks.pgd import FGSM as FGSM
    from mtr_tf.attacks.pgd import PGD as PGD
    from mtr_tf.attacks.square import Square as Square
    from mtr_tf.attacks.threat import NORMS as NORMS
    from mtr_tf.attacks.threat import fold_in as fold_in

# The module of each public name: the records of the table, and what goes with them.
_MODULES = {
    "ATTACK_LOSSES": "attack_losses",
    "Attack": "base",
    "BALANCES": "balance",
    "JUDGES": "judging",
    "NORMS": "threat",
    "TaskObjective": "objectives",
    "block": "output_mask",
    "fold_in": "threat",
    "objective": "objectives",
    "on_channels": "channels",
    "random_pixels": "output_mask",
    "simple": "base",
} | {
    name: module.rpartition(".")[2]
    for kind in KINDS.values()
    if not kind.for_comparison
    for module, name in [kind.place]
}

# pyrefly: ignore[unresolvable-dunder-all]  (names of attacks are read off the table)
__all__ = ["KINDS", "make", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    """Returns a public name, imported from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"mtr_tf.attacks.{_MODULES[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
