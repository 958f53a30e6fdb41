# SPDX-License-Identifier: Apache-2.0
"""Finished work on disk: found by what it depends on, checked before it is believed.

    HASH.json   the key, what was found, and a checksum of these and of the arrays
    HASH.npz    the arrays, where there are any

HASH is of the key: all that the result depends on, as JSON. The JSON file is written
last, so work is finished if it is there. What is damaged, or was changed, or is another
key's, is said and done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from mtr_tf import files

# What reading a damaged file of JSON or arrays may raise.
DAMAGED = (
    OSError,
    ValueError,  # Of JSON, of text that is no UTF-8, and our own.
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
)
_CHECKSUM = "checksum"


def as_json(value: Any) -> Any:
    """The value as it comes back from a file: lists for tuples."""
    return json.loads(json.dumps(value))


def seal(
    content: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """The content with a checksum of it and of the arrays beside it."""
    return {**content, _CHECKSUM: _checksum(content, arrays or {})}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether there is a checksum: versions before 0.2 wrote none."""
    return _CHECKSUM in content


def unseal(
    content: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """The content without its checksum, if it has one.

    Raises:
      ValueError: Content or arrays are not those that were sealed.
    """
    bare = {name: value for name, value in content.items() if name != _CHECKSUM}
    if is_sealed(content) and content[_CHECKSUM] != _checksum(bare, arrays or {}):
        raise ValueError("its checksum is another")
    return bare


def _checksum(content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    parts = {}
    for name, array in arrays.items():
        head = f"{array.dtype.str} {array.shape};".encode()
        parts[name] = hashlib.sha256(head + np.ascontiguousarray(array).tobytes())
    sums = {name: part.hexdigest() for name, part in parts.items()}
    return files.digest({"content": content, "arrays": sums})


@dataclasses.dataclass(frozen=True)
class Entry:
    """Finished work: content and arrays; `sealed` if a checksum speaks for them."""

    content: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sealed: bool


@dataclasses.dataclass(frozen=True)
class Store:
    """The finished work in a folder."""

    folder: pathlib.Path

    def path(self, key: Mapping[str, Any]) -> pathlib.Path:
        """The JSON file of a key; its arrays are beside it, as .npz."""
        return self.folder / f"{files.digest(key)[:16]}.json"

    def write(
        self,
        key: Mapping[str, Any],
        content: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Keeps finished work; the file that says so is written last."""
        path = self.path(key)
        if arrays is not None:
            write_arrays(path.with_suffix(".npz"), arrays)
        whole = as_json({"key": key, **content})
        files.write_json(path, seal(whole, arrays))

    def read(self, key: Mapping[str, Any]) -> Entry | None:
        """The finished work of a key; None if there is none, or a damaged one."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            return self._read(path, as_json(key))
        except DAMAGED as error:
            say_damaged(path, error)
            return None

    def _read(self, path: pathlib.Path, key: Any) -> Entry:
        content, arrays = json.loads(path.read_text()), {}
        if path.with_suffix(".npz").exists():
            arrays = read_arrays(path.with_suffix(".npz"))
        bare = unseal(content, arrays)
        if bare.pop("key") != key:
            raise ValueError("it holds the result of something else")
        return Entry(bare, arrays, is_sealed(content))


def say_damaged(path: pathlib.Path, error: BaseException) -> None:
    """Logs that a file is damaged and will be made again."""
    logging.warning("%s is damaged (%s); it is done again", path, error)


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file whole or not at all."""
    with files.whole_file(path) as beside, open(beside, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_arrays(path: pathlib.Path, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of an .npz file whose names begin so; raises one of DAMAGED."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name.startswith(prefix)}
