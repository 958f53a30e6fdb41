# SPDX-License-Identifier: Apache-2.0
"""The report's tables as files: claims.json, claims.csv, results.csv."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf import files

_RESULTS = (
    "variant",
    "seed",
    "spec",
    "attack",
    "algorithm",
    "attacked",
    "norm",
    "eps",
    "task",
    "metric",
    "unit",
    "better",
    "clean",
    "attacked_value",
    "relative_vulnerability",
    "n",
)


def write_results(records: Iterable[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Writes a row per variant, seed, attack, radius, task and metric."""
    rows = [{name: record.get(name) for name in _RESULTS} for record in records]
    files.write_csv(path, rows, _RESULTS)


def write_claims(verdicts: Sequence[Any], folder: pathlib.Path) -> None:
    """Writes verdicts: all of each, one per line, as JSON; what fits a row, as CSV."""
    contents = [plain(dataclasses.asdict(verdict)) for verdict in verdicts]
    lines = ",\n".join(json.dumps(verdict, allow_nan=False) for verdict in contents)
    files.write_text(folder / "claims.json", f"[\n{lines}\n]\n")
    names = ("verdict", "effect", "low", "high", "over", "n")
    names += ("p", "p_corrected", "p_opposite")
    columns = ("id", "source", "statement", *names, "reason")
    rows = []
    for content in contents:
        claim, (low, high) = content["claim"], content["interval"] or (None, None)
        row = {name: claim.get(name) for name in columns[:3]}
        row |= {name: content.get(name) for name in (*names, "reason")}
        rows.append(row | {"low": low, "high": high})
    files.write_csv(folder / "claims.csv", rows, columns)


def plain(value: Any) -> Any:
    """A value in the types of JSON: lists for arrays, None for NaN and infinity."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
