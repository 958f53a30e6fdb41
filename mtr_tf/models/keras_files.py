# SPDX-License-Identifier: Apache-2.0
"""Checks the size of somebody else's `.keras` or `.h5` file before it is loaded."""

from __future__ import annotations

import io
import pathlib
import zipfile

import h5py

from mtr_tf import files

_WEIGHTS = "model.weights.h5"


def check_size(path: pathlib.Path) -> None:
    """Raises `InputError` for a file whose weights would fill the memory.

    Both the archive and the HDF5 file in it can be compressed: a few megabytes of
    either may become gigabytes.

    Args:
      path: Path of a `.keras` file, or of a plain HDF5 file.

    Raises:
      Exception: Of nearly any kind, if the file is damaged.
    """
    if h5py.is_hdf5(path):
        size = path.stat().st_size
        files.check_unpacked_size(_array_bytes(str(path)), size, str(path))
        return
    files.check_unpacked(path)
    with zipfile.ZipFile(path) as archive:
        if _WEIGHTS not in archive.namelist():
            return
        content = archive.read(_WEIGHTS)
    files.check_unpacked_size(
        _array_bytes(io.BytesIO(content)), len(content), str(path)
    )


def _array_bytes(file: str | io.BytesIO) -> int:
    """Returns the size in bytes of an HDF5 file's arrays, without reading them."""
    sizes = []

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            sizes.append(item.nbytes)

    with h5py.File(file, "r") as weights:
        weights.visititems(add)  # It follows no links out of the file.
    return sum(sizes)
