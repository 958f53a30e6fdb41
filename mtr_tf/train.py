# SPDX-License-Identifier: Apache-2.0
"""Trains one model with a head per task, and writes a run directory to attack.

Example:
  python -m mtr_tf.train --tasks=seg,depth
  python -m mtr_tf.attack --ckpt=runs/rooms-small-seg-depth-seed0

The default data set, rooms, is made on your machine. If training was stopped, the same
command continues. Watch it with: tensorboard --logdir=runs
"""

from __future__ import annotations

import dataclasses
import os
import shlex

from absl import logging

from mtr_tf import files
from mtr_tf.cli import flags as cli_flags
from mtr_tf.cli import startup
from mtr_tf.config.train import RunPlace
from mtr_tf.config.train import TrainConfig
from mtr_tf.runs import directory


def main(config: TrainConfig, place: RunPlace) -> None:
    """Trains; raises `InputError` for mistakes that the user can fix."""
    startup.import_tensorflow(config.deterministic)
    from mtr_tf.training import loop as training

    if config.data_dir:  # Make it valid in any working directory.
        config = dataclasses.replace(config, data_dir=os.path.abspath(config.data_dir))
    if config.init and not files.is_remote(config.init):
        config = dataclasses.replace(config, init=os.path.abspath(config.init))
    workdir = place.workdir or str(directory.default_workdir(config))
    training.train(config, workdir, place.resume)
    logging.info("the model is %s", f"{workdir}/model.keras")
    quoted_workdir = shlex.quote(workdir)
    # Code that only a run's file names is never run, so the user must name it again.
    dataset_flag = f" --dataset={config.dataset}" if ":" in config.dataset else ""
    logging.info(
        "attack it:  python -m mtr_tf.attack --ckpt=%s%s", quoted_workdir, dataset_flag
    )
    logging.info("watch it:   tensorboard --logdir=%s", quoted_workdir)


def run() -> None:
    """The console entry point `mtr-train`."""
    cli_flags.run(
        "mtr_tf.train",
        __doc__,
        (TrainConfig, RunPlace),
        main,
        "No training step was done; the same command continues from what is there.",
    )


if __name__ == "__main__":
    run()
