# SPDX-License-Identifier: Apache-2.0
"""The records of measures as files, and as TensorBoard shows them."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Sequence

from mtr_tf import files
from mtr_tf.measures.records import Record
from mtr_tf.show import tables
from mtr_tf.show import tensorboard
from mtr_tf.show import theory


def write(records: Sequence[Record], folder: pathlib.Path) -> str:
    """Writes measures.json, .csv, plots and TensorBoard's files; returns a table."""
    files.write_json(folder / "measures.json", list(records))
    files.write_csv(folder / "measures.csv", records)
    plots = theory.save_run(records, folder)
    tensorboard.write_measures(records, plots, folder / "measures")
    return "\n".join(
        [
            tables.measures(records),
            "",
            f"measures: {folder / 'measures.json'} and .csv",
            f"plots:    {', '.join(map(str, plots))}",
            f"watch it: tensorboard --logdir={shlex.quote(str(folder))}",
        ]
    )
