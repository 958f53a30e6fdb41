# SPDX-License-Identifier: Apache-2.0
"""Cells of a sweep, in a line."""

from __future__ import annotations

import dataclasses
from typing import Any

from mtr_tf.evaluation.plan import AttackSettings
from mtr_tf.evaluation.plan import Cell
from mtr_tf.evaluation.plan import ObjectiveSettings
from mtr_tf.evaluation.plan import Threat

RECORDS = {"threat": Threat, "objective": ObjectiveSettings, "attack": AttackSettings}


def a_cell(name: str = "pgd", tasks: tuple[str, ...] = ("seg",), **settings: Any):
    """A cell with the given fields, whatever record of it they belong to."""
    settings = {"eps": 8.0} | settings | {"name": name, "tasks": tasks}
    parts = {}
    for part, record in RECORDS.items():
        names = {field.name for field in dataclasses.fields(record)} & set(settings)
        parts[part] = record(**{field: settings.pop(field) for field in names})
    return Cell(**parts, **settings)
