# SPDX-License-Identifier: Apache-2.0
"""The training step and loop against hand-made updates, and one replica against two."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import models
from mtr_tf import tasks as tasks_lib
from mtr_tf import training
from mtr_tf.config import TrainConfig
from mtr_tf.data import batching
from mtr_tf.data.source import Columns
from mtr_tf.errors import InputError

TASKS = ("seg", "depth")
BATCH = 4


def columns(count=8, size=16):
    rng = np.random.default_rng(0)
    return Columns(
        images=rng.integers(0, 256, (count, size, size, 3), np.uint8),
        targets={
            "seg": rng.integers(0, 3, (count, size, size), np.uint8),
            "depth": rng.uniform(1, 3, (count, size, size, 1)).astype(np.float32),
        },
        masks={task: rng.random((count, size, size)) < 0.8 for task in TASKS},
    )


def learner(**settings):
    """SGD on `tiny`; under the strategy in scope."""
    model = models.build(
        "tiny",
        TASKS,
        (16, 16, 3),
        3,
        sync_batch_norm=settings.pop("sync", True),
    )
    optimizer = keras.optimizers.SGD(settings.pop("rate", 0.01), momentum=0.9)
    optimizer.build(model.trainable_variables)
    defaults = {"weight_decay": 0.0, "batch_size": BATCH}
    weights = {"seg": 0.75, "depth": 0.25}
    return training.Learner(model, optimizer, weights, **(defaults | settings))


def batches(strategy, steps):
    return iter(
        strategy.distribute_datasets_from_function(
            lambda context: batching.train_batches(
                columns(),
                TASKS,
                batch_size=BATCH,
                seed=0,
                first_step=0,
                last_step=steps,
                context=context,
            )
        )
    )


def train(strategy, steps=3, **settings):
    """Losses [steps, tasks] and weights after so many steps."""
    with strategy.scope():
        made = learner(**settings)
    run = training.compile_steps(made, strategy)
    losses = run(batches(strategy, steps), tf.constant(steps)).numpy()
    return losses, [v.numpy() for v in made.model.trainable_variables], made


def test_task_weights_are_the_papers():
    assert training.task_weights(("s", "d"), (), 1) == {"seg": 0.5, "depth": 0.5}
    assert training.task_weights(("s", "d", "A"), ("s",), 0.1) == {
        "seg": 1,
        "depth": 0.05,
        "autoencoder": 0.05,
    }
    assert training.task_weights(("s", "d", "A"), ("s", "d"), 0.1) == {
        "seg": 0.5,
        "depth": 0.5,
        "autoencoder": 0.1,
    }
    with pytest.raises(InputError, match="--main_tasks .*seg, depth.* got normal"):
        training.task_weights(("s", "d"), ("n",), 1)


def test_one_step_is_sgd_on_the_weighted_loss_with_coupled_decay():
    losses, after, _ = train(tf.distribute.get_strategy(), 1, weight_decay=0.3)
    fresh = learner()
    batch = next(batches(tf.distribute.get_strategy(), 1))
    variables = fresh.model.trainable_variables
    before = [v.numpy() for v in variables]
    with tf.GradientTape() as tape:
        outputs = fresh.model(batch["image"], training=True)
        want = [
            tf.reduce_mean(
                tasks_lib.TASKS[t].loss(
                    batch["targets"][t], outputs[t], batch["masks"][t]
                )
            )
            for t in TASKS
        ]
        total = 0.75 * want[0] + 0.25 * want[1]
    np.testing.assert_allclose(losses[0], want, rtol=1e-5)
    for w, g, got in zip(before, tape.gradient(total, variables), after, strict=True):
        np.testing.assert_allclose(got, w - 0.01 * (g + 0.3 * w), atol=2e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_two_replicas_equal_one(mirrored, weight_decay):
    settings = {"weight_decay": weight_decay, "rate": 0.002}
    one = train(tf.distribute.get_strategy(), **settings)
    two = train(mirrored, **settings)
    np.testing.assert_allclose(one[0], two[0], rtol=1e-5)
    for a, b in zip(one[1], two[1], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_statistics_of_replicas_settle_on_their_mean(mirrored):
    _, _, made = train(mirrored, 2, sync=False)
    moving = [v for v in made.model.non_trainable_variables if "moving" in v.path]
    before = [[copy.numpy() for copy in v.value.values] for v in moving]
    assert any(not np.array_equal(*pair) for pair in before)
    training.settle_statistics(made.model)
    for variable, pair in zip(moving, before, strict=True):
        for copy in variable.value.values:
            np.testing.assert_allclose(copy.numpy(), np.mean(pair, axis=0), rtol=1e-6)


def test_steps_in_one_call_equal_steps_in_many():
    strategy = tf.distribute.get_strategy()
    _, together, _ = train(strategy, 3)
    made = learner()
    run, iterator = training.compile_steps(made, strategy), batches(strategy, 3)
    for _ in range(3):
        run(iterator, tf.constant(1))
    assert run.experimental_get_tracing_count() == 1
    for a, b in zip(together, made.model.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_training_lowers_the_loss_on_one_batch():
    strategy = tf.distribute.get_strategy()
    made = learner(rate=0.05)
    one = tf.data.Dataset.from_tensors(next(batches(strategy, 1))).repeat(20)
    losses = training.compile_steps(made, strategy)(iter(one), tf.constant(20)).numpy()
    assert (losses[-1] < losses[0] * [0.98, 0.7]).all()


def test_a_loss_that_is_not_finite_is_named_with_step_and_task():
    losses = np.ones((4, 2))
    training.raise_if_not_finite(losses, TASKS, 10)
    losses[2, 1] = math.nan
    losses[3, 0] = math.inf
    with pytest.raises(InputError, match="loss of depth is nan at step 13"):
        training.raise_if_not_finite(losses, TASKS, 10)


def test_the_timetable():
    config = TrainConfig(summary_every=4, eval_every=6, checkpoint_every=0)
    timetable = training.Timetable(0, 13, config)
    stops, step = [], 0
    while step < 13:
        step = timetable.stop_after(step)
        stops.append(step)
    assert stops == [3, 4, 6, 8, 9, 12, 13]  # Checkpoints every ceil(13 / 5) = 3.
    assert [s for s in stops if timetable.due("eval", s)] == [6, 12, 13]
    assert [s for s in stops if timetable.due("checkpoint", s)] == [3, 6, 9, 12, 13]
    later = dataclasses.replace(timetable, first=7)
    assert later.stop_after(7) == 8


def test_ten_evaluations_and_five_checkpoints_unless_told_otherwise():
    timetable = training.Timetable(0, 100, TrainConfig())
    for what, times in (("eval", 10), ("checkpoint", 5)):
        due = [step for step in range(1, 101) if timetable.due(what, step)]
        assert due == list(range(100 // times, 101, 100 // times)), what
    assert timetable.stop_after(0) == 10
