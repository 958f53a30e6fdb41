# SPDX-License-Identifier: Apache-2.0
"""The one attack of a sweep that the checks of `trust` look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mtr_tf.evaluation.plan import Cell

_STEPS = 20  # Where the attack itself takes no steps.


def probe(cells: Sequence[Cell]) -> Cell | None:
    """The white-box attack that is looked at: PGD with the settings of the sweep.

    Its radius is the largest, its group the first of that radius; None where there is
    no radius but 0.
    """
    cell = max(cells, key=lambda cell: cell.eps)
    if not cell.eps:
        return None
    stepping = cell.attack not in ("fgsm", "square", "noise", "corner")
    return dataclasses.replace(
        cell,
        attack="pgd",
        step_size=cell.step_size if cell.attack in ("pgd", "mim") else cell.eps / 4,
        steps=cell.steps if stepping else _STEPS,
        restarts=1,
        random_start=True,
        ensemble=(),
        queries=0,
        scale=(),
    )
