# SPDX-License-Identifier: Apache-2.0
"""Folders at addresses such as gs://bucket/run: list, read, write and delete files.

TensorFlow reaches the schemes that it has registered (gs://, ram://); fsspec reaches
the others, by a package for each (s3fs for s3://). A file that is written appears
whole or not at all: object stores see to that, and elsewhere it is renamed.
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

# Of object stores, where a file is there once all of it has been uploaded.
_WHOLE = ("gs", "gcs", "s3", "s3a", "az", "abfs", "abfss", "adl", "oss", "oci", "r2")
_TALKATIVE = ("aiobotocore", "botocore")  # Say how they found their credentials.


class Place(Protocol):
    """A folder at an address; names of files are relative to it, with slashes."""

    def names(self) -> list[str]:
        """The files in it and below; none where there is no such folder."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    def read(self, name: str) -> bytes | None:
        """What is in a small file; None where there is none."""

    def get(self, name: str, file: pathlib.Path) -> None:
        """Copies a file here; raises `FileNotFoundError` where there is none."""

    def put(self, file: pathlib.Path, name: str) -> None:
        """Copies a file there."""

    def remove(self, name: str) -> None:
        """Deletes a file, if it is there."""

    def modified(self, name: str) -> float:
        """When a file was written, in seconds since 1970; 0 where nobody knows."""


def normal(address: str | os.PathLike) -> str:
    """An address with both slashes, which pathlib makes one, and none at its end."""
    return re.sub(r":/(?!/)", "://", os.fspath(address), count=1).rstrip("/")


def scheme(address: str) -> str:
    """What comes before ://."""
    return address.partition("://")[0].lower()


def place(address: str, flag: str) -> Place:
    """The folder at an address; nothing is read or written yet.

    Args:
      address: As `normal` makes it.
      flag: What was given it, for messages.

    Raises:
      InputError: Nothing here reaches such addresses.
    """
    name = scheme(address)
    if "tensorflow" not in sys.modules:
        startup.import_tensorflow()
    tf = importlib.import_module("tensorflow")
    if name in tf.io.gfile.get_registered_schemes():
        return _OfTensorFlow(address, tf)
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
        registry = importlib.import_module("fsspec.registry")  # Not its attribute.
        package = registry.known_implementations[name]["class"].partition(".")[0]
        if package == "fsspec":  # Its own needs another's, which its words name.
            named = re.search(r'"(\w+)"', str(error))
            package = named[1] if named else str(error)
        raise InputError(
            f"{flag}={address} needs the package {package}, which is not installed; "
            f"run pip install {package}."
        ) from error
    for logger in _TALKATIVE:
        standard_logging.getLogger(logger).setLevel(standard_logging.WARNING)
    with explained(address, "reached"):
        return _OfFsspec(address, *fsspec.core.url_to_fs(address))


@contextlib.contextmanager
def explained(address: str, verb: str) -> Iterator[None]:
    """Turns what file systems raise, of any kind, into an `InputError`.

    Args:
      address: What was worked on.
      verb: What it cannot be: "read".
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


def _beside(name: str) -> str:
    """What a file is called while it is written."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{files.name_beside(last)}"


class _OfTensorFlow:
    """A `Place` by tf.io.gfile."""

    def __init__(self, address: str, tf: Any):
        self._root, self._gfile = address, tf.io.gfile
        self._missing = tf.errors.NotFoundError
        self._whole = scheme(address) in _WHOLE

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def names(self) -> list[str]:
        found = []
        for folder, _, files_there in self._gfile.walk(self._root):
            inner = folder[len(self._root) :].strip("/")
            found += [f"{inner}/{name}".lstrip("/") for name in files_there]
        return found

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
        beside = self._path(_beside(name))
        self._gfile.copy(os.fspath(file), beside, overwrite=True)
        self._gfile.rename(beside, path, overwrite=True)

    def remove(self, name: str) -> None:
        with contextlib.suppress(self._missing):
            self._gfile.remove(self._path(name))

    def modified(self, name: str) -> float:
        return self._gfile.stat(self._path(name)).mtime_nsec / 1e9


class _OfFsspec:
    """A `Place` by a file system of fsspec's."""

    def __init__(self, address: str, system: Any, root: str):
        self._system, self._root = system, root.rstrip("/")
        plain = importlib.import_module("fsspec").AbstractFileSystem
        self._renames = type(system).mv is not plain.mv
        self._whole = scheme(address) in _WHOLE

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def names(self) -> list[str]:
        self._system.invalidate_cache()
        try:
            found = self._system.find(self._root)
        except FileNotFoundError:
            return []
        start = f"{self._root}/"
        return [path[len(start) :] for path in found if path.startswith(start)]

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
        beside = self._path(_beside(name))
        self._system.put_file(os.fspath(file), beside)
        if self._renames:
            self._system.mv(beside, path)
        else:  # Copying by name; `mv` would read names as patterns.
            self._system.cp_file(beside, path)
            self._system.rm_file(beside)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def modified(self, name: str) -> float:
        try:
            return self._system.modified(self._path(name)).timestamp()
        except NotImplementedError:
            return 0.0
