# SPDX-License-Identifier: Apache-2.0
"""Commands as calls: all but `export`, and `attack`, which is `evaluate`."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from mtr_tf import compare
from mtr_tf import convert
from mtr_tf import reproduce
from mtr_tf import train
from mtr_tf.api import settings as settings_lib
from mtr_tf.compare import CompareConfig
from mtr_tf.config.train import RunPlace
from mtr_tf.config.train import TrainConfig
from mtr_tf.convert import ConvertConfig
from mtr_tf.reproduce import ReproduceConfig
from mtr_tf.runs import directory
from mtr_tf.runs import remote


@settings_lib.shown(TrainConfig, RunPlace)
def train_model(**settings: Any) -> pathlib.Path | str:
    """Trains a built-in model with one head per task, like `python -m mtr_tf.train`.

        folder = mtr_tf.train_model(tasks=["seg", "depth"], epochs=2)
        print(mtr_tf.evaluate(folder).table())

    If it was stopped, the same call continues.

    Args:
      **settings: the command's flags.

    Returns:
      The run directory; `keras.saving.load_model(folder / "model.keras")` is the model.
      If `workdir` is an address, that address.

    Raises:
      InputError: The settings or the data cannot be used, or training diverges.
    """
    names = {field.name for field in dataclasses.fields(RunPlace)}
    place_settings = {name: value for name, value in settings.items() if name in names}
    train_settings = {
        name: value for name, value in settings.items() if name not in names
    }
    config = settings_lib.record(TrainConfig, train_settings)
    run_place = settings_lib.record(RunPlace, place_settings)
    workdir = run_place.workdir or directory.default_workdir(config)
    train.main(config, run_place)
    return remote.shown(workdir)


@settings_lib.shown(CompareConfig)
def compare_runs(**settings: Any) -> None:
    """Prints finished attacks on several models side by side: `mtr_tf.compare`.

    Args:
      **settings: the command's flags.

    Raises:
      InputError: There are no such results, or the models have no attack in common.
    """
    compare.main(settings_lib.record(CompareConfig, settings))


@settings_lib.shown(ConvertConfig)
def convert_weights(**settings: Any) -> None:
    """Turns PyTorch weights into a run directory, like `python -m mtr_tf.convert`.

    Args:
      **settings: the command's flags.

    Raises:
      InputError: The file cannot be read or does not fit.
    """
    convert.main(settings_lib.record(ConvertConfig, settings))


@settings_lib.shown(ReproduceConfig)
def reproduce_study(**settings: Any) -> None:
    """Runs a study of many models, and writes its report: `mtr_tf.reproduce`.

    Args:
      **settings: the command's flags.

    Raises:
      InputError: The study or its data cannot be used.
    """
    reproduce.main(settings_lib.record(ReproduceConfig, settings))
