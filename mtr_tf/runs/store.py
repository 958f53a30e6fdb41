# SPDX-License-Identifier: Apache-2.0
"""Finished work on disk, found by what it depends on and checked before it is used.

    HASH.json   the key, the content, and a checksum of these and of the arrays
    HASH.npz    the arrays, if there are any

HASH is the hash of the key: everything that the result depends on, as JSON. The JSON
file is written last, so the work is finished if it exists. If it is damaged, was
changed, or belongs to another key, a warning is logged and the work is done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtr_tf import files
from mtr_tf.runs import remote

_CHECKSUM, _SUMS = "checksum", "arrays"


def as_json(value: Any) -> Any:
    """A value as it is read back from a JSON file, with lists for tuples."""
    return json.loads(json.dumps(value))


def write_file(
    path: pathlib.Path,
    content: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a JSON file with a checksum, after its arrays as .npz beside it.

    The files are uploaded if they belong to an address (`remote`).
    """
    body = as_json(content)
    if arrays is not None:
        write_arrays(path.with_suffix(".npz"), arrays)
        body[_SUMS] = {name: _array_checksum(array) for name, array in arrays.items()}
    files.write_json(path, body | {_CHECKSUM: files.digest(body)})
    remote.push(path.parent)


def read_file(path: pathlib.Path, prefix: str = "") -> Entry:
    """Reads a JSON file, and the arrays beside it whose names begin with `prefix`.

    Raises:
      FileNotFoundError: The file does not exist.
      Exception: One of files.DAMAGED; a ValueError if a checksum is wrong.
    """
    content, arrays_path = files.read_json(path), path.with_suffix(".npz")
    checksum = content.pop(_CHECKSUM, None)
    if checksum is not None and checksum != files.digest(content):
        raise ValueError("its checksum is wrong")
    sums = content.pop(_SUMS, None)
    arrays = {}
    if sums is not None or arrays_path.exists():
        arrays = read_arrays(arrays_path, prefix)
    if checksum is not None:
        expected = {n: s for n, s in (sums or {}).items() if n.startswith(prefix)}
        if {name: _array_checksum(array) for name, array in arrays.items()} != expected:
            raise ValueError("the checksum of its arrays is wrong")
    return Entry(content, arrays, checksum is not None)


def read_kept(path: pathlib.Path) -> dict[str, Any]:
    """The content of a JSON file of finished work; empty if damaged or missing."""
    try:
        return read_file(path).content
    except FileNotFoundError:
        return {}
    except files.DAMAGED as error:
        files.say_damaged(path, error)
        return {}


def _array_checksum(array: np.ndarray) -> str:
    array = np.asarray(array)
    head = f"{array.dtype.str} {array.shape};".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Entry:
    """Finished work: content and arrays.

    `sealed`: whether they had a checksum, which was right. Versions before 0.2 wrote
    none, so readers check such entries more closely.
    """

    content: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sealed: bool


@dataclasses.dataclass(frozen=True)
class Store:
    """The finished work in a folder."""

    folder: pathlib.Path

    def path(self, key: Mapping[str, Any]) -> pathlib.Path:
        """The path of a key's JSON file; its arrays are beside it, as .npz."""
        return self.folder / f"{files.digest(key)[:16]}.json"

    def write(
        self,
        key: Mapping[str, Any],
        content: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Writes finished work; last its JSON file, which marks it as finished."""
        write_file(self.path(key), {"key": key, **content}, arrays)

    def read(self, key: Mapping[str, Any]) -> Entry | None:
        """The finished work of a key; None if there is none or it is damaged."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            entry = read_file(path)
            if entry.content.pop("key") != as_json(key):
                raise ValueError("it holds the result of something else")
            return entry
        except files.DAMAGED as error:
            files.say_damaged(path, error)
            return None


def file_digest(path: str | pathlib.Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz file whole or not at all."""
    with files.whole_file(path) as temp_path, open(temp_path, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_arrays(path: pathlib.Path, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of an .npz file by prefix; raises one of files.DAMAGED."""
    with files.opened(path) as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name.startswith(prefix)}
