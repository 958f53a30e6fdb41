# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard shows of a sweep of attacks: every number over the radius.

FOLDER/                    the settings as text
       <attack>/<group>/   one run of TensorBoard per attack and group of tasks

Tags are `<task>_by_eps/<metric>` and `<task>_by_eps/pictures`: one chart has the curves
of all runs, apart from the charts of training, whose steps are those of the optimizer.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from mtr_tf.evaluation.cell_store import Result
from mtr_tf.show import tensorboard

SUFFIX = "_by_eps"
_MAGNIFIED = (
    "The perturbation is magnified around grey: its largest change is black or white."
)
_MARK = ".mtr_tf"  # Ends the names of event files that are ours to remove.


def write(
    settings: Mapping[str, Any],
    clean: Result,
    results: Sequence[Result],
    folder: pathlib.Path,
    units: Mapping[str, str] | None = None,
) -> None:
    """Writes the runs of a sweep; those of an earlier one are removed first.

    The step is the radius if all radii are whole numbers, else a thousandth of it.
    `units` are those of the data set's `DatasetInfo`.
    """
    _remove_earlier(folder)
    with _writing(folder):
        tensorboard.write_settings(settings)
    whole = all(float(result.cell.eps).is_integer() for result in results)
    about = _about(clean, results[0], settings["split"], whole)
    runs = itertools.groupby(sorted(results, key=_run), _run)
    for run, members in runs:
        with _writing(folder / run):
            tensorboard.write_scalars(_scalars(clean), 0, about, SUFFIX, units)
            for result in members:
                if result.cell.eps:
                    step = round(result.cell.eps * (1 if whole else 1000))
                    images = _pictures(clean, result)
                    scalars = _scalars(result)
                    tensorboard.write_scalars(scalars, step, about, SUFFIX, units)
                    tensorboard.write_pictures(images, step, _MAGNIFIED, SUFFIX)


def _about(clean: Result, attacked: Result, split: str, whole: bool) -> str:
    """The part of a description that all numbers share."""
    norm = attacked.cell.threat.norm
    unit = "levels of 0-255" if norm == "linf" else "the plain l2 norm"
    times = "" if whole else " times 1000"
    return (
        f"On the first {clean.count} images of {split}. The step is the radius "
        f"eps{times} ({norm}, {unit}); 0 is without an attack. A run is an attack on "
        "a group of tasks. Set smoothing to 0 to see the values themselves."
    )


def _run(result: Result) -> str:
    return f"{result.cell.label}/{result.cell.group}"


def _scalars(result: Result) -> dict[str, float]:
    return {
        f"{task}/{metric}": score["value"]
        for task, by_metric in result.scores.items()
        for metric, score in by_metric.items()
        if score["value"] is not None
    }


def _pictures(clean: Result, result: Result) -> dict[str, tensorboard.Columns]:
    """The first examples of each task, as `Result` has them painted."""
    images = {}
    for task in clean.scores:
        columns = {
            "image": clean.pictures["image"],
            "target": clean.pictures[f"target/{task}"],
            "clean output": clean.pictures[f"output/{task}"],
            "attacked output": result.pictures[f"output/{task}"],
            "perturbation": result.pictures["perturbation"],
        }
        images[f"{task}/pictures"] = {
            heading: tiles[: tensorboard.EXAMPLES] for heading, tiles in columns.items()
        }
    return images


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    """A run of TensorBoard as the default writer."""
    writer = tf.summary.create_file_writer(str(folder), filename_suffix=_MARK)
    with writer.as_default():
        yield
    writer.close()


def _remove_earlier(folder: pathlib.Path) -> None:
    """Removes the event files of an earlier sweep, and folders left empty by that."""
    folders = {path.parent for path in folder.glob(f"*/*/events.out.tfevents.*{_MARK}")}
    for run in (folder, *folders):
        for file in run.glob(f"events.out.tfevents.*{_MARK}"):
            file.unlink()
    for left in (*folders, *{run.parent for run in folders}):
        with contextlib.suppress(OSError):  # It holds something else.
            left.rmdir()
