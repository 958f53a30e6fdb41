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
    """The records that have these fields."""
    return [
        record
        for record in records
        if all(record.get(name) == value for name, value in fields.items())
    ]


def distinct(records: Iterable[Record], *names: str) -> list[tuple]:
    """Each combination of what the records have under these names, once, in order."""
    return list(dict.fromkeys(tuple(map(_plain, map(r.get, names))) for r in records))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def over(
    records: Sequence[Record], along: str, *names: str
) -> tuple[np.ndarray, np.ndarray]:
    """What stands under some names, along another, by seed.

    Args:
      records: One per seed and value of `along` at most; those of one run need not
        say their seed.
      along: "count" or "eps".
      *names: Such as "value" and "predicted".

    Returns:
      (x `[X]`, growing; values `[names, seeds, X]`, NaN where there is none).
    """
    x = np.array(sorted({record[along] for record in records}), float)
    seeds = seeds_of(records)
    values = np.full((len(names), len(seeds), len(x)), np.nan)
    for record in records:
        place = seeds.index(record.get("seed", 0)), np.searchsorted(x, record[along])
        for row, name in zip(values, names, strict=True):
            number = record.get(name)
            row[place] = np.nan if number is None else number
    return x, values


def seeds_of(records: Iterable[Record]) -> list[int]:
    """The seeds that there are records of, growing."""
    return sorted({record.get("seed", 0) for record in records})


def ends(records: Sequence[Record], along: str, name: str = "interval") -> np.ndarray:
    """Both ends of an interval over images, `[2, seeds, X]`, along as `over` has it."""
    flat = [
        {**record, "low": low, "high": high}
        for record in records
        for low, high in [record.get(name) or (None, None)]
    ]
    return over(flat, along, "low", "high")[1]


def mean(values: np.ndarray) -> np.ndarray:
    """Over seeds, the first axis, without NaN; NaN where there is none."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def by_seed(records: Iterable[Record], name: str = "value") -> np.ndarray:
    """One number per record, `[records]`; NaN where there is none."""
    found = [record.get(name) for record in records]
    return np.array([np.nan if value is None else value for value in found], float)


def matrix(
    records: Sequence[Record], quantity: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """(tasks, the mean over seeds of a symmetric matrix `[M, M]` of pairs of them)."""
    own = chosen(records, quantity=quantity)
    tasks = tuple(dict.fromkeys(record["tasks"][0] for record in own))
    total, count = np.zeros((2, len(tasks), len(tasks)))
    for record in own:
        if record["value"] is not None:
            i, j = (tasks.index(task) for task in record["tasks"])
            for place in {(i, j), (j, i)}:
                total[place] += record["value"]
                count[place] += 1
    return tasks, np.where(count > 0, total / np.maximum(count, 1), np.nan)
