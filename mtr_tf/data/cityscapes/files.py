# SPDX-License-Identifier: Apache-2.0
"""Finds and reads Cityscapes' files: in the official archives, or extracted.

--data_dir has, for each kind of file (`layout.KINDS`), a folder or a zip:

    leftImg8bit/SPLIT/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png   or
    leftImg8bit_trainvaltest.zip, which holds that folder; also extracted, as
    leftImg8bit_trainvaltest/leftImg8bit/...

A folder is preferred to an archive, unless it holds no such file. One kind may be a
folder, and another an archive.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import zipfile
from collections.abc import Iterator

from mtr_tf.data import png
from mtr_tf.data.cityscapes import layout
from mtr_tf.data.cityscapes.layout import Kind
from mtr_tf.errors import InputError
from mtr_tf.files import DAMAGED
from mtr_tf.files import check_size
from mtr_tf.files import read_bytes
from mtr_tf.files import reason


@dataclasses.dataclass(frozen=True)
class File:
    """A file, in an archive or not.

    Attributes:
      archive: path of the zip; "" for none.
      path: of the file, or its name in the archive.
      size: in bytes.
    """

    archive: str
    path: str
    size: int

    def __str__(self) -> str:
        return f"{self.archive}: {self.path}" if self.archive else self.path

    def read(self) -> bytes:
        """Its contents; InputError if they cannot be read."""
        try:
            if self.archive:
                check_size(self.size, png.LARGEST_FILE, str(self))
                return _open_archive(self.archive).read(self.path)
            return read_bytes(self.path, png.LARGEST_FILE)
        except InputError:
            raise
        except DAMAGED as error:  # Also if it is encrypted, or oddly compressed.
            raise InputError(
                f"'{self}' cannot be read ({reason(error)}); extract it with another "
                "program, or download it again."
            ) from error


Files = dict[str, dict[str, File]]
"""{split: {CITY_SEQUENCE_FRAME + suffix: file}}, of one kind."""


def _open_archive(archive: str) -> zipfile.ZipFile:
    """The open archive, which is opened again only if it has changed."""
    return _cached_archive(archive, os.stat(archive).st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _cached_archive(archive: str, mtime_ns: int) -> zipfile.ZipFile:
    del mtime_ns
    return zipfile.ZipFile(archive)


def find(root: pathlib.Path, kind: Kind) -> Files | None:
    """All files of a kind by split; None if neither a folder nor an archive has any.

    Raises:
      InputError: the archive is damaged.
    """
    unpacked_folder = root / kind.archive.removesuffix(".zip") / kind.folder
    for folder in (root / kind.folder, unpacked_folder):
        files = _files_by_split(kind, _in_folder(folder))  # A missing folder has none.
        if any(files.values()):
            return files
    archive = root / kind.archive
    files = _files_by_split(kind, _in_archive(archive)) if archive.is_file() else {}
    return files if any(files.values()) else None


def _in_folder(folder: pathlib.Path) -> Iterator[tuple[list[str], File]]:
    """Yields (SPLIT, CITY, name) and the file, for all files three levels down."""
    for split in layout.SPLITS.values():
        for place, _, names in os.walk(folder / split, followlinks=True):
            for name in names:
                path = pathlib.Path(place, name)
                parts = list(path.relative_to(folder).parts)
                yield parts, File("", str(path), path.stat().st_size)


def _in_archive(archive: pathlib.Path) -> Iterator[tuple[list[str], File]]:
    try:
        entries = _open_archive(str(archive)).infolist()
    except DAMAGED as error:
        raise InputError(
            f"'{archive}' must be one of Cityscapes' archives, but cannot be read "
            f"({reason(error)}); download it again."
        ) from error
    for entry in entries:
        parts = entry.filename.split("/")[-3:]
        yield parts, File(str(archive), entry.filename, entry.file_size)


def _files_by_split(kind: Kind, entries: Iterator[tuple[list[str], File]]) -> Files:
    files: Files = {split: {} for split in layout.SPLITS}
    split_of = {folder: split for split, folder in layout.SPLITS.items()}
    for parts, file in sorted(entries, key=lambda pair: pair[0]):
        is_hidden = parts[-1].startswith(".")
        if len(parts) != 3 or parts[0] not in split_of or is_hidden:
            continue
        if parts[-1].endswith(kind.suffixes):
            files[split_of[parts[0]]][parts[-1]] = file
    return files
