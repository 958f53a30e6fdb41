# SPDX-License-Identifier: Apache-2.0
"""Where commands run: processes of this machine, a Ray cluster, or jobs of SLURM.

Each is a `concurrent.futures.Executor` that is given `command.run`. All machines must
see the same files under the same paths, and have the same installation of mtr_tf.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Executor
from concurrent.futures import Future
from typing import Any
from typing import TypeVar

from absl import logging

from mtr_tf.cli import stopping
from mtr_tf.config.settings import LOCAL
from mtr_tf.config.settings import RAY
from mtr_tf.errors import InputError
from mtr_tf.executors import command
from mtr_tf.executors import local
from mtr_tf.executors import on_ray
from mtr_tf.executors import on_slurm
from mtr_tf.executors.command import Command
from mtr_tf.executors.command import Ended

T = TypeVar("T")
_POLL_SECONDS = 0.05  # After which a signal is seen.
_REFUSED_SECONDS = 60.0  # After which a command that was refused is given again.
_IN_FLIGHT = 100  # Commands that are given at a time to an engine with a queue.


@dataclasses.dataclass(frozen=True)
class Engine:
    """An executor, how many commands it is given, and how many run at a time."""

    executor: Executor
    at_once: int
    room: int


def create(
    name: str,
    folder: pathlib.Path,
    workers: int = 0,
    options: Sequence[str] = (),
    gpus: Sequence[str] = (),
    cores: int = 1,
) -> Engine:
    """The executor of a name.

    Args:
      name: one of `config.settings.EXECUTORS`.
      folder: where it may keep files of its own.
      workers: how many commands run at a time; 0: as many as fit.
      options: NAME=VALUE for Ray or submitit.
      gpus: this machine's, as CUDA_VISIBLE_DEVICES names them; for `local`.
      cores: how many processor cores there are; for `local`.

    Raises:
      InputError: the library is not installed, an option is not known, or there is no
        such cluster.
    """
    given = _options(options)
    if name == LOCAL:
        if given:
            raise InputError(
                "--executor_options are for --executor=ray and slurm, but the "
                "executor is local; leave them out."
            )
        slots = local.slots(workers, gpus, cores)
        return Engine(local.LocalExecutor(slots), len(slots), len(slots))
    if name == RAY:
        executor = on_ray.RayExecutor(folder, given)
        at_once = workers or max(_IN_FLIGHT, 2 * executor.room)
        return Engine(executor, at_once, min(at_once, executor.room))
    at_once = workers or _IN_FLIGHT
    return Engine(on_slurm.SlurmExecutor(folder, given), at_once, at_once)


def results(
    engine: Engine, take: Callable[[], tuple[T, Command] | None]
) -> Iterator[tuple[T, Future[Ended]]]:
    """Runs commands, and yields how each ended, until none is left or a signal comes.

    The engine is shut down at the end; commands that still run are stopped then. One
    that it refuses is given again as long as others run: a queue may be full.

    Args:
      engine: what runs them.
      take: the next command, and what it is known by to the caller; None: there is
        none now, or none that can be run before another one has ended.

    Raises:
      Refused: the engine does not take a command, and none runs.
    """
    running: dict[Future[Ended], T] = {}
    refused: tuple[T, Command] | None = None
    again = 0.0  # When the next one is given, at the latest.
    try:
        while not stopping.asked():
            while (
                len(running) < engine.at_once
                and (not running or time.monotonic() >= again)
                and (given := refused or take())
            ):
                try:
                    future = engine.executor.submit(command.run, given[1])
                except command.Refused as error:
                    if not running:
                        raise
                    if not refused:
                        logging.warning("%s It is given again while others run.", error)
                    refused, again = given, time.monotonic() + _REFUSED_SECONDS
                else:
                    refused, running[future] = None, given[0]
            if not running:
                return
            ended, _ = futures.wait(running, _POLL_SECONDS, futures.FIRST_COMPLETED)
            for future in ended:
                again = 0.0  # There may be room now.
                yield running.pop(future), future
    finally:
        engine.executor.shutdown(cancel_futures=True)


def failure(future: Future[Ended]) -> str:
    """Why a command failed; empty if it ended well."""
    if error := future.exception():
        return _last_line(str(error)) or type(error).__name__
    ended = future.result()
    return ended.said if ended.code else ""


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE as {name: value}; numbers as such."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not (name and separator):
            raise InputError(
                "--executor_options must be NAME=VALUE, separated by commas, such as "
                f"num_gpus=1,num_cpus=4; got {pair!r}."
            )
        if name in found:
            raise InputError(
                f"--executor_options must name each option once, but {name} has "
                f"several values in {','.join(pairs)}; leave one."
            )
        found[name] = _number(value)
    return found


def _number(text: str) -> int | float | str:
    """What a text says, if that is a number; else the text.

    A name such as 01234, of an account, is none.
    """
    if not re.fullmatch(r"-?(?!0[0-9])[0-9]*\.?[0-9]*(e[+-]?[0-9]+)?", text, re.I):
        return text
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _last_line(text: str) -> str:
    """What a trace from another machine ends with; submitit adds advice to it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    rules = [i for i, line in enumerate(lines) if line.startswith("----")]
    return ([""] + lines[: rules[-1] if len(rules) > 1 else None])[-1]
