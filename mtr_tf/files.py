# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, JSON, CSV, and locks on directories.

Each file is written beside, flushed and renamed.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import logging

from mtr_tf.errors import InputError

# What reading a damaged file of JSON or arrays (.npz), and what is in it, may raise.
DAMAGED = (
    OSError,
    ValueError,  # Of JSON, of text that is no UTF-8, and our own.
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,  # Of an array whose shape was changed.
    RuntimeError,  # Deep nesting; zip files that are encrypted or of unknown methods.
    zipfile.BadZipFile,
    zlib.error,
)


def say_damaged(path: pathlib.Path, error: BaseException) -> None:
    """Logs that a file is damaged and will be made again."""
    logging.warning("%s is damaged (%s); it is done again", path, error)


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write to; it becomes `path` if all went well, else it is gone.

    Raises:
      InputError: the disk is full. What stood at `path` before is untouched.
    """
    beside = path.with_name(f".{os.getpid()}.{path.name}")  # Keeps the suffix.
    try:
        with write_errors_explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


@contextlib.contextmanager
def write_errors_explained(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of writing into `InputError`: a full disk, a folder without rights.

    A full disk is told by TensorFlow's errors as well as by Python's.
    """
    try:
        yield
    except Exception as error:
        codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        text = str(error)
        full = getattr(error, "errno", None) in codes or any(
            os.strerror(code) in text for code in codes
        )
        if full:
            raise InputError(
                f"no space is left on the disk to write {path}; what was there before "
                "is kept. Free some space, then repeat the command to go on."
            ) from error
        if not isinstance(error, OSError):
            raise
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}. Give another "
            "directory, or the right to write there."
        ) from error


def digest(facts: Any) -> str:
    """A hash of what JSON can say, by which finished work is known (SHA-256)."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text(text)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; refuses NaN, which JSON lacks."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(
    path: pathlib.Path,
    records: Sequence[Mapping[str, Any]],
    columns: Sequence[str] = (),
) -> None:
    """Writes a CSV file whole or not at all: a row per record.

    Lists are joined by `+`, tables are `NAME:VALUE` joined so, and intervals become two
    columns. A text that a spreadsheet would run as a formula comes after a `'`.

    Args:
      path: The file.
      records: Its rows.
      columns: The names of its columns; by default all that records have.
    """
    rows = [_flat(record) for record in records]
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(path) as beside, open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without lists and tables."""
    flat = {}
    for name, value in record.items():
        if name.endswith("interval"):
            flat[f"{name}_low"], flat[f"{name}_high"] = value or (None, None)
        elif isinstance(value, Mapping):
            flat[name] = _text("+".join(f"{key}:{item}" for key, item in value.items()))
        elif isinstance(value, list | tuple):
            flat[name] = _text("+".join(map(str, value)))
        else:
            flat[name] = _text(value) if isinstance(value, str) else value
    return flat


def _text(words: str) -> str:
    """Words that no spreadsheet takes for a formula."""
    return f"'{words}" if words.startswith(tuple("=+-@\t\r\n")) else words


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a run directory for this process; the lock ends with it, even if killed.

    Raises:
      InputError: another process holds it.
    """
    with write_errors_explained(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "a+")  # noqa: SIM115  (closed below)
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"the run directory {workdir} is in use by another process (pid "
                f"{file.read().strip() or 'unknown'}); wait for it, stop it, or give "
                "another directory."
            ) from error
        with write_errors_explained(workdir):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
