# SPDX-License-Identifier: Apache-2.0
"""Learning rates by hand."""

import math

import keras
import pytest

from mtr_tf.config.train import TrainConfig
from mtr_tf.training import schedules


def rates(config, steps_per_epoch, steps):
    schedule = schedules.learning_rate(config, steps_per_epoch)
    return [float(schedule(step)) for step in range(steps)]


def test_the_step_schedule_falls_when_an_epoch_is_over():
    config = TrainConfig(
        schedule="step", lr_epochs=(1, 2), lr_factor=0.5, learning_rate=1.0, epochs=3
    )
    assert rates(config, 3, 9) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_cosine_starts_at_the_rate_and_would_end_at_zero():
    config = TrainConfig(learning_rate=2.0, epochs=2)
    got = rates(config, 4, 9)
    want = [1 + math.cos(math.pi * step / 8) for step in range(9)]
    assert got == pytest.approx(want, abs=1e-6)


def test_a_whole_number_is_a_rate_like_any_other():
    config = TrainConfig(learning_rate=1, epochs=2)
    want = [0.5 + 0.5 * math.cos(math.pi * step / 8) for step in range(8)]
    assert rates(config, 4, 8) == pytest.approx(want, abs=1e-6)
    settings = {"schedule": "step", "lr_epochs": (1,), "lr_factor": 0, "epochs": 2}
    assert rates(TrainConfig(learning_rate=2, **settings), 1, 2) == [2, 0]
    optimizer = schedules.optimizer(TrainConfig(optimizer="sgd", momentum=0), 10)
    assert optimizer.momentum == 0


def test_constant_stays():
    config = TrainConfig(schedule="constant", learning_rate=0.3, epochs=2)
    assert rates(config, 4, 8) == pytest.approx([0.3] * 8)


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", keras.optimizers.SGD), ("adam", keras.optimizers.Adam)]
)
def test_optimizers(name, kind):
    optimizer = schedules.optimizer(TrainConfig(optimizer=name), 10)
    assert type(optimizer) is kind
    assert not optimizer.weight_decay


def test_half_precision_scales_the_loss():
    optimizer = schedules.optimizer(TrainConfig(precision="mixed_float16"), 10)
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def test_the_released_schedule_is_zero_after_180_epochs():
    config = TrainConfig(schedule="released", learning_rate=0.01, epochs=200)
    rate = schedules.learning_rate(config, steps_per_epoch=3)
    rates = [float(rate(step)) for step in range(600)]
    assert rates[:540] == pytest.approx([0.01] * 540)
    assert rates[540:] == [0] * 60
