# SPDX-License-Identifier: Apache-2.0
"""Spreads the attacks on one model over processes, each of which runs a part.

A part is the same command with `--part=I/N`, on one device. It only writes finished
cells to the folder of results; the command itself then finds all of them finished.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection
from collections.abc import Sequence

from mtr_tf import executors
from mtr_tf import files
from mtr_tf.cli import progress
from mtr_tf.cli import stopping
from mtr_tf.config.attack import NO_EXECUTOR
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.settings import LOCAL
from mtr_tf.data import parts as data_parts
from mtr_tf.errors import InputError
from mtr_tf.evaluation import cell_store
from mtr_tf.evaluation import sweep
from mtr_tf.evaluation.cityscapes_export import Predictions
from mtr_tf.evaluation.plan import Cell
from mtr_tf.executors import local
from mtr_tf.executors.command import Command


def run(
    config: AttackConfig,
    cells: Sequence[Cell],
    store: cell_store.Store,
    predictions: Predictions | None,
    gpus: int,
) -> None:
    """Runs the cells that the store lacks, with the executor of the settings.

    Args:
      config: The settings.
      cells: The attacks.
      store: The finished attacks.
      predictions: The predictions to write; None for none.
      gpus: The number of GPUs on this machine.

    Raises:
      InputError: A part failed; the work of the others is kept.
    """
    folder = store.folder
    evaluations = sweep.evaluations(cells)
    finished = sweep.finished(evaluations, store, predictions)
    if len(finished) == len(evaluations):
        return
    # The noise of a random model depends on the batch of a replica.
    if batch_size := store.facts.get("batch_size"):
        config = dataclasses.replace(config, batch_size=batch_size)
    with files.locked(folder / "parts"):  # The parts share the folder itself.
        _spread(config, evaluations, finished, folder, gpus)


def _spread(
    config: AttackConfig,
    evaluations: Sequence[Cell | None],
    finished: Collection[Cell | None],
    folder: pathlib.Path,
    gpus: int,
) -> None:
    """Runs unfinished parts; this process must hold the lock of the folder of parts.

    The lock comes before the executor, because making one ends processes that an
    earlier, killed one has left running.
    """
    engine = executors.create(
        config.executor,
        folder / "parts" / "jobs",
        config.workers,
        config.executor_options,
        local.gpus(gpus),
        data_parts.cores(),
    )
    count = len(evaluations)
    if config.executor == LOCAL:
        count = min(count, engine.at_once)  # So graphs are compiled less often.
    parts = sweep.parts(evaluations, count)
    pending = [
        number
        for number, part in enumerate(parts, start=1)
        if any(cell not in finished for cell in part)
    ]
    numbers, failures = iter(pending), []

    def take() -> tuple[int, Command] | None:
        number = next(numbers, None)
        if number is None:
            return None
        arguments = _arguments(config, folder.name, f"{number}/{count}")
        return number, Command(arguments, str(_log(folder, number, count)))

    def message() -> str:
        return "Finished attacks are kept; the same command continues with the others."

    with (
        stopping.saying(message),
        stopping.later(),
        progress.bar(len(pending), "attacking", "parts", 0) as advance,
    ):
        for number, future in executors.results(engine, take):
            advance(1, "")
            if reason := executors.failure(future):
                failures.append(f"{reason} (log: {_log(folder, number, count)})")
    if failures:
        raise InputError(
            f"{len(failures)} of {len(pending)} parts of the attack failed; those that "
            "did not are kept, and the same command continues with the others. The "
            f"first: {failures[0]}"
        )


def _log(folder: pathlib.Path, number: int, count: int) -> pathlib.Path:
    return folder / "parts" / f"{number}-of-{count}.log"


def _arguments(config: AttackConfig, name: str, part: str) -> tuple[str, ...]:
    """The command of a part, which runs on a single device."""
    part_config = dataclasses.replace(
        config,
        executor=NO_EXECUTOR,
        executor_options=(),
        workers=0,
        strategy="one_device",
        replicas=0,
        name="" if config.out else name,
        part=part,
    )
    return ("mtr_tf.attack", *part_config.flags())
