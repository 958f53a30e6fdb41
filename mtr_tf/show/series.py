# SPDX-License-Identifier: Apache-2.0
"""Records of one run or many seeds as arrays, for plots; see docs/measures.md."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

Record = Mapping[str, Any]


def chosen(records: Iterable[Record], **fields: Any) -> list[Record]:
    """The records whose fields have these values."""
    return [
        record
        for record in records
        if all(record.get(name) == value for name, value in fields.items())
    ]


def distinct(records: Iterable[Record], *names: str) -> list[tuple]:
    """The distinct combinations of the values of these fields, in order."""
    return list(
        dict.fromkeys(tuple(map(_hashable, map(r.get, names))) for r in records)
    )


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def over(
    records: Sequence[Record], along: str, *names: str
) -> tuple[np.ndarray, np.ndarray]:
    """The values of some fields along another one, by seed.

    Args:
      records: At most one per seed and value of `along`; records of a single run may
        lack the seed.
      along: "count" or "eps".
      *names: The fields, such as "value" and "predicted".

    Returns:
      (x `[X]`, ascending; values `[names, seeds, X]`, NaN where there is none).
    """
    x = np.array(sorted({record[along] for record in records}), float)
    seeds = seeds_of(records)
    values = np.full((len(names), len(seeds), len(x)), np.nan)
    for record in records:
        index = seeds.index(record.get("seed", 0)), np.searchsorted(x, record[along])
        for row, name in zip(values, names, strict=True):
            row[index] = record.get(name)  # None becomes NaN.
    return x, values


def seeds_of(records: Iterable[Record]) -> list[int]:
    """The seeds of the records, ascending."""
    return sorted({record.get("seed", 0) for record in records})


def ends(records: Sequence[Record], along: str, name: str = "interval") -> np.ndarray:
    """Both ends of an interval over images, `[2, seeds, X]`; `along` as in `over`."""
    end_records = [
        {**record, "low": low, "high": high}
        for record in records
        for low, high in [record.get(name) or (None, None)]
    ]
    return over(end_records, along, "low", "high")[1]


def mean(values: np.ndarray) -> np.ndarray:
    """The mean over seeds, the first axis, ignoring NaN; NaN where all are."""
    valid = ~np.isnan(values)
    count = valid.sum(axis=0)
    total = np.where(valid, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def by_seed(records: Iterable[Record], name: str = "value") -> np.ndarray:
    """One number per record, `[records]`; NaN where there is none."""
    return np.array([record.get(name) for record in records], float)


def matrix(
    records: Sequence[Record], quantity: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """(tasks, symmetric matrix `[M, M]` of their pairs, the mean over seeds)."""
    pairs = chosen(records, quantity=quantity)
    tasks = tuple(dict.fromkeys(record["tasks"][0] for record in pairs))
    total, count = np.zeros((2, len(tasks), len(tasks)))
    for record in pairs:
        if record["value"] is not None:
            i, j = (tasks.index(task) for task in record["tasks"])
            for index in {(i, j), (j, i)}:
                total[index] += record["value"]
                count[index] += 1
    return tasks, np.where(count > 0, total / np.maximum(count, 1), np.nan)
