# SPDX-License-Identifier: Apache-2.0
"""What a run's settings describe: its data set and its untrained model."""

from __future__ import annotations

import keras

from mtr_tf import data
from mtr_tf import models
from mtr_tf import tasks as tasks_lib
from mtr_tf.config.settings import parse_image_size
from mtr_tf.config.train import TrainConfig


def open_source(config: TrainConfig) -> data.Source:
    """The data set of a run, for its tasks; prepared first where that is needed."""
    return data.open_source(
        config.dataset,
        image_size=parse_image_size(config.image_size),
        data_dir=config.data_dir or None,
        tasks=tasks_lib.resolve(config.tasks),
        **{option: getattr(config, option) for option in data.OPTIONS},
    )


def build_model(config: TrainConfig, info: data.DatasetInfo) -> keras.Model:
    """The untrained model of a run."""
    crop = parse_image_size(config.crop)
    if crop:
        models.check_image_size(config.model, info.image_shape[:2])
        models.check_image_size(config.model, crop)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        return _build(config, info)
    finally:
        keras.config.set_dtype_policy(before)


def _build(config: TrainConfig, info: data.DatasetInfo) -> keras.Model:
    return models.build(
        config.model,
        tasks_lib.resolve(config.tasks),
        # With crops, training and evaluation differ in size.
        (None, None, 3) if config.crop else info.image_shape,
        len(info.classes),
        width=config.width or None,
        decoders=config.decoders,
        mean=info.mean,
        std=info.std,
        seed=config.seed,
        sync_batch_norm=config.sync_batch_norm,
    )
