# SPDX-License-Identifier: Apache-2.0
"""Where commands run: in processes of this machine, on a Ray cluster, or by SLURM.

Each way is a `concurrent.futures.Executor` that runs `command.run`. All machines must
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
_POLL_SECONDS = 0.05  # Until a signal is noticed.
_RETRY_SECONDS = 60.0  # Until a refused command is submitted again.
_IN_FLIGHT = 100  # Commands in a queue at a time, unless Ray has room for more.


@dataclasses.dataclass(frozen=True)
class Engine:
    """An executor, how many commands it holds, and how many run, at a time."""

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
    """Creates the engine of a name.

    Args:
      name: One of `config.settings.EXECUTORS`.
      folder: A folder in which it may keep its own files.
      workers: How many commands run at a time; 0: as many as fit.
      options: NAME=VALUE for Ray or submitit.
      gpus: This machine's GPUs, as CUDA_VISIBLE_DEVICES names them; for `local`.
      cores: The number of processor cores; for `local`.

    Raises:
      InputError: The library is not installed, an option is unknown, or the cluster
        does not exist.
    """
    parsed_options = _parse_options(options)
    if name == LOCAL:
        if parsed_options:
            raise InputError(
                "--executor_options are for --executor=ray and slurm, but the "
                "executor is local; leave them out."
            )
        slots = local.slots(workers, gpus, cores)
        return Engine(local.LocalExecutor(slots), len(slots), len(slots))
    if name == RAY:
        executor = on_ray.RayExecutor(folder, parsed_options)
        at_once = workers or max(_IN_FLIGHT, 2 * executor.room)
        return Engine(executor, at_once, min(at_once, executor.room))
    at_once = workers or _IN_FLIGHT
    return Engine(on_slurm.SlurmExecutor(folder, parsed_options), at_once, at_once)


def results(
    engine: Engine, take: Callable[[], tuple[T, Command] | None]
) -> Iterator[tuple[T, Future[Ended]]]:
    """Runs commands, and yields how each ended, until none is left or a signal comes.

    At the end the engine is shut down, and commands that still run are stopped. A
    command that the engine refuses is submitted again while others run, because a queue
    may be full.

    Args:
      engine: The engine that runs them.
      take: Returns the caller's key for the next command, and the command; None: there
        is none now, or none that can run before another one has ended.

    Raises:
      Refused: The engine refuses a command while none runs.
    """
    running_keys: dict[Future[Ended], T] = {}
    refused_entry: tuple[T, Command] | None = None
    retry_time = 0.0  # The earliest time to submit again while others run.
    try:
        while not stopping.asked():
            while (
                len(running_keys) < engine.at_once
                and (not running_keys or time.monotonic() >= retry_time)
                and (entry := refused_entry or take())
            ):
                try:
                    future = engine.executor.submit(command.run, entry[1])
                except command.Refused as error:
                    if not running_keys:
                        raise
                    if not refused_entry:
                        logging.warning("%s It is given again while others run.", error)
                    refused_entry, retry_time = entry, time.monotonic() + _RETRY_SECONDS
                else:
                    refused_entry, running_keys[future] = None, entry[0]
            if not running_keys:
                return
            ended_futures, _ = futures.wait(
                running_keys, _POLL_SECONDS, futures.FIRST_COMPLETED
            )
            for future in ended_futures:
                retry_time = 0.0  # There may be room now.
                yield running_keys.pop(future), future
    finally:
        engine.executor.shutdown(cancel_futures=True)


def failure(future: Future[Ended]) -> str:
    """Why a command failed; empty if it succeeded."""
    if error := future.exception():
        return _last_line(str(error)) or type(error).__name__
    result = future.result()
    return result.reason if result.code else ""


def _parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parses NAME=VALUE pairs to {name: value}, with numbers as numbers."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not (name and separator):
            raise InputError(
                "--executor_options must be NAME=VALUE, separated by commas, such as "
                f"num_gpus=1,num_cpus=4; got {pair!r}."
            )
        if name in options:
            raise InputError(
                f"--executor_options must name each option once, but {name} has "
                f"several values in {','.join(pairs)}; leave one."
            )
        options[name] = _parse_number(value)
    return options


def _parse_number(text: str) -> int | float | str:
    """The number in a text, or else the text.

    A text such as 01234, the name of an account, is not a number.
    """
    if not re.fullmatch(r"-?(?!0[0-9])[0-9]*\.?[0-9]*(e[+-]?[0-9]+)?", text, re.I):
        return text
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _last_line(text: str) -> str:
    """The last line of a trace from another machine, without submitit's advice."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    rules = [i for i, line in enumerate(lines) if line.startswith("----")]
    return ([""] + lines[: rules[-1] if len(rules) > 1 else None])[-1]
