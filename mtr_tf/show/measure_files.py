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
      records: Records of the measures; the table shows these.
      folder: Where files go. Its records of other measures stay if they depend on the
        same facts.
      measures: Names of the measures in `records`.
      facts: What records depend on besides the measure.
    """
    facts_file = folder / "measures" / "facts.json"
    other_records: list[Record] = []
    if store.read_kept(facts_file).get("facts") == store.as_json(facts):
        other_records = _other_records(folder / "measures.json", measures)
    facts_file.unlink(missing_ok=True)  # Until all that it describes is written.
    all_records = [*other_records, *records]
    files.write_json(folder / "measures.json", all_records)
    files.write_csv(folder / "measures.csv", all_records)
    plots = theory.save_run(all_records, folder)
    tensorboard.write_measures(all_records, plots, folder / "measures")
    store.write_file(facts_file, {"facts": facts})
    return "\n".join(
        [
            tables.measures(records),
            "",
            f"measures: {folder / 'measures.json'} and .csv",
            f"plots:    {', '.join(map(str, plots))}",
            f"watch it: tensorboard --logdir={shlex.quote(str(folder))}",
        ]
    )


def _other_records(path: pathlib.Path, measures: Sequence[str]) -> list[Record]:
    """A file's records of other measures; none where it is damaged or missing."""
    try:
        return [r for r in files.read_json(path) if r["measure"] not in measures]
    except FileNotFoundError:
        return []
    except files.DAMAGED as error:
        files.say_damaged(path, error)
        return []
