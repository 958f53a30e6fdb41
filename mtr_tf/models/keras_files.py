# SPDX-License-Identifier: Apache-2.0
"""The size of a `.keras` file of others is looked at before it is loaded."""

from __future__ import annotations

import io
import pathlib
import zipfile

import h5py

from mtr_tf import files

_WEIGHTS = "model.weights.h5"


def check_size(path: pathlib.Path) -> None:
    """Raises `InputError` for a file whose weights would fill the memory.

    Both the archive and the HDF5 file in it can be packed: a few megabytes of either
    may become gigabytes.

    Raises:
      Exception: Nearly any kind; the file is damaged.
    """
    files.check_unpacked(path)
    with zipfile.ZipFile(path) as archive:
        if _WEIGHTS not in archive.namelist():
            return
        stored = archive.read(_WEIGHTS)
    size = 0

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        nonlocal size
        size += item.nbytes if isinstance(item, h5py.Dataset) else 0

    with h5py.File(io.BytesIO(stored), "r") as weights:
        weights.visititems(add)  # Which follows no link out of the file.
    files.check_unpacked_size(size, len(stored), str(path))
