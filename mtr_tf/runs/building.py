# SPDX-License-Identifier: Apache-2.0
"""What a run's settings describe: its data set and its untrained model."""

from __future__ import annotations

import keras

from mtr_tf import data
from mtr_tf import models
from mtr_tf.config.train import TrainConfig
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source


def open_source(config: TrainConfig) -> Source:
    """The data set of a run, for its tasks; prepared first where that is needed."""
    return data.open_source(
        config.dataset,
        image_size=config.parsed_image_size,
        data_dir=config.data_dir or None,
        tasks=config.tasks,
        **{option: getattr(config, option) for option in data.OPTIONS},
    )


def build_model(config: TrainConfig, info: DatasetInfo) -> keras.Model:
    """The untrained model of a run."""
    channels = info.image_shape[2]
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        model = models.build(
            config.model,
            info.tasks.select(config.tasks),
            # With crops, training and evaluation differ in size.
            (None, None, channels) if config.parsed_crop else info.image_shape,
            len(info.classes),
            width=config.width or None,
            decoders=config.decoders,
            mean=info.mean,
            std=info.std,
            seed=config.seed,
            sync_batch_norm=config.sync_batch_norm,
        )
    finally:
        keras.config.set_dtype_policy(before)
    if config.parsed_crop:
        models.check_image_size(config.model, info.image_shape[:2])
        models.check_image_size(config.model, config.parsed_crop)
    return model
