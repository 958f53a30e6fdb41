# SPDX-License-Identifier: Apache-2.0
"""Attacks a trained model as `AttackConfig` says, and writes a folder of results.

RUN/attacks/NAME/settings.json    settings, versions, commit, command
                 results.json     a record per attack, task and metric; also .csv
                 curves.png       metrics against the radius
                 gallery.png      a few examples
                 events.*         the same for TensorBoard
                 checks.json      whether the attack can be trusted
                 cells/           what is finished, so that nothing is run twice
                 examples/        with --save_examples
                 predictions/     with --export_predictions (`cityscapes_export`)
                 consistency.json how well outputs agree (`evaluation.consistency`)
                 measures.json    with --measure (`measures.measure`)

With --out=DIR, all of it is in DIR.
"""

from __future__ import annotations

import contextlib

import tensorflow as tf

from mtr_tf.attack_job.job import Job
from mtr_tf.attack_job.resolving import default_name
from mtr_tf.attack_job.resolving import resolve
from mtr_tf.cli import stopping
from mtr_tf.config.attack import NO_EXECUTOR
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.attack import parse_part
from mtr_tf.runs import remote
from mtr_tf.runs import workers as workers_lib

__all__ = ["Job", "attack", "default_name", "resolve"]

_CONTINUE = (
    "Finished attacks are kept; run the same command on all workers to continue with "
    "the others."
)


def attack(config: AttackConfig) -> str:
    """Runs what is not finished yet, writes the folder, and returns the text to print.

    Of several workers only the chief writes and returns it; the others return "".

    Raises:
      InputError: The settings, the checkpoint and the data do not fit together; raised
        before anything is written or attacked.
    """
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    workers = workers_lib.join(config.strategy, config.replicas)
    with contextlib.ExitStack() as stack:
        stack.enter_context(remote.copies())
        stack.enter_context(workers.explaining_loss(_CONTINUE))
        tf.random.set_seed(config.seed)  # For a model's own draws without a seed.
        job = resolve(config, workers=workers)
        if workers.several:  # They stop together.
            stack.enter_context(stopping.later())
        if part := parse_part(config.part):
            job.run_part(part)
            text = f"part {config.part} is finished; its results are in {job.folder}"
            return text if workers.chief else ""
        if config.executor != NO_EXECUTOR:
            job.spread()
            job = job.after_parts()  # The parts have freed their GPUs.
        return remote.named(job.run().text)
