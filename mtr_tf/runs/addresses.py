# SPDX-License-Identifier: Apache-2.0
"""Folders at addresses such as gs://bucket/run: list, read, write and delete files.

TensorFlow reaches the schemes that it has registered (gs://, ram://); fsspec reaches
the others, with one package per scheme (s3fs for s3://). A written file appears whole
or not at all: object stores guarantee it, and elsewhere it is renamed once complete.
"""

from __future__ import annotations

import contextlib
import importlib
import logging as standard_logging
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any
from typing import Protocol

from mtr_tf import files
from mtr_tf.cli import startup
from mtr_tf.errors import InputError

# Schemes of object stores: a file appears there only once it is fully uploaded.
_OBJECT_STORES = (
    "gs",
    "gcs",
    "s3",
    "s3a",
    "az",
    "abfs",
    "abfss",
    "adl",
    "oss",
    "oci",
    "r2",
)
_LOGGERS = ("aiobotocore", "botocore")  # They log where they found credentials.


class Place(Protocol):
    """A folder at an address; file names are relative to it, with slashes."""

    def names(self) -> list[str]:
        """The files in the folder and its subfolders; empty if there is no folder."""

    def exists(self, name: str) -> bool:
        """Whether the file exists."""

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if it does not exist."""

    def get(self, name: str, file: pathlib.Path) -> None:
        """Downloads a file; raises `FileNotFoundError` if it does not exist."""

    def put(self, file: pathlib.Path, name: str) -> None:
        """Uploads a file."""

    def remove(self, name: str) -> None:
        """Deletes a file, if it exists."""

    def modified(self, name: str) -> float:
        """When a file was written, in seconds since 1970; 0 if that is not known."""


def normal(address: str | os.PathLike) -> str:
    """The address with `://`, which pathlib cuts to `:/`, and no slash at its end."""
    return re.sub(r":/(?!/)", "://", os.fspath(address), count=1).rstrip("/")


def scheme(address: str) -> str:
    """The part of an address before `://`, in lower case."""
    return address.partition("://")[0].lower()


def place(address: str, flag: str) -> Place:
    """The folder at an address; nothing is read or written yet.

    Args:
      address: As returned by `normal`.
      flag: The flag or argument that it was given to, for messages.

    Raises:
      InputError: Neither TensorFlow nor an installed package reaches such addresses.
    """
    name = scheme(address)
    if "tensorflow" not in sys.modules:
        startup.import_tensorflow()
    tf = importlib.import_module("tensorflow")
    if name in tf.io.gfile.get_registered_schemes():
        return _TensorFlowPlace(address, tf)
    fsspec = importlib.import_module("fsspec")
    try:
        fsspec.get_filesystem_class(name)
    except ValueError as error:
        raise InputError(
            f"{flag} must be a path, or an address that TensorFlow or fsspec can reach "
            f"(gs://, s3://, abfs:// and others); got {address!r}. Mount it as a "
            "folder, and give its path."
        ) from error
    except ImportError as error:
        registry = importlib.import_module("fsspec.registry")  # Not the attribute.
        package = registry.known_implementations[name]["class"].partition(".")[0]
        if package == "fsspec":  # It needs another package, named in the error.
            match = re.search(r'"(\w+)"', str(error))
            package = match[1] if match else str(error)
        raise InputError(
            f"{flag}={address} needs the package {package}, which is not installed; "
            f"run pip install {package}."
        ) from error
    for logger in _LOGGERS:
        standard_logging.getLogger(logger).setLevel(standard_logging.WARNING)
    with explained(address, "reached"):
        return _FsspecPlace(address, *fsspec.core.url_to_fs(address))


@contextlib.contextmanager
def explained(address: str, verb: str) -> Iterator[None]:
    """Turns any exception of a file system into an `InputError`.

    Args:
      address: The address that is accessed.
      verb: Completes "ADDRESS cannot be ...", such as "read".
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{address} cannot be {verb} ({type(error).__name__}: "
            f"{files.reason(error)}); check the address, the network and your "
            "permissions, then repeat the command."
        ) from error


def _temporary_name(name: str) -> str:
    """The name of a file while it is written."""
    folder, slash, file_name = name.rpartition("/")
    return f"{folder}{slash}{files.name_beside(file_name)}"


class _TensorFlowPlace:
    """A `Place` that uses `tf.io.gfile`."""

    def __init__(self, address: str, tf: Any):
        self._root, self._gfile = address, tf.io.gfile
        self._missing = tf.errors.NotFoundError
        self._whole = scheme(address) in _OBJECT_STORES

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def names(self) -> list[str]:
        names = []
        for folder, _, file_names in self._gfile.walk(self._root):
            subfolder = folder[len(self._root) :].strip("/")
            names += [f"{subfolder}/{name}".lstrip("/") for name in file_names]
        return names

    def exists(self, name: str) -> bool:
        path = self._path(name)
        return self._gfile.exists(path) and not self._gfile.isdir(path)

    def read(self, name: str) -> bytes | None:
        try:
            with self._gfile.GFile(self._path(name), "rb") as file:
                return file.read()
        except self._missing:
            return None

    def get(self, name: str, file: pathlib.Path) -> None:
        try:
            self._gfile.copy(self._path(name), os.fspath(file), overwrite=True)
        except self._missing as error:
            raise FileNotFoundError(name) from error

    def put(self, file: pathlib.Path, name: str) -> None:
        path = self._path(name)
        if self._whole:
            self._gfile.copy(os.fspath(file), path, overwrite=True)
            return
        self._gfile.makedirs(path.rpartition("/")[0])
        temp_path = self._path(_temporary_name(name))
        self._gfile.copy(os.fspath(file), temp_path, overwrite=True)
        self._gfile.rename(temp_path, path, overwrite=True)

    def remove(self, name: str) -> None:
        with contextlib.suppress(self._missing):
            self._gfile.remove(self._path(name))

    def modified(self, name: str) -> float:
        return self._gfile.stat(self._path(name)).mtime_nsec / 1e9


class _FsspecPlace:
    """A `Place` that uses a file system of fsspec."""

    def __init__(self, address: str, system: Any, root: str):
        self._system, self._root = system, root.rstrip("/")
        base_class = importlib.import_module("fsspec").AbstractFileSystem
        self._renames = type(system).mv is not base_class.mv
        self._whole = scheme(address) in _OBJECT_STORES

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def names(self) -> list[str]:
        self._system.invalidate_cache()
        try:
            paths = self._system.find(self._root)
        except FileNotFoundError:
            return []
        start = f"{self._root}/"
        return [path[len(start) :] for path in paths if path.startswith(start)]

    def exists(self, name: str) -> bool:
        self._system.invalidate_cache()
        return self._system.isfile(self._path(name))

    def read(self, name: str) -> bytes | None:
        try:
            return self._system.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    def get(self, name: str, file: pathlib.Path) -> None:
        self._system.get_file(self._path(name), os.fspath(file))

    def put(self, file: pathlib.Path, name: str) -> None:
        path = self._path(name)
        if self._whole:
            self._system.put_file(os.fspath(file), path)
            return
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        temp_path = self._path(_temporary_name(name))
        self._system.put_file(os.fspath(file), temp_path)
        if self._renames:
            self._system.mv(temp_path, path)
        else:  # Copy by name: `mv` would take names as patterns.
            self._system.cp_file(temp_path, path)
            self._system.rm_file(temp_path)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def modified(self, name: str) -> float:
        try:
            return self._system.modified(self._path(name)).timestamp()
        except NotImplementedError:
            return 0.0
