# SPDX-License-Identifier: Apache-2.0
"""Run directories at addresses such as gs://bucket/run, used through local copies.

Inside `copies`, each address has a folder of its own in a temporary folder. What a
command reads is downloaded when it is named (`fetched`). A folder that a command writes
(`held`) is updated at its address whenever a piece of work is finished (`push`): first
new and changed files, then deletions. Files that say that others are complete are
uploaded last, so that an upload that stops halfway is never taken for a finished one.

Other code knows local paths only. Log lines and errors inside `copies` name the address
instead of the copy.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import datetime
import fcntl
import json
import logging as standard_logging
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from typing import IO

from absl import logging

from mtr_tf import files
from mtr_tf.cli import stopping
from mtr_tf.data import turns
from mtr_tf.errors import InputError
from mtr_tf.runs import addresses
from mtr_tf.runs import checkpoints
from mtr_tf.runs.addresses import Place

_PREFIX, _IN_USE = "mtr_tf-copy-", "in_use"  # Of temporary folders.
RUNNING = ".running"  # The process that writes, as JSON; only at the address.
_SETTINGS_FILES = ("config.json", "train.flags")
_MODEL = "model.keras"
_CHECKPOINTS = "checkpoints/"
_MAX_DEPTH = 3  # Levels from a checkpoint up to its run.
# Suffixes of files that say that arrays, shards or models are complete.
_MARKERS = (".json", ".index", ".flags")

_State = dict[str, tuple[int, int, int]]


class NotUploaded(InputError):
    """A local copy differs from its address; the message names both."""


@dataclasses.dataclass
class _Copy:
    """The local copy of a folder at an address.

    Attributes:
      address: The address of the folder.
      folder: The path of the copy, created with its first file.
      place: The folder at the address.
      fetched: The names of the files that have been asked for.
    """

    address: str
    folder: pathlib.Path
    place: Place
    fetched: set[str] = dataclasses.field(default_factory=set)

    def get(self, names: list[str], dated: bool = False) -> None:
        """Downloads files that are not here yet, except any that no longer exist.

        `dated`: also set the times at which they were written.
        """
        names = [name for name in names if name not in self.fetched]
        self.fetched.update(names)
        if names:
            logging.info("downloading from %s (files: %d)", self.address, len(names))
        with addresses.explained(self.address, "read"):
            for name in names:
                file = self.folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    self.place.get(name, file)
                    if dated:
                        os.utime(file, (self.place.modified(name),) * 2)


class _Copies:
    """All copies of a command, in one temporary folder."""

    def __init__(self):
        self._folder: pathlib.Path | None = None
        self._lock: IO[str] | None = None
        self._kept = False
        self._of: dict[str, _Copy] = {}
        self.found: dict[str, pathlib.Path] = {}  # By addresses of models.
        self.held: list[_HeldFolder] = []

    def of(self, address: str, flag: str) -> _Copy:
        """The copy of the folder at an address, of the same name and empty at first."""
        if address not in self._of:
            place = addresses.place(address, flag)
            if self._folder is None:
                _clear_leftovers()
                self._folder = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX))
                self._lock = _lock_folder(self._folder)
            name = address.rpartition("/")[2] or "root"
            folder = self._folder / str(len(self._of)) / name
            self._of[address] = _Copy(address, folder, place)
        return self._of[address]

    def around(self, folder: pathlib.Path) -> _Copy | None:
        """The copy that a folder is or lies in."""
        for copy in self._of.values():
            if folder.is_relative_to(copy.folder):
                return copy
        return None

    def named(self, text: str) -> str:
        """A text with addresses in place of the paths of their copies."""
        for copy in self._of.values():
            text = text.replace(str(copy.folder), copy.address)
        return text

    def filter(self, record: standard_logging.LogRecord) -> bool:
        """Lets a log line pass, with addresses in place of paths."""
        record.msg, record.args = self.named(record.getMessage()), ()
        return True

    def rename(self, error: BaseException) -> None:
        """Replaces the paths in an error by addresses."""
        if isinstance(error, NotUploaded):  # It names both.
            return
        error.args = tuple(
            self.named(part) if isinstance(part, str) else part for part in error.args
        )
        if isinstance(error, OSError) and isinstance(error.filename, str):
            error.filename = self.named(error.filename)

    def is_whole(self) -> bool:
        """Whether nobody else has deleted the copies, or begun to."""
        return self._kept or not self._folder or (self._folder / _IN_USE).is_file()

    def keep(self) -> None:
        """Keeps the copies after the command has ended, for the user to save."""
        self._kept = True
        if self._folder:
            (self._folder / _IN_USE).unlink(missing_ok=True)

    def end(self) -> None:
        """Deletes the copies, unless they are kept."""
        if self._folder and not self._kept:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock:
            self._lock.close()


def _lock_folder(folder: pathlib.Path) -> IO[str]:
    """Marks a temporary folder as in use for as long as this process lives."""
    file = open(folder / f"{_IN_USE}.new", "w")  # noqa: SIM115  (closed at the end)
    file.write(_machine())
    file.flush()
    with contextlib.suppress(OSError):  # The file system may have no locks.
        fcntl.flock(file, fcntl.LOCK_EX)
    os.rename(file.name, folder / _IN_USE)
    return file


def _machine() -> str:
    """A text for this machine since its start: within that, locks of files hold."""
    return f"{socket.gethostname()} {turns.machine()}"


def _clear_leftovers() -> None:
    """Deletes the temporary folders of killed commands of this machine.

    Those of other machines stay: their locks may not be visible here.
    """
    for folder in pathlib.Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Skips folders of other users, in use, kept, or without locks.
        with contextlib.suppress(OSError), open(folder / _IN_USE, "r+") as file:
            if file.read() != _machine():
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / _IN_USE).unlink()  # First: a half-deleted one is not in use.
            shutil.rmtree(folder, ignore_errors=True)


_current: contextvars.ContextVar[_Copies | None] = contextvars.ContextVar(
    "copies", default=None
)


@contextlib.contextmanager
def copies() -> Iterator[None]:
    """Lets addresses be used inside; their copies are deleted at the end."""
    if _current.get():
        yield
        return
    all_copies = _Copies()
    token = _current.set(all_copies)
    logger = logging.get_absl_logger()
    logger.addFilter(all_copies)
    try:
        yield
    except (InputError, OSError, KeyboardInterrupt) as error:
        all_copies.rename(error)
        raise
    finally:
        logger.removeFilter(all_copies)
        _current.reset(token)
        all_copies.end()


def named(text: str) -> str:
    """A text to print or save, with addresses in place of the paths of their copies."""
    all_copies = _current.get()
    return all_copies.named(text) if all_copies else text


def shown(path: str | os.PathLike) -> pathlib.Path | str:
    """A path, or an address as text: a `pathlib.Path` would lose a slash of `//`."""
    return addresses.normal(path) if files.is_remote(path) else pathlib.Path(path)


def local(path: str | os.PathLike, flag: str) -> pathlib.Path:
    """The local path of a path or address; nothing is downloaded.

    Args:
      path: The path or address that the user has given.
      flag: The flag or argument that it was given to, for messages.

    Raises:
      InputError: It is an address that cannot be reached from here.
    """
    if not files.is_remote(path):
        return pathlib.Path(path)
    return _current_copies(flag, path).of(addresses.normal(path), flag).folder


def names(path: str | os.PathLike, flag: str) -> set[str]:
    """The names in a folder, or in the folder at an address; nothing is downloaded.

    For the arguments see `local`.

    Raises:
      InputError: The address cannot be reached or read.
    """
    if not files.is_remote(path):
        return {file.name for file in files.listed(pathlib.Path(path))}
    copy = _current_copies(flag, path).of(addresses.normal(path), flag)
    return {name.split("/")[0] for name in _names_of_run(copy)}


def _current_copies(flag: str, path: str | os.PathLike) -> _Copies:
    all_copies = _current.get()
    if not all_copies:
        files.check_local(flag, path)
        raise TypeError("addresses must be used inside `copies`.")
    return all_copies


def fetched(path: str | os.PathLike, flag: str) -> pathlib.Path:
    """The local path of a model; downloads what is needed to load it.

    Args:
      path: A path, or the address of a run, of something in a run, of a file or of a
        SavedModel.
      flag: The flag or argument that it was given to, for messages.

    Raises:
      InputError: The address cannot be reached or read.
    """
    if not files.is_remote(path):
        return pathlib.Path(path)
    all_copies, address = _current_copies(flag, path), addresses.normal(path)
    if address not in all_copies.found:
        all_copies.found[address] = _fetch_model(all_copies, address, flag)
    return all_copies.found[address]


def _fetch_model(all_copies: _Copies, address: str, flag: str) -> pathlib.Path:
    """Downloads the model at an address; returns its local path."""
    parts = address.partition("://")[2].split("/")
    for depth in range(min(_MAX_DEPTH + 1, len(parts))):
        root = address.rsplit("/", depth)[0]
        copy = all_copies.of(root, flag)
        with addresses.explained(root, "read"):
            if all(copy.place.exists(name) for name in _SETTINGS_FILES):
                inner_path = address[len(root) :].strip("/")
                _fetch_run(copy, inner_path)
                return copy.folder / inner_path
    folder, _, file_name = address.rpartition("/")
    parent = all_copies.of(folder, flag)
    with addresses.explained(address, "read"):
        is_file = parent.place.exists(file_name)
    if is_file:
        parent.get([file_name])
        return parent.folder / file_name
    copy = all_copies.of(address, flag)
    with addresses.explained(address, "read"):
        names = copy.place.names()
    if names:
        copy.folder.mkdir(parents=True, exist_ok=True)
    if "saved_model.pb" in names:
        copy.get(names)
    return copy.folder


def _fetch_run(copy: _Copy, inner_path: str) -> None:
    """Downloads what is needed to load a run, or what is at `inner_path` in it."""
    copy.get(list(_SETTINGS_FILES))
    if f"{inner_path}/".startswith(_CHECKPOINTS):
        names = [name for name in _names_of_run(copy) if name.startswith(_CHECKPOINTS)]
    elif inner_path:
        names = [inner_path]
        if not copy.place.exists(inner_path):  # A folder (a SavedModel) or nothing.
            names = [
                name
                for name in _names_of_run(copy)
                if name.startswith(f"{inner_path}/")
            ]
    elif copy.place.exists(_MODEL):
        names = [_MODEL]
    else:
        names = [name for name in _names_of_run(copy) if name.startswith(_CHECKPOINTS)]
    copy.get(names)


def fetched_results(path: str | os.PathLike, flag: str) -> pathlib.Path:
    """The local path of a run's attack results; downloads them if necessary.

    Args:
      path: A path, or the address of a run or of a folder RUN/attacks/NAME.
      flag: The flag or argument that it was given to, for messages.

    Raises:
      InputError: The address cannot be reached or read.
    """
    if not files.is_remote(path):
        return pathlib.Path(path)
    copy = _current_copies(flag, path).of(addresses.normal(path), flag)
    file_names = ("results.json", "settings.json", "config.json")
    copy.get(
        [n for n in _names_of_run(copy) if n.split("/")[-1] in file_names], dated=True
    )
    return copy.folder


def _names_of_run(copy: _Copy) -> list[str]:
    """The names of the files at an address that are part of a run."""
    with addresses.explained(copy.address, "read"):
        return [name for name in copy.place.names() if _is_run_file(name)]


def _is_run_file(name: str) -> bool:
    """Whether a file is part of a run, not a lock or a temporary file of a process."""
    parts = name.split("/")
    file_name = parts[-1]
    return file_name not in (RUNNING, ".lock") and not (
        files.is_leftover(file_name) or any(map(checkpoints.is_broken_off, parts))
    )


@contextlib.contextmanager
def held(folder: pathlib.Path, skip: str = "\n") -> Iterator[None]:
    """Reserves a folder for this process and downloads it; uploads it at the end.

    Does nothing unless the folder is, or lies in, the copy of an address.

    Args:
      folder: The local path of the folder.
      skip: Files whose names begin with this are ignored.

    Raises:
      InUse: Another process of this machine writes there.
      NotUploaded: The folder could not be uploaded.
    """
    all_copies = _current.get()
    copy = all_copies and all_copies.around(folder)
    if not all_copies or not copy:
        yield
        return
    held_folder = _HeldFolder(all_copies, copy, folder, skip)
    held_folder.take()
    try:
        held_folder.download()
    except BaseException:
        held_folder.leave()
        raise
    all_copies.held.append(held_folder)
    try:
        yield
    except NotUploaded:
        raise
    except BaseException:
        with stopping.noted():  # What is not uploaded now will be deleted.
            held_folder.end()
        raise
    else:
        with stopping.later():
            held_folder.end()
    finally:
        all_copies.held.remove(held_folder)


def push(folder: pathlib.Path, needed: bool = False) -> None:
    """Uploads what has changed in a `held` folder that `folder` is or lies in.

    If the upload fails, that is logged, and the next one tries again.

    Args:
      folder: Any folder.
      needed: Whether to raise if the upload fails.

    Raises:
      NotUploaded: The upload failed and is needed; or another process has taken over
        the folder, or files of its copy were deleted.
    """
    all_copies = _current.get()
    for held_folder in all_copies.held if all_copies else ():
        if folder.is_relative_to(held_folder.folder):
            held_folder.push(needed)


class _HeldFolder:
    """A folder in a copy, which this process writes."""

    def __init__(
        self, all_copies: _Copies, copy: _Copy, folder: pathlib.Path, skip: str
    ) -> None:
        self.folder = folder
        self._all_copies, self._place, self._skip = all_copies, copy.place, skip
        inner_path = folder.relative_to(copy.folder).as_posix()
        self._inner = "" if inner_path == "." else f"{inner_path}/"
        self._address = f"{copy.address}/{self._inner}".rstrip("/")
        self._copy = copy
        self._known: _State = {}  # The state at the address.
        self._me = {
            "host": socket.gethostname(),
            "system": turns.machine(),
            "pid": os.getpid(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(),
        }

    def take(self) -> None:
        """Records at the address that this process writes there.

        Raises:
          InUse: Another process of this machine writes there.
        """
        writer = self._writer()
        if writer and self._runs_here(writer):
            raise files.InUse(
                f"the run directory {self._address} is in use by another process (pid "
                f"{writer['pid']}); wait for it, stop it, or give another directory."
            )
        if writer:
            logging.warning(
                "%s was last written by process %s on %s since %s, which did not say "
                "that it has ended; if it still runs, it stops at its next upload",
                self._address,
                writer.get("pid"),
                writer.get("host"),
                writer.get("since"),
            )
        with addresses.explained(self._address, "written"):
            self._put_text(RUNNING, json.dumps(self._me))

    def download(self) -> None:
        """Downloads the folder; deletes at its address what killed processes left."""
        with addresses.explained(self._address, "read"):
            names = self._copy.place.names()
        self._copy.get([name for name in names if self._is_uploaded(name)])
        self.folder.mkdir(parents=True, exist_ok=True)
        self._known = self._state()
        for name in names:  # From processes that were killed while writing.
            if self._is_inside(name) and files.is_leftover(name.split("/")[-1]):
                with addresses.explained(self._address, "written"):
                    self._place.remove(name)

    def _is_uploaded(self, name: str) -> bool:
        return self._is_inside(name) and _is_run_file(name)

    def _is_inside(self, name: str) -> bool:
        inner_name = name.removeprefix(self._inner)
        return name.startswith(self._inner) and not inner_name.startswith(self._skip)

    def _state(self) -> _State:
        """(mtime, size, inode) of each file that is uploaded, by its name in the copy.

        Raises:
          OSError: A folder cannot be read, so its files are not known.
        """
        state = {}
        for folder, _, names in os.walk(self.folder, onerror=_raise_error):
            for file_name in names:
                file = pathlib.Path(folder, file_name)
                name = file.relative_to(self._copy.folder).as_posix()
                if self._is_uploaded(name):
                    facts = file.stat()
                    state[name] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        return state

    def push(self, needed: bool) -> None:
        """Uploads new and changed files, then deletes those that were deleted here."""
        try:
            self._check_copy()
            state = self._state()
            if state == self._known:
                return
            self._check_copy(state)
            writer = self._writer()
            if writer != self._me:
                raise self._takeover_error(writer)
            changed_names = [
                name for name in state if state[name] != self._known.get(name)
            ]
            for name in sorted(
                changed_names, key=lambda name: _upload_order(name, state[name])
            ):
                self._place.put(self._copy.folder / name, name)
                self._known[name] = state[name]
            for name in sorted(self._known.keys() - state.keys(), reverse=True):
                self._place.remove(name)
                del self._known[name]
        except NotUploaded:
            raise
        except Exception as error:  # Its type depends on the file system.
            cause = error.__cause__ if isinstance(error, InputError) else error
            problem = (
                f"{self._address} could not be brought up to date "
                f"({type(cause).__name__}: {files.reason(cause or error)})"
            )
            if not needed:
                logging.warning("%s; the next upload tries again", problem)
                return
            self._all_copies.keep()
            raise NotUploaded(
                f"{problem}; all of it is in {self.folder}: copy it there, or repeat "
                "the command, which does again what is missing."
            ) from error

    def _check_copy(self, state: _State | None = None) -> None:
        """Raises `NotUploaded` if something else has deleted the copy or parts of it.

        Such files must not be deleted at the address. `state`: the files that are here.
        """
        config = f"{self._inner}config.json"
        lost_config = (
            state is not None and config in self._known and config not in state
        )
        if self.folder.is_dir() and self._all_copies.is_whole() and not lost_config:
            return
        self._all_copies.keep()
        raise NotUploaded(
            f"{self._address} stays as it was at the last upload, because something "
            f"else has deleted files of its copy in {self.folder}; let TMPDIR name a "
            "folder of this machine that nothing clears, and repeat the command, "
            "which does again what is missing."
        )

    def end(self) -> None:
        """Uploads the rest, and records that this process has ended."""
        self.push(needed=True)
        self.leave()

    def leave(self) -> None:
        """Records at the address that this process no longer writes there."""
        with contextlib.suppress(Exception):  # Otherwise the next process only warns.
            if self._writer() == self._me:
                self._place.remove(self._inner + RUNNING)

    def _writer(self) -> dict | None:
        """The record of the process that writes there or wrote last, or None."""
        with addresses.explained(self._address, "read"):
            text = self._place.read(self._inner + RUNNING)
        try:
            record = json.loads(text) if text else None
        except ValueError:
            return None
        return record if isinstance(record, dict) else None

    def _runs_here(self, writer: dict) -> bool:
        """Whether a writer is another process of this machine that still runs."""
        pid = writer.get("pid")
        # After a restart of the machine, the pid may belong to anything.
        same_machine = all(
            writer.get(k, self._me[k]) == self._me[k] for k in ("host", "system")
        )
        if not same_machine or not isinstance(pid, int) or pid == os.getpid():
            return False
        try:
            os.kill(pid, 0)  # Only checks; sends no signal.
        except OSError as error:
            return isinstance(error, PermissionError)
        return True

    def _put_text(self, file_name: str, text: str) -> None:
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            self._place.put(pathlib.Path(file.name), self._inner + file_name)

    def _takeover_error(self, writer: dict | None) -> NotUploaded:
        self._all_copies.keep()
        new_owner = "another process"
        if writer:
            new_owner = f"process {writer.get('pid')} on {writer.get('host')}"
        return NotUploaded(
            f"{self._address} has been taken over by {new_owner}, so this process "
            f"ends; what it has not uploaded is in {self.folder}."
        )


def _raise_error(error: OSError) -> None:
    raise error


def _upload_order(name: str, state: tuple[int, int, int]) -> tuple:
    """A sort key: oldest first, then the files that say that others are complete."""
    file_name = name.rpartition("/")[2]
    return file_name.endswith(_MARKERS) or file_name == checkpoints.LIST, state[0], name
