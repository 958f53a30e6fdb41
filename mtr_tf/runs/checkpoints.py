# SPDX-License-Identifier: Apache-2.0
"""The checkpoints in a folder: finding, writing and reading them.

    ckpt-STEP.index, ckpt-STEP.data-*   a checkpoint, in TensorFlow's format
    checkpoint                          TensorFlow's list of them, for other readers

Checkpoints are found by their own files, and names are compared literally. TensorFlow's
own functions use the list and treat the path as a pattern, so they may miss files, or
delete those of another run. This module does not import TensorFlow, so looking for
checkpoints does not need it.
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
_BROKEN_OFF = re.compile(r"ckpt-\d+_temp")  # TensorFlow's temporary folder.
_LIST_ENTRY = re.compile(r'^all_model_checkpoint_paths: "(?:.*/)?ckpt-(\d+)"$', re.M)
_PATTERN_SIGNS = "*?[\\"


def name(step: int) -> str:
    """The name of the checkpoint after `step` steps."""
    return f"ckpt-{step}"


def steps(folder: pathlib.Path) -> list[int]:
    """The steps of the checkpoints in a folder, ascending."""
    matches = (_INDEX.fullmatch(file.name) for file in files.listed(folder))
    return sorted(int(match[1]) for match in matches if match)


def newest_first(folder: pathlib.Path) -> list[int]:
    """The steps to try, newest first; warns of listed checkpoints that are missing."""
    saved_steps = steps(folder)
    listed_steps = _listed_steps(folder)
    if saved_steps and not listed_steps:
        logging.warning(
            "%s is missing or damaged; using the checkpoints in its folder: %s",
            folder / LIST,
            ", ".join(map(name, saved_steps)),
        )
    missing_names = ", ".join(
        name(step) for step in listed_steps if step not in saved_steps
    )
    if missing_names:
        logging.warning("%s is missing in %s", missing_names, folder)
    return saved_steps[::-1]


def _listed_steps(folder: pathlib.Path) -> list[int]:
    """The steps in TensorFlow's list; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        text = files.read_text(folder / LIST)
        return [int(step) for step in _LIST_ENTRY.findall(text)]
    return []


def read(checkpoint: Any, folder: pathlib.Path, step: int) -> Any:
    """Restores a checkpoint; returns TensorFlow's status, which tells what matched.

    Raises:
      Exception: One of `loading.READ_ERRORS`: the checkpoint is damaged.
    """
    with plain(folder) as place:
        return checkpoint.restore(os.path.join(place, name(step)))


def say_skipped(folder: pathlib.Path, step: int, error: Exception) -> None:
    """Logs that a checkpoint cannot be used."""
    reason = str(error).splitlines()[0] if str(error) else "unreadable"
    logging.warning("%s is damaged (%s)", folder / name(step), reason[:100])


@contextlib.contextmanager
def plain(folder: pathlib.Path) -> Iterator[str]:
    """Yields a path of a folder without wildcards, as TensorFlow's reader needs it."""
    if not any(sign in str(folder) for sign in _PATTERN_SIGNS):
        yield str(folder)
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        place = f"/proc/self/fd/{descriptor}"
        yield place if os.path.isdir(place) else str(folder)
    finally:
        os.close(descriptor)


def write(checkpoint: Any, folder: pathlib.Path, step: int) -> None:
    """Writes a checkpoint, and waits until it is on the disk."""
    checkpoint.write(str(folder / name(step)))
    for file in (*_files(folder, step), folder, folder.parent):
        files.settle(file)


def keep(
    folder: pathlib.Path, kept_steps: Sequence[int], deleted_steps: Sequence[int]
) -> None:
    """Writes the list of the checkpoints to keep, newest last; deletes the others."""
    lines = [f'model_checkpoint_path: "{name(kept_steps[-1])}"']
    lines += [f'all_model_checkpoint_paths: "{name(step)}"' for step in kept_steps]
    files.write_text(folder / LIST, "\n".join(lines) + "\n")
    for step in deleted_steps:
        for file in _files(folder, step):
            file.unlink(missing_ok=True)


def _files(folder: pathlib.Path, step: int) -> list[pathlib.Path]:
    """The files of a checkpoint; last its index, without which it does not count."""
    pattern = re.compile(rf"{name(step)}\.(data-\d{{5}}-of-\d{{5}}|index)")
    parts = (file for file in files.listed(folder) if pattern.fullmatch(file.name))
    return sorted(parts, key=lambda file: file.suffix == ".index")


def is_broken_off(name: str) -> bool:
    """Whether a folder is a temporary one in which TensorFlow writes a checkpoint."""
    return bool(_BROKEN_OFF.fullmatch(name))


def clear(folder: pathlib.Path) -> None:
    """Deletes what a killed process left of a checkpoint that it was writing."""
    for leftover in files.listed(folder):
        if is_broken_off(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)
