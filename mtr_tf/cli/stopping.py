# SPDX-License-Identifier: Apache-2.0
"""Stopping well: what Ctrl-C (SIGINT) and SIGTERM do while a command works.

The first signal raises `Stopped` where the program is. Inside `later` it is only noted,
and the code there calls `asked` at moments when everything is saved. A second signal
ends the process at once, even in the middle of a long computation: the system writes
each signal to a pipe that a thread reads, while Python's own handlers wait until
TensorFlow returns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

from mtr_tf.errors import InputError

_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
# `timeout` and SLURM send a signal to a process and its group, so it comes twice.
_ONE_SIGNAL_SECONDS = 0.2
_PATIENCE_SECONDS = 1.0  # Until a slow stop is announced.


class Stopped(KeyboardInterrupt):
    """A signal has asked the process to stop; the argument, if any, says what is kept.

    It is a `KeyboardInterrupt`, so that code which cleans up on Ctrl-C also does on
    SIGTERM.
    """


@dataclasses.dataclass
class _Watch:
    """The signals of a process, while they are handled."""

    signum: int = 0  # The first signal, once Python's handler has run.
    later: bool = False  # Whether a signal is only noted.
    came: float = 0.0  # When the first one reached the process; 0 if none has.

    def handle(self, signum: int, _: Any) -> None:
        """Python's handler, called in the main thread once it is back in Python."""
        if not self.signum:
            self.signum = signum
            if not self.later:
                raise Stopped

    def read(self, pipe: int) -> None:
        """Ends the process on the second signal; runs in a thread of its own."""
        is_announced = False
        while True:
            patience = _PATIENCE_SECONDS if self.came and not is_announced else None
            ready, _, _ = select.select([pipe], [], [], patience)
            if not ready:
                is_announced = True
                _say(
                    "stopping as soon as everything is saved; a second signal stops "
                    "at once."
                )
                continue
            data = os.read(pipe, 1)
            if not data:  # `handled` has ended.
                os.close(pipe)
                return
            now = time.monotonic()
            if data[0] not in _SIGNALS:
                continue
            if self.came and now - self.came > _ONE_SIGNAL_SECONDS:
                _say("ended at once.")
                os._exit(exit_code(data[0]))
            self.came = self.came or now


_watch: _Watch | None = None


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handles the signals inside, if this is the main thread and nothing does so yet.

    A signal that was ignored before, as in a job that a shell runs in the background,
    stays ignored.
    """
    global _watch
    if _watch or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch = watch = _Watch()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    threading.Thread(target=watch.read, args=(read_end,), daemon=True).start()
    handlers = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    old_pipe = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        for signum, handler in handlers.items():
            if handler is not signal.SIG_IGN:
                signal.signal(signum, watch.handle)
        yield
    finally:
        for signum, handler in handlers.items():
            # None is a handler of another language, which cannot be put back.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(old_pipe)
        os.close(write_end)
        _watch = None


@contextlib.contextmanager
def later() -> Iterator[None]:
    """Only notes signals inside; raises `Stopped` at the end if there was one.

    Where one `later` is inside another, only the end of the outer one raises.
    """
    with handled():
        is_nested = _watch and _watch.later
        with noted():
            yield
        if asked() and not is_nested:
            raise Stopped


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Only notes signals inside, and raises nothing."""
    with handled():
        if not _watch:  # Not the main thread, which no signal reaches.
            yield
            return
        watch, was_later = _watch, _watch.later
        watch.later = True
        try:
            yield
        finally:
            watch.later = was_later


def asked() -> bool:
    """Whether a signal has asked to stop."""
    return signum() != 0


def came() -> bool:
    """Whether a signal has reached this process; for threads other than the main one.

    Unlike `asked`, it is also true while the main thread is in TensorFlow.
    """
    return bool(_watch and _watch.came)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Removes, at the end, the signal handlers that a library installs inside.

    This includes handlers that Python does not know of, such as those of TensorFlow
    when it joins other processes.
    """
    handlers = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in handlers.items():
                if handler is not None:  # Python knows the handler.
                    signal.signal(signum, handler)


def signum() -> int:
    """The signal that has asked to stop; 0 where none has."""
    return _watch.signum if _watch else 0


def note(signum: int) -> None:
    """Treats a signal to another process of the same work as one to this process."""
    if _watch and not _watch.signum:
        _watch.signum = signum


@contextlib.contextmanager
def saying(sentence: Callable[[], str]) -> Iterator[None]:
    """Adds what is kept to a stop inside, unless it has been said already.

    An error after a signal counts as a stop too: the signal has led to it. Our own
    errors, `InputError`, stay as they are.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if not stop.args:
            stop.args = (sentence(),)
        raise
    except InputError:
        raise
    except Exception as error:
        if not asked():
            raise
        raise Stopped(sentence()) from error


def told(stop: KeyboardInterrupt | None, sentence: str) -> str:
    """What a command says at its end: which signal came, and what is kept.

    Args:
      stop: What was raised; None for an error that a signal has led to.
      sentence: What is kept wherever the command was, if `stop` does not say more.
    """
    name = _SIGNALS[signal.Signals(signum() or signal.SIGINT)]
    return f"stopped by {name}. {(stop and ' '.join(stop.args)) or sentence}"


def exit_code(number: int = 0) -> int:
    """The exit code of a process that a signal has ended: 130 or 143.

    `number` is the signal's; 0 stands for the signal that has asked to stop.
    """
    return 128 + (number or signum() or signal.SIGINT)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # Nobody reads stderr any more.
        os.write(2, f"\n{line}\n".encode())
