# SPDX-License-Identifier: Apache-2.0
"""Turns: one process at a time may work in a folder that several machines may see.

A lock (flock) decides between the processes of one machine, and ends with its process.
Not every shared file system has locks, or shares them between machines, so there is
also a file, the claim, to which the process that has the turn writes every few seconds.
A claim that has not changed for a minute belongs to a process, or a machine, that is
gone, and whoever sees this takes the turn. Clocks are not compared.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator

from absl import logging

from mtr_tf import files
from mtr_tf.errors import InputError

_BEAT_SECONDS = 5.0
_SILENT_SECONDS = 60.0
_LOOK_SECONDS = 1.0


@contextlib.contextmanager
def turn(
    path: pathlib.Path, what: str, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Waits until it is this process's turn, and holds it.

    Two processes can hold it at once only if one of them stood still for a minute; what
    they do must be harmless then.

    Args:
      path: the lock file; its folder exists. The claim is beside it.
      what: what is made, for messages.
      meanwhile: what to do first if another process has the turn.

    Raises:
      InputError: the claim of a process that is gone may not be removed.
      OSError: the lock or the claim cannot be written.
    """
    claim = path.with_suffix(".claim")
    with path.open("w") as file:
        notice = _Notice(
            f"Another process is making {what}; helping, or waiting for it."
        )
        try:
            without_locks = files.flock(file)
        except BlockingIOError:
            notice.say(meanwhile)
            without_locks = files.flock(file, wait=True)
        token = f"{machine()} {os.getpid()} {secrets.token_hex(8)}"
        watch = _Watch(claim, mine=None if without_locks else machine())
        while not _create(claim, token):
            if watch.is_dead() and watch.remove(what):
                continue
            notice.say(meanwhile)
            time.sleep(_LOOK_SECONDS)
        with _heartbeat(claim, token):
            yield


class _Notice:
    """Logs a notice and runs a function, but only the first time."""

    def __init__(self, words: str):
        self._words = words

    def say(self, action: Callable[[], None]) -> None:
        if self._words:
            logging.info("%s", self._words)
            self._words = ""
            action()


class _Watch:
    """Watches another process's claim.

    `mine` is this machine's name if this process holds the lock, so that a claim of
    this machine belongs to a process that has ended; None if there are no locks.
    """

    def __init__(self, claim: pathlib.Path, mine: str | None):
        self._claim, self._mine = claim, mine
        self._seen, self._since = "", time.monotonic()

    def is_dead(self) -> bool:
        """Whether the process of the current claim is gone."""
        text, now = _read(self._claim), time.monotonic()
        if text != self._seen:
            self._seen, self._since = text, now
        is_ours = bool(self._mine) and text.split(" ")[0] == self._mine
        return is_ours or now - self._since > _SILENT_SECONDS

    def remove(self, what: str) -> bool:
        """Removes the claim, unless it has changed since `is_dead`.

        Args:
          what: what is made, for the message.

        Returns:
          Whether to look again at once; False if the file system fails for now.

        Raises:
          InputError: permission is missing, as for another user's claim in a sticky
            folder (/tmp).
        """
        trash = self._claim.with_name(f".{secrets.token_hex(8)}.claim")
        try:
            if _read(self._claim) == self._seen:
                os.replace(self._claim, trash)
                trash.unlink()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
                raise InputError(_stuck_message(self._claim, what, error)) from error
            return False
        return True


@contextlib.contextmanager
def _heartbeat(claim: pathlib.Path, token: str) -> Iterator[None]:
    """Updates the claim every few seconds, and removes it at the end."""
    end = threading.Event()

    def beat() -> None:
        count = 0
        while not end.wait(_BEAT_SECONDS) and not _is_lost(claim, token):
            count += 1
            with contextlib.suppress(OSError), open(claim, "r+") as file:
                file.write(f"{token} {count}")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        if _read(claim).startswith(token):
            with contextlib.suppress(OSError):
                claim.unlink()


def _create(claim: pathlib.Path, token: str) -> bool:
    """Makes the claim unless there is one; returns whether it did.

    No claim is left behind if the disk is full.
    """
    try:
        file = open(claim, "x")  # noqa: SIM115  (closed below)
    except FileExistsError:
        return False
    try:
        with file:
            file.write(token)
    except OSError:
        claim.unlink(missing_ok=True)
        raise
    return True


def _stuck_message(claim: pathlib.Path, what: str, error: OSError) -> str:
    """The message that a claim cannot be removed, whose it is, and what to do."""
    try:
        owner = f"the user {claim.owner()}"
    except KeyError:  # The user has no name on this machine.
        owner = f"the user number {claim.stat().st_uid}"
    except OSError:
        owner = "another user"
    return (
        f"{claim} says that a process of {owner} is making {what}, but there is no "
        "sign of life of that process, and its file cannot be taken away "
        f"({files.reason(error)}); have {owner} or an administrator remove {claim}, "
        "or choose another folder, then repeat the command."
    )


def _is_lost(claim: pathlib.Path, token: str) -> bool:
    """Whether the claim is gone or another's; False if it cannot be read for now."""
    try:
        return not claim.read_text().startswith(token)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _read(claim: pathlib.Path) -> str:
    """The text of the claim; empty if it is gone."""
    try:
        return claim.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def machine() -> str:
    """A word for the running system, the same in all of its containers."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
