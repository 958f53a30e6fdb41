# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, JSON, CSV, and locks on directories.

Each file is written under another name, flushed and renamed. Files are also opened for
reading here, so that anything but a regular file is refused and all system errors are
reported in the same way.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import lzma
import os
import pathlib
import re
import secrets
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import IO
from typing import Any
from typing import BinaryIO

from absl import logging

from mtr_tf.errors import InputError

# What may be raised by a damaged file of JSON or arrays (.npz), or by its content.
DAMAGED = (
    OSError,
    ValueError,  # Of JSON, of text that is not UTF-8, and our own.
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,  # Of an array with a damaged shape.
    RuntimeError,  # Deep nesting; zip files that are encrypted or of unknown methods.
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


LONGEST_NAME = 255  # Bytes; the limit of file systems.
_MAX_EXPANSION = 20  # As a multiple of the size of a zip file of weights.
_PICTURES = (".png", ".pdf", ".svg")
_MAX_REASON = 200  # Characters.
_SMALL = 2**26  # Bytes that any zip file may unpack to.
_FORMULA = tuple(
    "=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}"
    "\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)
ANOTHER_PLACE = "Give another directory"  # What to do if one cannot be written.
_TEMPORARY_NAME = re.compile(r"\.\d+\..+")  # The name of a file while it is written.
# What file servers and desktops put into any folder: .DS_Store, .snapshot, @eaDir,
# #recycle, ~snapshot, $RECYCLE.BIN, Thumbs.db.
_SYSTEM_NAMES = re.compile(
    r"[.@#~$].*|(eh)?thumbs\.db|desktop\.ini|lost\+found|system volume information",
    re.IGNORECASE,
)
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+:/")  # pathlib makes // one /.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is an address such as gs://bucket/run, not a local file."""
    return bool(_REMOTE.match(os.fspath(path)))


def check_local(name: str, path: str | os.PathLike) -> None:
    """Raises `InputError` for an address, which would become a local folder `gs:`.

    Args:
      name: The name of the flag or argument, for the message.
      path: The path that it was given.
    """
    if is_remote(path):
        raise InputError(
            f"{name} must be a path in this machine's file system; got "
            f"{os.fspath(path)!r}. Mount it as a folder or copy it, and give the "
            "local path."
        )


def check_picture(name: str, path: str | os.PathLike) -> None:
    """Raises `InputError` unless plots can be written to a file with this suffix."""
    if pathlib.Path(path).suffix.lower() not in _PICTURES:
        raise InputError(
            f"{name} must end with {', '.join(_PICTURES[:-1])} or {_PICTURES[-1]}; got "
            f"{os.fspath(path)!r}."
        )


def reason(error: BaseException) -> str:
    """Why a file cannot be read, in a few words on one line."""
    words = getattr(error, "strerror", None) or " ".join(str(error).split())
    words = words or type(error).__name__
    return words if len(words) <= _MAX_REASON else f"{words[:_MAX_REASON]}..."


def say_damaged(path: pathlib.Path, error: BaseException) -> None:
    """Logs that a file is damaged and will be made again."""
    logging.warning("%s is damaged (%s); it is done again", path, reason(error))


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write to, which then becomes `path`, or is deleted on an error.

    Raises:
      InputError: The file cannot be written. What was at `path` before is untouched.
    """
    temp_path = path.with_name(name_beside(path.name))
    try:
        with write_errors_explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temp_path
            with open(temp_path, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temp_path, path)
    finally:
        with contextlib.suppress(OSError):
            temp_path.unlink()


@contextlib.contextmanager
def write_errors_explained(
    path: pathlib.Path, instead: str = ANOTHER_PLACE
) -> Iterator[None]:
    """Turns errors while writing into `InputError`: a full disk, missing permission.

    A full disk may raise TensorFlow's errors as well as Python's.

    Args:
      path: The path that is written.
      instead: What the user can do instead, as the beginning of a sentence.
    """
    try:
        yield
    except Exception as error:
        codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        text = str(error)
        is_full = getattr(error, "errno", None) in codes or any(
            os.strerror(code) in text for code in codes
        )
        if is_full:
            raise InputError(
                f"no space is left on the disk to write {path}; what was there before "
                "is kept. Free some space, then repeat the command to continue."
            ) from error
        if not isinstance(error, OSError):
            raise
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}. {instead}, or get "
            "permission to write there."
        ) from error


def what_failed(error: OSError) -> str | None:
    """The system's error about a file, as a sentence; None if it names no file."""
    if error.filename is None:
        return None
    path = os.fsdecode(error.filename)
    reason = error.strerror or str(error)
    if os.path.islink(path) and not os.path.exists(path):
        reason = "it is a broken link"
    return (
        f"{path} cannot be used: {reason}. Give another file or directory, or get "
        "permission to use this one."
    )


def opened(path: str | os.PathLike) -> BinaryIO:
    """Opens a file to read bytes; never waits for a pipe or a device.

    Raises:
      OSError: It cannot be opened, or is not a regular file.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(number, "rb")
    os.close(number)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))


def read_bytes(path: str | os.PathLike, largest: int | None = None) -> bytes:
    """The bytes of a file; raises as `opened` and `check_size` do."""
    with opened(path) as file:
        if largest is not None:
            check_size(os.fstat(file.fileno()).st_size, largest, str(path))
        return file.read()


def check_size(size: int, largest: int, name: str) -> None:
    """Raises `InputError` for a foreign file that would fill the memory.

    Args:
      size: Its size in bytes, once unpacked.
      largest: The largest size of a valid file of its kind.
      name: Its name, for the message.
    """
    if size > largest:
        raise InputError(
            f"'{name}' would take {size:,} bytes of memory, but at most {largest:,} "
            "are allowed; it is damaged or not the kind of file that its name says. "
            "Download it again, or remove it."
        )


def check_unpacked(path: str | os.PathLike) -> None:
    """Raises `InputError` for a zip file that unpacks to many times its size.

    Weights hardly shrink when they are packed, so such a file is made to fill the
    memory. Files that are not zips are not checked.

    Raises:
      Exception: One of DAMAGED; the zip's list of files cannot be read.
    """
    with opened(path) as file:
        if not zipfile.is_zipfile(file):
            return
        packed = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    check_unpacked_size(size, packed, str(path))


def check_unpacked_size(size: int, packed: int, name: str) -> None:
    """Raises `InputError` if `size` bytes of weights are packed into too few bytes."""
    check_size(size, max(_SMALL, _MAX_EXPANSION * packed), name)


def read_text(path: str | os.PathLike) -> str:
    """The text of a file in UTF-8; raises as `opened` does, or `UnicodeDecodeError`."""
    return read_bytes(path).decode()


def read_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file; raises one of DAMAGED."""
    return json.loads(read_bytes(path))


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or damaged."""
    try:
        return dict(read_json(path))
    except DAMAGED:
        return {}


def listed(folder: pathlib.Path) -> list[pathlib.Path]:
    """All that is in a folder, sorted by name; empty if there is no such folder."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def settle(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Some file systems do not support it.
            raise
    finally:
        os.close(number)


def name_beside(name: str) -> str:
    """The name of a file while it is written; it keeps the suffix."""
    # Processes on two machines may have the same pid.
    return f".{os.getpid()}{secrets.randbelow(10**6):06d}.{name}"


def cut(name: str, limit: int) -> str:
    """Cuts a name to at most `limit` bytes of UTF-8, in whole characters."""
    return name.encode()[:limit].decode(errors="ignore")


def is_leftover(name: str) -> bool:
    """Whether a name is that of a file while it is written (`name_beside`)."""
    return bool(_TEMPORARY_NAME.fullmatch(name))


def is_systems(name: str) -> bool:
    """Whether a name is one of those that systems add to any folder."""
    return bool(_SYSTEM_NAMES.fullmatch(name))


def clear_leftovers(*folders: pathlib.Path) -> None:
    """Deletes what killed processes were writing in folders that we have locked."""
    for folder in folders:
        for file in listed(folder):
            if is_leftover(file.name) and file.is_file():
                file.unlink()


def digest(facts: Any) -> str:
    """The SHA-256 of a JSON value, by which finished work is found."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with whole_file(path) as temp_path:
        temp_path.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; see `json_text`."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Returns a value as JSON; refuses NaN, which JSON lacks."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_csv(
    path: pathlib.Path,
    records: Sequence[Mapping[str, Any]],
    columns: Sequence[str] = (),
) -> None:
    """Writes a CSV file whole or not at all; see `csv_text`."""
    write_text(path, csv_text(records, columns))


def csv_text(records: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Returns records as CSV: a row per record.

    Lists are joined by `+`, tables are `NAME:VALUE` joined so, and intervals become two
    columns. A text that a spreadsheet would run as a formula comes after a `'`.

    Args:
      records: Its rows.
      columns: The names of its columns; by default all that records have.
    """
    rows = [_flatten(record) for record in records]
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _flatten(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without lists and tables, as `csv_text` writes it."""
    row = {}
    for name, value in record.items():
        if name.endswith("interval"):
            row[f"{name}_low"], row[f"{name}_high"] = value or (None, None)
            continue
        if isinstance(value, Mapping):
            value = [f"{key}:{item}" for key, item in value.items()]
        if isinstance(value, list | tuple):
            value = "+".join(map(str, value))
        if isinstance(value, str) and value.startswith(_FORMULA):
            value = f"'{value}"
        row[name] = value
    return row


class InUse(InputError):
    """Another process holds a directory."""


@contextlib.contextmanager
def locked(
    workdir: pathlib.Path,
    shared: bool = False,
    instead: str = ANOTHER_PLACE,
) -> Iterator[None]:
    """Locks a run directory for this process; the lock ends with it, even if killed.

    Deletes what killed processes have left in it, but not in its subfolders.

    Args:
      workdir: The directory, which need not exist.
      shared: Share the lock with others that share it, and delete nothing.
      instead: See `write_errors_explained`.

    Raises:
      InUse: Another process holds the lock.
      InputError: The directory cannot be written.
    """
    with write_errors_explained(workdir, instead):
        workdir.mkdir(parents=True, exist_ok=True)
        lock_file = open(workdir / ".lock", "a+")  # noqa: SIM115  (closed below)
    with lock_file as file:
        try:
            lock(file, shared=shared)
        except BlockingIOError as error:
            file.seek(0)
            raise InUse(
                f"the run directory {workdir} is in use by another process (pid "
                f"{file.read().strip() or 'unknown'}); wait for it, stop it, or give "
                "another directory."
            ) from error
        with write_errors_explained(workdir, instead):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        if not shared:
            clear_leftovers(workdir)
        yield


def lock(file: IO[Any], wait: bool = False, shared: bool = False) -> None:
    """Locks an open file for this process; warns if the file system has no locks.

    Raises:
      BlockingIOError: Another process holds the lock, and `wait` is false.
    """
    if error := flock(file, wait, shared):
        logging.warning(
            "%s cannot be locked (%s): do not run a second command in this directory",
            file.name,
            error.strerror,
        )


def flock(file: IO[Any], wait: bool = False, shared: bool = False) -> OSError | None:
    """Locks an open file; returns the system's error if it has no locks, else None.

    Raises:
      BlockingIOError: Another process holds the lock, and `wait` is false.
    """
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return error
    return None
