# SPDX-License-Identifier: Apache-2.0
"""The records of measures as files, as TensorBoard shows them, and as a short table."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Sequence
from typing import Any

from mtr_tf import files
from mtr_tf.evaluation.results import short
from mtr_tf.measures.records import Record
from mtr_tf.show import tensorboard
from mtr_tf.show import theory


def write(records: Sequence[Record], tasks: Sequence[str], folder: pathlib.Path) -> str:
    """Writes measures.json, .csv, plots and TensorBoard's files; returns a table."""
    files.write_json(folder / "measures.json", list(records))
    rows = [_flat(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    path = folder / "measures.csv"
    with files.whole_file(path) as beside, open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)
    plots = theory.save_run(records, folder)
    tensorboard.write_measures(records, plots, folder / "measures")
    return "\n".join(
        [
            *table(records),
            "",
            f"measures: {folder / 'measures.json'} and .csv",
            f"plots:    {', '.join(map(str, plots))}",
        ]
    )


def _flat(record: Record) -> dict[str, Any]:
    """A record without lists: names joined by `+`, intervals as two columns."""
    flat = {}
    for name, value in record.items():
        if name.endswith("interval"):
            flat[f"{name}_low"], flat[f"{name}_high"] = value
        else:
            listed = isinstance(value, list)
            flat[name] = "+".join(map(str, value)) if listed else value
    return flat


# The table.


def table(records: Sequence[Record]) -> list[str]:
    """Lines to read: what was measured beside what the theory says."""
    lines = []
    for part in (_tasks, _pixel_gradients, _pixel_attacks, _first_order):
        found = part(records)
        lines += ["", *found] if lines and found else found
    return lines


def _chosen(records: Sequence[Record], *quantities: str) -> list[Record]:
    return [record for record in records if record["quantity"] in quantities]


def _tasks(records: Sequence[Record]) -> list[str]:
    sizes = _chosen(records, "norm_by_size")
    if not sizes:
        return []
    counts = sorted({record["count"] for record in sizes})
    rows = [["norm", "gradients", *(f"k={k}" for k in counts), "slope", "predicted"]]
    kinds = dict.fromkeys((r["norm"], r["normalisation"]) for r in sizes)
    for norm, how in kinds:
        own = [r for r in sizes if (r["norm"], r["normalisation"]) == (norm, how)]
        (slope,) = (
            r
            for r in _chosen(records, "slope")
            if r["measure"] == "tasks"
            and (r["norm"], r["normalisation"]) == (norm, how)
        )
        ratios = [short(_over(r["value"], own[0]["value"])) for r in own]
        ends = (short(slope["value"]), short(slope["predicted"]))
        rows.append([norm, how, *ratios, *ends])
    means = {
        r["quantity"]: short(r["value"])
        for r in _chosen(records, "mean_cosine", "mean_abs_cosine")
    }
    return [
        "norm of the mean gradient of k tasks, over that of one; log-log slope:",
        *_aligned(rows),
        f"cosine of two tasks' gradients: mean {means['mean_cosine']}, "
        f"mean magnitude {means['mean_abs_cosine']}",
    ]


def _pixel_gradients(records: Sequence[Record]) -> list[str]:
    found = [r for r in _chosen(records, "gradient_norm") if r["norm"] == "l2"]
    rows = _by_count(found, lambda r: short(r["relative"]))
    title = "l2 norm of the gradient of the mean loss over n output pixels, over one's:"
    return [title, *_aligned(rows)] if rows else []


def _pixel_attacks(records: Sequence[Record]) -> list[str]:
    found = [r for r in _chosen(records, "attacked_pixels") if r["metric"] != "loss"]
    rows = _by_count(found, lambda r: f"{short(r['value'])}/{short(r['clean'])}")
    if not rows:
        return []
    title = f"PGD eps {found[0]['eps']:g} on n output pixels, there attacked / clean:"
    return [title, *_aligned(rows)]


def _by_count(records: Sequence[Record], text) -> list[list[str]]:
    """A row per measure and task, a column per number of pixels."""
    if not records:
        return []
    counts = sorted({record["count"] for record in records})
    rows = [["", "task", "metric", *(f"n={n}" for n in counts)]]
    for measure, task in dict.fromkeys((r["measure"], *r["tasks"]) for r in records):
        own = {
            r["count"]: r
            for r in records
            if (r["measure"], *r["tasks"]) == (measure, task)
        }
        metric = next(iter(own.values())).get("metric", "")
        texts = [text(own[n]) if n in own else "" for n in counts]
        rows.append([measure, task, metric, *texts])
    return rows


def _first_order(records: Sequence[Record]) -> list[str]:
    found = _chosen(records, "rise")
    if not found:
        return []
    radii = sorted({record["eps"] for record in found})
    rows = [["attacked", *(f"eps={eps:g}" for eps in radii)]]
    for group in dict.fromkeys("+".join(r["tasks"]) for r in found):
        own = {r["eps"]: r for r in found if "+".join(r["tasks"]) == group}
        many = group.count("+") > 2
        name = f"mean of {group.count('+') + 1} tasks" if many else group
        rows.append([name, *(short(own[eps]["ratio"]) for eps in radii)])
    norm = found[0]["norm"]
    return [
        f"rise of the loss under PGD ({norm}), over eps times the dual norm:",
        *_aligned(rows),
    ]


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) for text, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
