# SPDX-License-Identifier: Apache-2.0
"""The records of measures as files, and as TensorBoard shows them."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import matplotlib.image
import numpy as np
import tensorflow as tf

from mtr_tf import files
from mtr_tf.measures.records import Record
from mtr_tf.show import measure_plots
from mtr_tf.show import tables

_MARK = ".mtr_tf_measures"  # Ends the names of event files that are ours to remove.


def write(records: Sequence[Record], tasks: Sequence[str], folder: pathlib.Path) -> str:
    """Writes measures.json, .csv, plots and TensorBoard's files; returns a table."""
    files.write_json(folder / "measures.json", list(records))
    files.write_csv(folder / "measures.csv", records)
    plots = measure_plots.save(records, tasks, folder)
    _write_tensorboard(records, plots, folder / "measures")
    return "\n".join(
        [
            tables.measures(records),
            "",
            f"measures: {folder / 'measures.json'} and .csv",
            f"plots:    {', '.join(map(str, plots))}",
        ]
    )


def _write_tensorboard(
    records: Sequence[Record], plots: Sequence[pathlib.Path], folder: pathlib.Path
) -> None:
    """Values over counts (a thousandth of eps for first_order), and the plots."""
    for file in folder.glob(f"events.out.tfevents.*{_MARK}"):
        file.unlink()
    writer = tf.summary.create_file_writer(str(folder), filename_suffix=_MARK)
    with writer.as_default():
        for record in records:
            if record["value"] is not None and "count" in record:
                name, step = _tag_and_step(record)
                if name:
                    tf.summary.scalar(name, record["value"], step)
        for path in plots:
            picture = np.rint(255 * matplotlib.image.imread(path)[..., :3])
            tf.summary.image(path.stem, picture.astype(np.uint8)[np.newaxis], 0)
    writer.close()


def _tag_and_step(record: Record) -> tuple[str, int]:
    measure, task = f"measure_{record['measure']}", "+".join(record.get("tasks", ()))
    if record["quantity"] == "norm_by_size":
        tag = f"{measure}/{record['norm']}_{record['normalisation']}"
        return tag, record["count"]
    if record["quantity"] == "gradient_norm":
        return f"{measure}/{task}_gradient_{record['norm']}", record["count"]
    if record["quantity"] == "attacked_pixels":
        return f"{measure}/{task}_attacked_{record['metric']}", record["count"]
    if record["quantity"] == "rise":
        return f"{measure}/{task}", round(1000 * record["eps"])
    return "", 0
