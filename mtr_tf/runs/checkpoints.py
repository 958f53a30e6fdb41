# SPDX-License-Identifier: Apache-2.0
"""The checkpoints in a folder: finding, writing and reading them.

    ckpt-STEP.index, ckpt-STEP.data-*   one, in TensorFlow's format
    checkpoint                          TensorFlow's list of them, for other readers

Checkpoints are found by their own files, and names are compared literally. TensorFlow's
own functions use the list and treat the path as a pattern, so they may miss files, or
delete those of another run. TensorFlow is not imported here, so looking for checkpoints
does not need it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from absl import logging

from mtr_tf import files

LIST = "checkpoint"
_INDEX = re.compile(r"ckpt-(0|[1-9]\d*)\.index")
_BROKEN_OFF = re.compile(r"ckpt-\d+_temp")  # What TensorFlow writes in first.
_LISTED = re.compile(r'^all_model_checkpoint_paths: "(?:.*/)?ckpt-(\d+)"$', re.M)
_PATTERN_SIGNS = "*?[\\"


def name(step: int) -> str:
    """What the checkpoint after so many steps is called."""
    return f"ckpt-{step}"


def steps(folder: pathlib.Path) -> list[int]:
    """After how many steps the checkpoints in a folder are, ascending."""
    found = (_INDEX.fullmatch(file.name) for file in files.listed(folder))
    return sorted(int(match[1]) for match in found if match)


def newest_first(folder: pathlib.Path) -> list[int]:
    """The steps to try; says what TensorFlow's list speaks of and is not there."""
    found = steps(folder)
    listed = _listed(folder)
    if found and not listed:
        logging.warning(
            "%s is missing or damaged; using the checkpoints in its folder: %s",
            folder / LIST,
            ", ".join(map(name, found)),
        )
    missing = ", ".join(name(step) for step in listed if step not in found)
    if missing:
        logging.warning("%s is missing in %s", missing, folder)
    return found[::-1]


def _listed(folder: pathlib.Path) -> list[int]:
    """The steps that TensorFlow's list has; none if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        text = files.read_text(folder / LIST)
        return [int(step) for step in _LISTED.findall(text)]
    return []


def read(checkpoint: Any, folder: pathlib.Path, step: int) -> Any:
    """Restores a checkpoint; returns TensorFlow's status, which knows what was matched.

    Raises:
      Exception: Of many kinds (`loading.READ_ERRORS`) for a damaged one.
    """
    with plain(folder) as place:
        return checkpoint.restore(os.path.join(place, name(step)))


def say_skipped(folder: pathlib.Path, step: int, error: Exception) -> None:
    """Logs that a checkpoint cannot be used."""
    reason = str(error).splitlines()[0] if str(error) else "unreadable"
    logging.warning("%s is damaged (%s)", folder / name(step), reason[:100])


@contextlib.contextmanager
def plain(folder: pathlib.Path) -> Iterator[str]:
    """A path of a folder without signs of patterns, which TensorFlow's reader needs."""
    if not any(sign in str(folder) for sign in _PATTERN_SIGNS):
        yield str(folder)
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        place = f"/proc/self/fd/{opened}"
        yield place if os.path.isdir(place) else str(folder)
    finally:
        os.close(opened)


def write(checkpoint: Any, folder: pathlib.Path, step: int) -> None:
    """Writes a checkpoint; it is on the disk then, and not only on its way there."""
    checkpoint.write(str(folder / name(step)))
    for file in (*_files(folder, step), folder, folder.parent):
        files.settle(file)


def keep(folder: pathlib.Path, kept: Sequence[int], deleted: Sequence[int]) -> None:
    """Lists the checkpoints to keep, the newest as the last one; deletes others."""
    lines = [f'model_checkpoint_path: "{name(kept[-1])}"']
    lines += [f'all_model_checkpoint_paths: "{name(step)}"' for step in kept]
    files.write_text(folder / LIST, "\n".join(lines) + "\n")
    for step in deleted:
        for file in _files(folder, step):
            file.unlink(missing_ok=True)


def _files(folder: pathlib.Path, step: int) -> list[pathlib.Path]:
    """The files of a checkpoint, its index last: without it there is none."""
    part = re.compile(rf"{name(step)}\.(data-\d{{5}}-of-\d{{5}}|index)")
    found = (file for file in files.listed(folder) if part.fullmatch(file.name))
    return sorted(found, key=lambda file: file.suffix == ".index")


def is_broken_off(name: str) -> bool:
    """Whether a folder is one that TensorFlow writes a checkpoint in first."""
    return bool(_BROKEN_OFF.fullmatch(name))


def clear(folder: pathlib.Path) -> None:
    """Deletes what a killed process has left of a checkpoint it was writing."""
    for left in files.listed(folder):
        if is_broken_off(left.name):
            shutil.rmtree(left, ignore_errors=True)
