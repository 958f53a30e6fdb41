# SPDX-License-Identifier: Apache-2.0
"""Checks of single settings, which attacks and objectives share.

Each raises InputError with what must hold and what was given.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.errors import is_real
from mtr_tf.errors import is_whole

# More is a slip. Loops count in 32 bits, and the random numbers of all queries are in
# memory at once.
MOST_STEPS = 10**6
MOST_QUERIES = 10**5
# Sizes of loss weights with which sums of losses, and gradients, stay in float32.
WEIGHTS = (1e-6, 1e6)


def check_number(name: str, value: object) -> None:
    """Raises InputError unless `value` is a finite real number."""
    if not (is_real(value) and math.isfinite(value)):
        raise InputError(f"{name} must be a finite number; got {value!r}.")


def check_count(name: str, value: object, most: int = MOST_STEPS) -> None:
    """Raises InputError unless `value` is a whole number from 1 to `most`."""
    if not is_whole(value) or value < 1:
        raise InputError(f"{name} must be a whole number, 1 or more; got {value!r}.")
    if value > most:
        raise InputError(
            f"{name} must be a whole number from 1 to {most}; got {value:.10g}."
        )


def check_flag(name: str, value: object) -> None:
    """Raises InputError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False; got {value!r}.")


def check_restarts(restarts: object, random_start: bool) -> None:
    """Raises InputError where all runs would be the same, starting at the image."""
    if is_whole(restarts) and restarts > 1 and not random_start:
        raise InputError(
            "Several restarts need a random start, because runs that start at the "
            f"image are all the same; got restarts={restarts} and random_start=False. "
            "Give one restart, or a random start."
        )


def check_name(kind: str, value: object, choices: Collection[str]) -> None:
    """Raises InputError unless `value` is one of `choices`."""
    if value not in choices:
        hint = did_you_mean(value, choices)
        raise InputError(
            f"{kind} must be one of {', '.join(choices)}; got {value!r}.{hint}"
        )
