# SPDX-License-Identifier: Apache-2.0
"""`.keras` files of others: their size is checked before they are loaded."""

from __future__ import annotations

import io
import pathlib
import tracemalloc
import zipfile

import h5py
import keras
import numpy as np
import pytest

from mtr_tf.errors import InputError
from mtr_tf.models import keras_files
from mtr_tf.runs import loading

WEIGHTS = "model.weights.h5"


@pytest.fixture
def parts(tmp_path) -> dict[str, bytes]:
    """The members of a small `.keras` file."""
    x = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(1, 3, padding="same")(x)
    keras.Model(x, {"depth": y}).save(tmp_path / "whole.keras")
    with zipfile.ZipFile(tmp_path / "whole.keras") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, parts, method=zipfile.ZIP_STORED) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def weights(**settings) -> bytes:
    """An HDF5 file of 200 MB of zeros, or of nothing, in some kilobytes."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("layers/conv/vars/0", (50, 2**20), "f4", **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sound_files_are_loaded_packed_or_not(tmp_path, parts, method):
    path = write(tmp_path / "a.keras", parts, method)
    keras_files.check_size(path)
    assert loading.load_run(str(path)).tasks == ("depth",)


def test_a_packed_archive_that_fills_the_memory_is_refused(tmp_path, parts):
    parts[WEIGHTS] += bytes(2**27)
    path = write(tmp_path / "a.keras", parts, zipfile.ZIP_DEFLATED)
    message = "a.keras' would take 134,.* bytes of memory"
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message):
            loading.load_run(str(path))
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "settings", [{}, {"chunks": (1, 2**20), "compression": "gzip"}]
)
def test_weights_that_fill_the_memory_are_refused(tmp_path, parts, settings):
    path = write(tmp_path / "a.keras", parts | {WEIGHTS: weights(**settings)})
    with pytest.raises(InputError, match="would take 209,715,200 bytes of memory"):
        loading.load_run(str(path))


def test_links_out_of_the_weights_are_not_followed(tmp_path, parts):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["big"] = np.zeros(3)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["layers"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/big")
    path = write(tmp_path / "a.keras", parts | {WEIGHTS: buffer.getvalue()})
    with pytest.raises(InputError, match="cannot be loaded as a .keras file"):
        loading.load_run(str(path))
