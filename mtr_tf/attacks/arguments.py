# SPDX-License-Identifier: Apache-2.0
"""The arguments of an objective, checked: names, weights, and losses per task."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from collections.abc import Mapping

from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import checks
from mtr_tf.attacks.attack_losses import ATTACK_LOSSES
from mtr_tf.errors import InputError


def weights(
    given: Mapping[str, float] | None, names: tuple[str, ...]
) -> tuple[float, ...]:
    """Returns a weight per attacked task, checked; () where none is given."""
    if not given:
        return ()
    found = dict(zip(tasks_lib.resolve(given), given.values(), strict=True))
    for name, weight in found.items():
        if name not in names:
            raise InputError(
                f"Weights are for attacked tasks, {', '.join(map(repr, names))}; "
                f"got one for {name!r}."
            )
        real = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
        if not real or not 0 <= weight < float("inf"):
            raise InputError(
                f"Weights are finite numbers from 0, got {weight!r} for {name!r}."
            )
    if not any(found.get(name, 1) for name in names):
        raise InputError("At least one attacked task's weight must be above 0.")
    return tuple(float(found.get(name, 1)) for name in names)


def attack_losses(
    given: Iterable[str] | str, names: tuple[str, ...]
) -> tuple[str | None, ...]:
    """Returns what each attacked task raises, checked; () where each its own loss."""
    given = given.split(",") if isinstance(given, str) else given
    chosen: dict[str, str] = {}
    for loss in given:
        checks.check_name("A loss", loss, ATTACK_LOSSES)
        fitting = [n for n in names if ATTACK_LOSSES[loss].fits(tasks_lib.TASKS[n])]
        if not fitting:
            raise InputError(
                f"Each loss must fit an attacked task, but {loss!r} fits none of "
                f"{', '.join(map(repr, names))}; leave it out."
            )
        for name in fitting:
            if name in chosen:
                raise InputError(
                    f"One loss at most may fit a task, but {chosen[name]!r} and "
                    f"{loss!r} both fit {name!r}; choose one."
                )
            chosen[name] = loss
    return tuple(chosen.get(name) for name in names) if chosen else ()
