# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, JSON, CSV, and locks on directories.

Each file is written under another name, flushed and renamed. Files to read are opened
here too, so that anything but a plain file is refused, and all system errors are
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
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


LONGEST_NAME = 255  # Bytes that file systems take.
_MOST_UNPACKED = 20  # Times the size of a zip file of weights.
_PICTURES = (".png", ".pdf", ".svg")
_FEW_WORDS = 200  # Characters.
_SMALL = 2**26  # Bytes that any zip file may have inside.
_FORMULA = tuple(
    "=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}"
    "\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)
ANOTHER_PLACE = "Give another directory"  # What to do where one cannot be written.
_BESIDE = re.compile(r"\.\d+\..+")  # What a file is called while it is written.
# What file servers and desktops put into any folder: .DS_Store, .snapshot, @eaDir,
# #recycle, ~snapshot, $RECYCLE.BIN, Thumbs.db.
_SYSTEMS = re.compile(
    r"[.@#~$].*|(eh)?thumbs\.db|desktop\.ini|lost\+found|system volume information",
    re.IGNORECASE,
)
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+:/")  # pathlib leaves one / of two.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is an address such as gs://bucket/run, and no file of here."""
    return bool(_REMOTE.match(os.fspath(path)))


def check_local(name: str, path: str | os.PathLike) -> None:
    """Raises `InputError` for an address, which would become a local folder `gs:`.

    Args:
      name: Of the flag or argument, for the message.
      path: What it was given.
    """
    if is_remote(path):
        raise InputError(
            f"{name} must be a path in this machine's file system; got "
            f"{os.fspath(path)!r}. Mount it as a folder or copy it, and give the "
            "local path."
        )


def check_picture(name: str, path: str | os.PathLike) -> None:
    """Raises `InputError` unless plots can be written into a file of that ending."""
    if pathlib.Path(path).suffix.lower() not in _PICTURES:
        raise InputError(
            f"{name} must end with {', '.join(_PICTURES[:-1])} or {_PICTURES[-1]}; got "
            f"{os.fspath(path)!r}."
        )


def reason(error: BaseException) -> str:
    """Why a file cannot be read, in a few words on one line."""
    words = getattr(error, "strerror", None) or " ".join(str(error).split())
    words = words or type(error).__name__
    return words if len(words) <= _FEW_WORDS else f"{words[:_FEW_WORDS]}..."


def say_damaged(path: pathlib.Path, error: BaseException) -> None:
    """Logs that a file is damaged and will be made again."""
    logging.warning("%s is damaged (%s); it is done again", path, reason(error))


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write to; it becomes `path` if all went well, else it is gone.

    Raises:
      InputError: the disk is full. What stood at `path` before is untouched.
    """
    beside = path.with_name(name_beside(path.name))
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
def write_errors_explained(
    path: pathlib.Path, instead: str = ANOTHER_PLACE
) -> Iterator[None]:
    """Turns errors while writing into `InputError`: a full disk, missing permission.

    A full disk may raise TensorFlow's errors as well as Python's.

    Args:
      path: What is written.
      instead: What else the user can do where it cannot be, as a sentence begins.
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
                "is kept. Free some space, then repeat the command to continue."
            ) from error
        if not isinstance(error, OSError):
            raise
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}. {instead}, or get "
            "permission to write there."
        ) from error


def what_failed(error: OSError) -> str | None:
    """The system's word about a file, as a sentence; None if it is not about one."""
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
      OSError: It cannot be opened, or is not a plain file.
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
    """What is in a file; raises as `opened` does, and as `check_size`."""
    with opened(path) as file:
        if largest is not None:
            check_size(os.fstat(file.fileno()).st_size, largest, str(path))
        return file.read()


def check_size(size: int, largest: int, name: str) -> None:
    """Raises `InputError` for somebody else's file if it would fill the memory.

    Args:
      size: In bytes, once it is unpacked.
      largest: The most that a valid file of its kind may have.
      name: The file's, for the message.
    """
    if size > largest:
        raise InputError(
            f"'{name}' would take {size:,} bytes of memory, but at most {largest:,} "
            "are allowed; it is damaged or not the kind of file that its name says. "
            "Download it again, or remove it."
        )


def check_unpacked(path: str | os.PathLike) -> None:
    """Raises `InputError` for a zip file that holds far more than its size.

    Weights hardly shrink when they are packed, so a file that becomes many times larger
    is made to fill the memory. Files that are not zips are not checked.

    Raises:
      Exception: One of DAMAGED: the zip's list of files cannot be read.
    """
    with opened(path) as file:
        if not zipfile.is_zipfile(file):
            return
        packed = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    check_unpacked_size(size, packed, str(path))


def check_unpacked_size(size: int, packed: int, name: str) -> None:
    """Raises `InputError` for weights of `size` bytes that are packed into so few."""
    check_size(size, max(_SMALL, _MOST_UNPACKED * packed), name)


def read_text(path: str | os.PathLike) -> str:
    """The text of a file in UTF-8; raises as `opened` does, or `UnicodeDecodeError`."""
    return read_bytes(path).decode()


def read_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file; raises one of DAMAGED."""
    return json.loads(read_bytes(path))


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON file's object; empty where there is none, or a damaged one."""
    try:
        return dict(read_json(path))
    except DAMAGED:
        return {}


def listed(folder: pathlib.Path) -> list[pathlib.Path]:
    """What is in a folder, by names; nothing where there is none."""
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
        if error.errno != errno.EINVAL:  # Of file systems that know no such thing.
            raise
    finally:
        os.close(number)


def name_beside(name: str) -> str:
    """What a file is called while it is written; it keeps the suffix."""
    # Processes of two machines may have one number.
    return f".{os.getpid()}{secrets.randbelow(10**6):06d}.{name}"


def cut(name: str, most: int) -> str:
    """Returns what of a name fits into so many bytes, in whole characters."""
    return name.encode()[:most].decode(errors="ignore")


def is_leftover(name: str) -> bool:
    """Whether a file is called as one is while it is written."""
    return bool(_BESIDE.fullmatch(name))


def is_systems(name: str) -> bool:
    """Whether a file or folder is called as those that a system adds to any folder."""
    return bool(_SYSTEMS.fullmatch(name))


def clear_leftovers(*folders: pathlib.Path) -> None:
    """Deletes what killed processes were writing in folders, which we have locked."""
    for folder in folders:
        for file in listed(folder):
            if is_leftover(file.name) and file.is_file():
                file.unlink()


def digest(facts: Any) -> str:
    """A hash of what JSON can say, by which finished work is known (SHA-256)."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


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
    with (
        whole_file(path) as beside,
        open(beside, "w", newline="", encoding="utf-8") as file,
    ):
        file.write(csv_text(records, columns))


def csv_text(records: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Returns records as CSV: a row per record.

    Lists are joined by `+`, tables are `NAME:VALUE` joined so, and intervals become two
    columns. A text that a spreadsheet would run as a formula comes after a `'`.

    Args:
      records: Its rows.
      columns: The names of its columns; by default all that records have.
    """
    rows = [_flat(record) for record in records]
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    written = io.StringIO()
    writer = csv.DictWriter(written, columns)
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


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
    return f"'{words}" if words.startswith(_FORMULA) else words


class InUse(InputError):
    """Another process holds a directory."""


@contextlib.contextmanager
def locked(
    workdir: pathlib.Path,
    shared: bool = False,
    instead: str = ANOTHER_PLACE,
) -> Iterator[None]:
    """Holds a run directory for this process; the lock ends with it, even if killed.

    What killed processes have left in it (but not in folders of it) goes.

    Args:
      workdir: the directory, which need not exist.
      shared: hold it together with others that share it, and delete nothing.
      instead: see `write_errors_explained`.

    Raises:
      InUse: another process holds it.
      InputError: it cannot be written.
    """
    with write_errors_explained(workdir, instead):
        workdir.mkdir(parents=True, exist_ok=True)
        held = open(workdir / ".lock", "a+")  # noqa: SIM115  (closed below)
    with held as file:
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
    """Locks an open file for this process; says so where the file system has no locks.

    Raises:
      BlockingIOError: another process holds it, and we do not wait.
    """
    if error := flock(file, wait, shared):
        logging.warning(
            "%s cannot be locked (%s): do not run a second command in this directory",
            file.name,
            error.strerror,
        )


def flock(file: IO[Any], wait: bool = False, shared: bool = False) -> OSError | None:
    """Locks an open file for this process; what the system says if it has no locks.

    Raises:
      BlockingIOError: another process holds it, and we do not wait.
    """
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return error
    return None
