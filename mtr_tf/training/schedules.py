# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning-rate schedules of a training configuration."""

from __future__ import annotations

import keras

from mtr_tf.config.train import TrainConfig

_RELEASED_EPOCHS = 180


def learning_rate(
    config: TrainConfig, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the rate as a function of the step (0 is the first).

    `step` multiplies the rate by `lr_factor` once each epoch of `lr_epochs` is over;
    `released` multiplies it by 0 after 180 epochs, as the paper's code does by mistake.
    """
    total = config.epochs * steps_per_epoch
    if config.schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(config.learning_rate, total)
    epochs, factor = config.lr_epochs, config.lr_factor
    if config.schedule == "released":
        epochs, factor = (_RELEASED_EPOCHS,), 0.0
    edges = [e * steps_per_epoch for e in epochs]
    if config.schedule == "constant" or not edges:
        edges = [total]  # Never reached: the last step is total - 1.
    rates = [config.learning_rate * factor**i for i in range(len(edges) + 1)]
    # Keras keeps the old rate at a boundary itself; the new one starts there.
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        [e - 1 for e in edges], rates
    )


def optimizer(config: TrainConfig, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Returns the optimizer, wrapped for loss scaling under mixed_float16.

    Weight decay is not given to it: Keras decouples it from the gradient, PyTorch's
    SGD (which the paper used) does not. `step.replica_step` adds it to the loss.
    Keras's momentum sums steps, each with the rate of its time, PyTorch's sums
    gradients: after the rate falls, the rest of the older, larger steps goes on.
    """
    rate = learning_rate(config, steps_per_epoch)
    if config.optimizer == "sgd":
        inner = keras.optimizers.SGD(rate, momentum=config.momentum)
    else:
        inner = keras.optimizers.Adam(rate)
    if config.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(inner)
    return inner
