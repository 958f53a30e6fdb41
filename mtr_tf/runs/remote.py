# SPDX-License-Identifier: Apache-2.0
"""Run directories at addresses, such as gs://bucket/run, worked on in a copy here.

Inside `copies`, an address stands for a folder of its own in a temporary one. What a
command reads is downloaded when it is named (`fetched`); a folder that a command writes
(`held`) is brought up to date at its address whenever a piece of work is finished
(`push`): first what is new or changed, then deletions. Files that say that others are
complete come last, so a stop between any two leaves nothing that is taken for finished.

Code in between knows local paths only. What is logged and raised inside `copies` names
the address instead.
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
RUNNING = ".running"  # Who writes, as JSON; only at the address.
_OF_RUNS = ("config.json", "train.flags")
_MODEL = "model.keras"
_CHECKPOINTS = "checkpoints/"
_DEEPEST = 3  # Folders from a checkpoint up to its run.
# Say that what was written before them is complete: arrays, shards, models.
_MARKERS = (".json", ".index", ".flags")

_State = dict[str, tuple[int, int, int]]


class NotUploaded(InputError):
    """A copy here is not what is at its address; the message names both."""


@dataclasses.dataclass
class _Copy:
    """The copy of a folder at an address.

    Attributes:
      address: Of the folder.
      folder: The copy, made when something comes into it.
      place: The folder at the address.
      fetched: Which files were asked for already.
    """

    address: str
    folder: pathlib.Path
    place: Place
    fetched: set[str] = dataclasses.field(default_factory=set)

    def get(self, names: list[str], dated: bool = False) -> None:
        """Downloads files that are not here yet; one that is gone by now is left out.

        `dated`: with the times at which they were written.
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
        self.held: list[_Held] = []

    def of(self, address: str, flag: str) -> _Copy:
        """The copy of a folder, empty at first; it has the folder's name."""
        if address not in self._of:
            place = addresses.place(address, flag)
            if self._folder is None:
                _clear_killed()
                self._folder = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX))
                self._lock = _locked(self._folder)
            name = address.rpartition("/")[2] or "root"
            folder = self._folder / str(len(self._of)) / name
            self._of[address] = _Copy(address, folder, place)
        return self._of[address]

    def around(self, folder: pathlib.Path) -> _Copy | None:
        """The copy that a folder is, or is in."""
        for copy in self._of.values():
            if folder.is_relative_to(copy.folder):
                return copy
        return None

    def named(self, text: str) -> str:
        """A text with addresses for the paths of their copies."""
        for copy in self._of.values():
            text = text.replace(str(copy.folder), copy.address)
        return text

    def filter(self, record: standard_logging.LogRecord) -> bool:
        """Lets a log line through, with addresses in it."""
        record.msg, record.args = self.named(record.getMessage()), ()
        return True

    def rename(self, error: BaseException) -> None:
        """Lets an error name addresses."""
        if isinstance(error, NotUploaded):  # It speaks of both.
            return
        error.args = tuple(
            self.named(part) if isinstance(part, str) else part for part in error.args
        )
        if isinstance(error, OSError) and isinstance(error.filename, str):
            error.filename = self.named(error.filename)

    def is_whole(self) -> bool:
        """Whether nobody else has begun to delete the copies."""
        return self._kept or not self._folder or (self._folder / _IN_USE).is_file()

    def keep(self) -> None:
        """Leaves the copies beyond the command's end, for the user to save."""
        self._kept = True
        if self._folder:
            (self._folder / _IN_USE).unlink(missing_ok=True)

    def end(self) -> None:
        """Deletes the copies."""
        if self._folder and not self._kept:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock:
            self._lock.close()


def _locked(folder: pathlib.Path) -> IO[str]:
    """Says that a temporary folder is in use, for as long as this process lives."""
    file = open(folder / f"{_IN_USE}.new", "w")  # noqa: SIM115  (closed at the end)
    file.write(_machine())
    file.flush()
    with contextlib.suppress(OSError):  # There may be no locks.
        fcntl.flock(file, fcntl.LOCK_EX)
    os.rename(file.name, folder / _IN_USE)
    return file


def _machine() -> str:
    """This machine since it started: where a lock of a file certainly holds."""
    return f"{socket.gethostname()} {turns.machine()}"


def _clear_killed() -> None:
    """Deletes the temporary folders of commands of this machine that were killed.

    Where several machines share the folder, each may have locks of its own.
    """
    for folder in pathlib.Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Of another user, in use, kept, or without locks.
        with contextlib.suppress(OSError), open(folder / _IN_USE, "r+") as file:
            if file.read() != _machine():
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / _IN_USE).unlink()  # First: what is half there is not in use.
            shutil.rmtree(folder, ignore_errors=True)


_current: contextvars.ContextVar[_Copies | None] = contextvars.ContextVar(
    "copies", default=None
)


@contextlib.contextmanager
def copies() -> Iterator[None]:
    """Addresses may be used inside; at the end their copies are deleted."""
    if _current.get():
        yield
        return
    made = _Copies()
    token = _current.set(made)
    logger = logging.get_absl_logger()
    logger.addFilter(made)
    try:
        yield
    except (InputError, OSError, KeyboardInterrupt) as error:
        made.rename(error)
        raise
    finally:
        logger.removeFilter(made)
        _current.reset(token)
        made.end()


def named(text: str) -> str:
    """A text to print or keep, with addresses for the paths of their copies."""
    made = _current.get()
    return made.named(text) if made else text


def shown(path: str | os.PathLike) -> pathlib.Path | str:
    """What Python code is given for a path or address: a path loses a slash of `//`."""
    return addresses.normal(path) if files.is_remote(path) else pathlib.Path(path)


def local(path: str | os.PathLike, flag: str) -> pathlib.Path:
    """Where the files of a path or address are here; nothing is downloaded.

    Args:
      path: What the user has given.
      flag: To which flag or argument, for messages.

    Raises:
      InputError: It is an address that nothing here can reach.
    """
    if not files.is_remote(path):
        return pathlib.Path(path)
    return _the_copies(flag, path).of(addresses.normal(path), flag).folder


def names(path: str | os.PathLike, flag: str) -> set[str]:
    """What a folder, or the folder at an address, holds; nothing is downloaded.

    Args:
      path: What the user has given.
      flag: To which flag or argument, for messages.

    Raises:
      InputError: The address cannot be reached or read.
    """
    if not files.is_remote(path):
        return {file.name for file in files.listed(pathlib.Path(path))}
    copy = _the_copies(flag, path).of(addresses.normal(path), flag)
    return {name.split("/")[0] for name in _listed(copy)}


def _the_copies(flag: str, path: str | os.PathLike) -> _Copies:
    made = _current.get()
    if not made:
        files.check_local(flag, path)
        raise TypeError("addresses must be used inside `copies`.")
    return made


def fetched(path: str | os.PathLike, flag: str) -> pathlib.Path:
    """Where a model is here, with what it takes to load it; downloads it if need be.

    Args:
      path: A path, or the address of a run, of something in one, of a file or of a
        SavedModel.
      flag: To which flag or argument it was given, for messages.

    Raises:
      InputError: The address cannot be reached or read.
    """
    if not files.is_remote(path):
        return pathlib.Path(path)
    made, address = _the_copies(flag, path), addresses.normal(path)
    if address not in made.found:
        made.found[address] = _fetch(made, address, flag)
    return made.found[address]


def _fetch(made: _Copies, address: str, flag: str) -> pathlib.Path:
    """Downloads what `fetched` returns."""
    parts = address.partition("://")[2].split("/")
    for depth in range(min(_DEEPEST + 1, len(parts))):
        root = address.rsplit("/", depth)[0]
        copy = made.of(root, flag)
        with addresses.explained(root, "read"):
            if all(copy.place.exists(name) for name in _OF_RUNS):
                inner = address[len(root) :].strip("/")
                _fetch_run(copy, inner)
                return copy.folder / inner
    folder, _, last = address.rpartition("/")
    parent = made.of(folder, flag)
    with addresses.explained(address, "read"):
        is_file = parent.place.exists(last)
    if is_file:
        parent.get([last])
        return parent.folder / last
    copy = made.of(address, flag)
    with addresses.explained(address, "read"):
        names = copy.place.names()
    if names:
        copy.folder.mkdir(parents=True, exist_ok=True)
    if "saved_model.pb" in names:
        copy.get(names)
    return copy.folder


def _fetch_run(copy: _Copy, inner: str) -> None:
    """Downloads what loads a run, or something in it: its model, or checkpoints."""
    copy.get(list(_OF_RUNS))
    if f"{inner}/".startswith(_CHECKPOINTS):
        wanted = [name for name in _listed(copy) if name.startswith(_CHECKPOINTS)]
    elif inner:
        wanted = [inner]
        if not copy.place.exists(inner):  # A folder, as of a SavedModel, or nothing.
            wanted = [name for name in _listed(copy) if name.startswith(f"{inner}/")]
    elif copy.place.exists(_MODEL):
        wanted = [_MODEL]
    else:
        wanted = [name for name in _listed(copy) if name.startswith(_CHECKPOINTS)]
    copy.get(wanted)


def fetched_results(path: str | os.PathLike, flag: str) -> pathlib.Path:
    """Where a run's results of attacks are here; downloads these files if need be.

    Args:
      path: A path, or the address of a run or of a folder RUN/attacks/NAME.
      flag: To which flag or argument it was given, for messages.

    Raises:
      InputError: The address cannot be reached or read.
    """
    if not files.is_remote(path):
        return pathlib.Path(path)
    copy = _the_copies(flag, path).of(addresses.normal(path), flag)
    wanted = ("results.json", "settings.json", "config.json")
    copy.get([n for n in _listed(copy) if n.split("/")[-1] in wanted], dated=True)
    return copy.folder


def _listed(copy: _Copy) -> list[str]:
    """What there is at its address, without what is no part of a run."""
    with addresses.explained(copy.address, "read"):
        return [name for name in copy.place.names() if _travels(name)]


def _travels(name: str) -> bool:
    """Whether a file is a part of a run, and nothing of one process."""
    parts = name.split("/")
    last = parts[-1]
    return last not in (RUNNING, ".lock") and not (
        files.is_leftover(last) or any(map(checkpoints.is_broken_off, parts))
    )


@contextlib.contextmanager
def held(folder: pathlib.Path, skip: str = "\n") -> Iterator[None]:
    """Takes a folder for this process and downloads it; uploads it at the end.

    Only where it is, or is in, the copy of an address; else nothing is done.

    Args:
      folder: The local path of the folder.
      skip: What the names of files begin with that are left alone.

    Raises:
      InUse: Another process of this machine writes there.
      NotUploaded: What was done could not be uploaded.
    """
    made = _current.get()
    copy = made and made.around(folder)
    if not made or not copy:
        yield
        return
    held = _Held(made, copy, folder, skip)
    held.take()
    try:
        held.download()
    except BaseException:
        held.leave()
        raise
    made.held.append(held)
    try:
        yield
    except NotUploaded:
        raise
    except BaseException:
        with stopping.noted():  # What is not uploaded then is deleted here.
            held.end()
        raise
    else:
        with stopping.later():
            held.end()
    finally:
        made.held.remove(held)


def push(folder: pathlib.Path, needed: bool = False) -> None:
    """Uploads what is new in a folder that is `held`, or in one that it is in.

    A push that fails is logged, and the next one uploads that too.

    Args:
      folder: Any folder.
      needed: Raise if it fails.

    Raises:
      InputError: Another process has taken the folder.
      NotUploaded: It fails, and is needed.
    """
    made = _current.get()
    for held in made.held if made else ():
        if folder.is_relative_to(held.folder):
            held.push(needed)


class _Held:
    """A folder in a copy that this process writes."""

    def __init__(
        self, made: _Copies, copy: _Copy, folder: pathlib.Path, skip: str
    ) -> None:
        self.folder = folder
        self._made, self._place, self._skip = made, copy.place, skip
        inner = folder.relative_to(copy.folder).as_posix()
        self._inner = "" if inner == "." else f"{inner}/"
        self._address = f"{copy.address}/{self._inner}".rstrip("/")
        self._copy = copy
        self._known: _State = {}  # As it is at the address.
        self._me = {
            "host": socket.gethostname(),
            "system": turns.machine(),
            "pid": os.getpid(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(),
        }

    def take(self) -> None:
        """Says at the address that this process writes there.

        Raises:
          InUse: Another one of this machine does.
        """
        other = self._running()
        if other and self._lives_here(other):
            raise files.InUse(
                f"the run directory {self._address} is in use by another process (pid "
                f"{other['pid']}); wait for it, stop it, or give another directory."
            )
        if other:
            logging.warning(
                "%s was last written by process %s on %s since %s, which did not say "
                "that it has ended; if it still runs, it stops at its next upload",
                self._address,
                other.get("pid"),
                other.get("host"),
                other.get("since"),
            )
        with addresses.explained(self._address, "written"):
            self._put_text(RUNNING, json.dumps(self._me))

    def download(self) -> None:
        """Copies here what is there, and clears what killed processes left."""
        with addresses.explained(self._address, "read"):
            every = self._copy.place.names()
        self._copy.get([name for name in every if self._mine(name)])
        self.folder.mkdir(parents=True, exist_ok=True)
        self._known = self._state()
        for name in every:  # Of processes that were killed while they wrote.
            if self._inside(name) and files.is_leftover(name.split("/")[-1]):
                with addresses.explained(self._address, "written"):
                    self._place.remove(name)

    def _mine(self, name: str) -> bool:
        return self._inside(name) and _travels(name)

    def _inside(self, name: str) -> bool:
        inner = name.removeprefix(self._inner)
        return name.startswith(self._inner) and not inner.startswith(self._skip)

    def _state(self) -> _State:
        """What changes with each file's content, by its name in the copy.

        Raises:
          OSError: Some folder cannot be read, so that what is in it is not known.
        """
        found = {}
        for folder, _, names in os.walk(self.folder, onerror=_fail):
            for last in names:
                file = pathlib.Path(folder, last)
                name = file.relative_to(self._copy.folder).as_posix()
                if self._mine(name):
                    facts = file.stat()
                    found[name] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        return found

    def push(self, needed: bool) -> None:
        """Uploads what is new or changed, then deletes what was deleted here."""
        try:
            self._check_whole()
            now = self._state()
            if now == self._known:
                return
            self._check_whole(now)
            other = self._running()
            if other != self._me:
                raise self._taken(other)
            changed = [name for name in now if now[name] != self._known.get(name)]
            for name in sorted(changed, key=lambda name: _order(name, now[name])):
                self._place.put(self._copy.folder / name, name)
                self._known[name] = now[name]
            for name in sorted(self._known.keys() - now.keys(), reverse=True):
                self._place.remove(name)
                del self._known[name]
        except NotUploaded:
            raise
        except Exception as error:  # Of any kind: it depends on the file system.
            cause = error.__cause__ if isinstance(error, InputError) else error
            told = (
                f"{self._address} could not be brought up to date "
                f"({type(cause).__name__}: {files.reason(cause or error)})"
            )
            if not needed:
                logging.warning("%s; the next upload tries again", told)
                return
            self._made.keep()
            raise NotUploaded(
                f"{told}; all of it is in {self.folder}: copy it there, or repeat the "
                "command, which does again what is missing."
            ) from error

    def _check_whole(self, now: _State | None = None) -> None:
        """Raises `NotUploaded` if others have deleted the copy, or parts of it.

        Nothing may be deleted at the address for that. `now`: what there is here.
        """
        config = f"{self._inner}config.json"
        lacks = now is not None and config in self._known and config not in now
        if self.folder.is_dir() and self._made.is_whole() and not lacks:
            return
        self._made.keep()
        raise NotUploaded(
            f"{self._address} stays as it was at the last upload, because something "
            f"else has deleted files of its copy in {self.folder}; let TMPDIR name a "
            "folder of this machine that nothing clears, and repeat the command, "
            "which does again what is missing."
        )

    def end(self) -> None:
        """Uploads the rest, and says that this process has ended."""
        self.push(needed=True)
        self.leave()

    def leave(self) -> None:
        """Says that this process does not write there any more."""
        with contextlib.suppress(Exception):  # The next one is told of it, no more.
            if self._running() == self._me:
                self._place.remove(self._inner + RUNNING)

    def _running(self) -> dict | None:
        """What the process says that writes there, or did last; None: none."""
        with addresses.explained(self._address, "read"):
            text = self._place.read(self._inner + RUNNING)
        try:
            found = json.loads(text) if text else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _lives_here(self, other: dict) -> bool:
        """Whether it is another process of this machine, and runs."""
        pid = other.get("pid")
        # Since the machine has started again, the number may be of anything else.
        here = all(other.get(k, self._me[k]) == self._me[k] for k in ("host", "system"))
        if not here or not isinstance(pid, int) or pid == os.getpid():
            return False
        try:
            os.kill(pid, 0)  # Asks, and sends nothing.
        except OSError as error:
            return isinstance(error, PermissionError)
        return True

    def _put_text(self, last: str, text: str) -> None:
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            self._place.put(pathlib.Path(file.name), self._inner + last)

    def _taken(self, other: dict | None) -> NotUploaded:
        self._made.keep()
        by = "another process"
        if other:
            by = f"process {other.get('pid')} on {other.get('host')}"
        return NotUploaded(
            f"{self._address} has been taken over by {by}, so this process ends; what "
            f"it has not uploaded is in {self.folder}."
        )


def _fail(error: OSError) -> None:
    raise error


def _order(name: str, state: tuple[int, int, int]) -> tuple:
    """Files that say that others are complete come last, else the oldest first."""
    last = name.rpartition("/")[2]
    return last.endswith(_MARKERS) or last == checkpoints.LIST, state[0], name
