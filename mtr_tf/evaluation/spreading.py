# SPDX-License-Identifier: Apache-2.0
"""Spreads the attacks on one model over processes, each of which does a part.

A part is the same command with `--part=I/N`, on one device. It writes finished cells to
the folder of results and nothing else; the command itself then finds all of them
finished.
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
    """Runs what the store has not, by the executor that the settings name.

    Args:
      config: The settings.
      cells: The attacks.
      store: Where finished ones are.
      predictions: Where what is predicted goes; None where it is not asked for.
      gpus: How many there are on this machine.

    Raises:
      InputError: A part failed; what others did is kept.
    """
    folder = store.folder
    evaluations = sweep.evaluations(cells)
    done = sweep.finished(evaluations, store, predictions)
    if len(done) == len(evaluations):
        return
    # The noise of a random model goes by what a replica has at a time.
    if batch_size := store.facts.get("batch_size"):
        config = dataclasses.replace(config, batch_size=batch_size)
    with files.locked(folder / "parts"):  # The folder itself is shared by the parts.
        _spread(config, evaluations, done, folder, gpus)


def _spread(
    config: AttackConfig,
    evaluations: Sequence[Cell | None],
    done: Collection[Cell | None],
    folder: pathlib.Path,
    gpus: int,
) -> None:
    """Runs the parts that are not done; the folder of parts is held by this process.

    It must be before an executor is made: that ends what an earlier one has left
    running, as of a runner that was killed.
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
        count = min(count, engine.at_once)  # Graphs are compiled less often.
    whole = sweep.parts(evaluations, count)
    left = [
        number
        for number, part in enumerate(whole, start=1)
        if any(cell not in done for cell in part)
    ]
    waiting, failures = iter(left), []

    def take() -> tuple[int, Command] | None:
        number = next(waiting, None)
        if number is None:
            return None
        arguments = _arguments(config, folder.name, f"{number}/{count}")
        return number, Command(arguments, str(_log(folder, number, count)))

    def kept() -> str:
        return "Finished attacks are kept; the same command continues with the others."

    with (
        stopping.saying(kept),
        stopping.later(),
        progress.bar(len(left), "attacking", "parts", 0) as advance,
    ):
        for number, future in executors.results(engine, take):
            advance(1, "")
            if why := executors.failure(future):
                failures.append(f"{why} (log: {_log(folder, number, count)})")
    if failures:
        raise InputError(
            f"{len(failures)} of {len(left)} parts of the attack failed; those that "
            "did not are kept, and the same command continues with the others. The "
            f"first: {failures[0]}"
        )


def _log(folder: pathlib.Path, number: int, count: int) -> pathlib.Path:
    return folder / "parts" / f"{number}-of-{count}.log"


def _arguments(config: AttackConfig, name: str, part: str) -> tuple[str, ...]:
    """The command of a part, which has a device of its own."""
    alone = dataclasses.replace(
        config,
        executor=NO_EXECUTOR,
        executor_options=(),
        workers=0,
        strategy="one_device",
        replicas=0,
        name="" if config.out else name,
        part=part,
    )
    return ("mtr_tf.attack", *alone.flags())
