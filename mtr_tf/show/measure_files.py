# SPDX-License-Identifier: Apache-2.0
"""The records of measures as files, and as TensorBoard shows them."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mtr_tf import files
from mtr_tf.measures.records import Record
from mtr_tf.runs import store
from mtr_tf.show import tables
from mtr_tf.show import tensorboard
from mtr_tf.show import theory


def write(
    records: Sequence[Record],
    folder: pathlib.Path,
    measures: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    """Writes measures.json, .csv, plots and TensorBoard's files; returns a table.

    Args:
      records: Of the measures; the table is of these.
      folder: Where to. Records that are there of other measures stay, unless they
        depend on something else.
      measures: Names of those that the records are of.
      facts: What records depend on beside the measure.
    """
    about = folder / "measures" / "facts.json"
    kept: list[Record] = []
    if store.read_kept(about).get("facts") == store.as_json(facts):
        kept = _others(folder / "measures.json", measures)
    about.unlink(missing_ok=True)  # Until all that it speaks for is there.
    written = [*kept, *records]
    files.write_json(folder / "measures.json", written)
    files.write_csv(folder / "measures.csv", written)
    plots = theory.save_run(written, folder)
    tensorboard.write_measures(written, plots, folder / "measures")
    store.write_file(about, {"facts": facts})
    return "\n".join(
        [
            tables.measures(records),
            "",
            f"measures: {folder / 'measures.json'} and .csv",
            f"plots:    {', '.join(map(str, plots))}",
            f"watch it: tensorboard --logdir={shlex.quote(str(folder))}",
        ]
    )


def _others(path: pathlib.Path, measures: Sequence[str]) -> list[Record]:
    """The records in a file of other measures; none where it is damaged or missing."""
    try:
        return [r for r in files.read_json(path) if r["measure"] not in measures]
    except FileNotFoundError:
        return []
    except files.DAMAGED as error:
        files.say_damaged(path, error)
        return []
