# SPDX-License-Identifier: Apache-2.0
"""Builds what a run's settings describe: its data set and its untrained model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence

import keras
from absl import logging

from mtr_tf import data
from mtr_tf import models
from mtr_tf.config.train import TrainConfig
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.runs import initial_weights
from mtr_tf.runs import own_models


def open_source(config: TrainConfig) -> Source:
    """The data set of a run, with its tasks; it is prepared first if necessary.

    Inputs besides the images are left out: no model that is trained here takes any.
    """
    source = data.open_source(
        config.dataset,
        image_size=config.parsed_image_size,
        data_dir=config.data_dir or None,
        tasks=config.tasks,
        **{option: getattr(config, option) for option in data.OPTIONS},
    )

    def load(split: str) -> Columns:
        columns = source.load(split)
        if columns.inputs:
            logging.log_first_n(
                logging.INFO,
                "models trained by mtr_tf take only images; these inputs are ignored: "
                "%s",
                1,
                columns.layout,
            )
        return columns.without_inputs()

    return dataclasses.replace(source, load=load)


def standardised(
    info: DatasetInfo, normalization: Sequence[Sequence[float]] | None
) -> DatasetInfo:
    """The facts of a data set, with the mean and std that a run's model was built with.

    These belong to the model, though they are no weights; other data may differ.

    Args:
      info: The facts of the data that are open now.
      normalization: (mean, std) of the run; None if they are not known.

    Raises:
      InputError: The data have a different number of channels.
    """
    if normalization is None:
        return info
    mean, std = normalization
    if len(mean) != info.image_shape[2]:
        raise InputError(
            f"The run was trained on images of {len(mean)} channels, but those of "
            f"{info.name} have {info.image_shape[2]}; give the data that it was "
            "trained on."
        )
    return dataclasses.replace(info, mean=tuple(mean), std=tuple(std))


def new_model(config: TrainConfig, info: DatasetInfo) -> keras.Model:
    """The model that training begins with.

    Raises:
      InputError: It cannot be built, or not initialised or frozen as the settings say.
    """
    if ":" in config.model:  # The user names it, so their code may run.
        with _precision(config.precision):
            model = own_models.build(
                config.model,
                _image_shape(config, info),
                info.tasks.select(config.tasks),
            )
        tasks = ()
    else:
        model, tasks = build_model(config, info), config.tasks
    if config.init:
        initial_weights.start_from(model, config.init, config.frozen, tasks)
    initial_weights.freeze(model, config.frozen)
    return model


def shared_stages(config: TrainConfig) -> int | None:
    """The number of encoder stages that the tasks share; None: all."""
    return None if config.shared_stages < 0 else config.shared_stages


def build_model(config: TrainConfig, info: DatasetInfo) -> keras.Model:
    """The untrained built-in model of a run.

    Raises:
      InputError: It cannot be built, or only by code that a file alone names.
    """
    if ":" in config.model:
        raise InputError(
            f"The run's model was built by {config.model}, which only its config.json "
            "names, and code named in a file is never run unasked; wait until the "
            "training has ended, and give the run's directory or its model.keras."
        )
    with _precision(config.precision):
        model = models.build(
            config.model,
            info.tasks.select(config.tasks),
            _image_shape(config, info),
            len(info.classes),
            width=config.width or None,
            decoders=config.decoders,
            shared_stages=shared_stages(config),
            mean=info.mean,
            std=info.std,
            seed=config.seed,
            sync_batch_norm=config.sync_batch_norm,
        )
    if config.parsed_crop:
        models.check_image_size(config.model, info.image_shape[:2])
        models.check_image_size(config.model, config.parsed_crop)
    return model


def _image_shape(config: TrainConfig, info: DatasetInfo) -> tuple[int | None, ...]:
    """The shape of a model's images; with crops, their size varies."""
    return (None, None, info.image_shape[2]) if config.parsed_crop else info.image_shape


@contextlib.contextmanager
def _precision(policy: str) -> Iterator[None]:
    """Layers created inside compute with the given dtype policy."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
