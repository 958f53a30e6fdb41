# SPDX-License-Identifier: Apache-2.0
"""Where commands run: processes of this machine, a Ray cluster, or jobs of SLURM.

Each is a `concurrent.futures.Executor` that is given `command.run`. All machines must
see the same files under the same paths, and have the same installation of mtr_tf.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from mtr_tf.config.settings import LOCAL
from mtr_tf.config.settings import RAY
from mtr_tf.errors import InputError
from mtr_tf.executors import local
from mtr_tf.executors import on_ray
from mtr_tf.executors import on_slurm

_IN_FLIGHT = 100  # Commands that are given at a time to an engine with a queue.


@dataclasses.dataclass(frozen=True)
class Engine:
    """An executor, and how many commands it is given at a time."""

    executor: Executor
    at_once: int


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
        return Engine(local.LocalExecutor(slots), len(slots))
    if name == RAY:
        executor = on_ray.RayExecutor(given)
        return Engine(executor, workers or max(_IN_FLIGHT, 2 * executor.room))
    return Engine(on_slurm.SlurmExecutor(folder, given), workers or _IN_FLIGHT)


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE as {name: value}; whole numbers as such."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not (name and separator):
            raise InputError(
                "--executor_options must be NAME=VALUE, separated by commas, such as "
                f"num_gpus=1,num_cpus=4; got {pair!r}."
            )
        found[name] = int(value) if value.isdecimal() else value
    return found
