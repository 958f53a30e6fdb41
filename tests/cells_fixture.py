# SPDX-License-Identifier: Apache-2.0
"""Makes cells of a sweep, and a data set, in one line."""

from __future__ import annotations

import dataclasses
from typing import Any

from mtr_tf.data.source import DatasetInfo
from mtr_tf.evaluation.plan import AttackSettings
from mtr_tf.evaluation.plan import Cell
from mtr_tf.evaluation.plan import ObjectiveSettings
from mtr_tf.evaluation.plan import Threat

RECORDS = {"threat": Threat, "objective": ObjectiveSettings, "attack": AttackSettings}


def depth_info(count: int, size: int) -> DatasetInfo:
    """A data set of `count` square images with depths in [0, 1]."""
    return DatasetInfo(
        name="none",
        image_shape=(size, size, 3),
        classes=(),
        colors=(),
        tasks=("depth",),
        splits={"validation": count},
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        ranges={"depth": (0.0, 1.0)},
    )


def a_cell(name: str = "pgd", tasks: tuple[str, ...] = ("seg",), **settings: Any):
    """A cell with the given fields, whichever of its records they belong to."""
    settings = {"eps": 8.0} | settings | {"name": name, "tasks": tasks}
    parts = {}
    for part, record in RECORDS.items():
        names = {field.name for field in dataclasses.fields(record)} & set(settings)
        parts[part] = record(**{field: settings.pop(field) for field in names})
    return Cell(**parts, **settings)
