# SPDX-License-Identifier: Apache-2.0
"""The training step against hand-made updates, and one replica against two."""

import dataclasses
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from columns_fixture import columns

from mtr_tf import attacks
from mtr_tf import models
from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import threat
from mtr_tf.config.train import TrainConfig
from mtr_tf.data import batching
from mtr_tf.errors import InputError
from mtr_tf.runs import directory
from mtr_tf.runs import strategy as strategy_lib
from mtr_tf.runs.workers import Workers
from mtr_tf.tasks import task_set
from mtr_tf.training import step as step_lib
from mtr_tf.training.losses import Weighting

TASKS = ("seg", "depth")
WEIGHTS = {"seg": 0.75, "depth": 0.25}
BATCH = 4


def learner(**settings):
    """SGD on `tiny`, or another model; under the strategy in scope."""
    model = settings.pop("model", None) or models.build(
        "tiny",
        TASKS,
        (16, 16, 3),
        3,
        sync_batch_norm=settings.pop("sync", True),
    )
    optimizer = keras.optimizers.SGD(settings.pop("rate", 0.01), momentum=0.9)
    defaults = {"weight_decay": 0.0, "batch_size": BATCH}
    weighting = settings.pop("weighting", None) or Weighting(WEIGHTS)
    optimizer.build(model.trainable_variables + weighting.variables)
    losses = {task: tasks_lib.TASKS[task].loss for task in TASKS}
    return step_lib.Learner(
        model, optimizer, losses, weighting, **(defaults | settings)
    )


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
    """Returns losses [steps, tasks], the weights after the steps, and the learner."""
    with strategy.scope():
        setup = learner(**settings)
    run = step_lib.compile_steps(setup, strategy)
    losses = run(batches(strategy, steps), tf.constant(steps)).numpy()
    return losses, [v.numpy() for v in setup.model.trainable_variables], setup


def test_one_step_is_sgd_on_the_weighted_loss_with_coupled_decay():
    losses, weights, _ = train(tf.distribute.get_strategy(), 1, weight_decay=0.3)
    setup = learner()
    batch = next(batches(tf.distribute.get_strategy(), 1))
    variables = setup.model.trainable_variables
    start = [v.numpy() for v in variables]
    with tf.GradientTape() as tape:
        outputs = setup.model(batch["image"], training=True)
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
    for w, g, got in zip(start, tape.gradient(total, variables), weights, strict=True):
        np.testing.assert_allclose(got, w - 0.01 * (g + 0.3 * w), atol=2e-6)


def regularized():
    """One convolution per task, with what layers may add to a loss."""
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(
        4, 3, padding="same", kernel_regularizer=keras.regularizers.L2(0.3)
    )(image)
    x = keras.layers.ActivityRegularization(l2=0.02)(x)
    heads = {"seg": keras.layers.Conv2D(3, 1)(x), "depth": keras.layers.Conv2D(1, 1)(x)}
    return keras.Model(image, heads)


def test_what_layers_add_to_the_loss_is_added_as_by_fit():
    strategy = tf.distribute.get_strategy()
    batch = next(batches(strategy, 1))
    net, fit_net = regularized(), regularized()
    fit_net.set_weights(net.get_weights())

    def squares(target, output, mask=None):
        return tf.reduce_mean(output**2, [1, 2, 3])

    losses = dict.fromkeys(TASKS, squares)
    setup = dataclasses.replace(learner(model=net), losses=losses)
    step_lib.compile_steps(setup, strategy)(batches(strategy, 1), tf.constant(1))
    fit_net.compile(keras.optimizers.SGD(0.01), loss=losses, loss_weights=WEIGHTS)
    fit_net.train_on_batch(batch["image"], batch["targets"])
    for got, want in zip(net.get_weights(), fit_net.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_layers_add_to_the_loss_of_each_view_what_it_weighs():
    batch = next(batches(tf.distribute.get_strategy(), 1))
    net = regularized()
    attacker = adversary(
        attack=lambda objective, x, seed: x + 0.5, tasks=task_set("seg"), share=0.25
    )
    setup = learner(model=net, adversary=attacker)
    _, gradients = step_lib._gradients(setup, batch)
    with tf.GradientTape() as tape:
        total = 0.3 * tf.reduce_sum(net.layers[1].kernel.value ** 2)
        for images, share in ((batch["image"] + 0.5, 0.25), (batch["image"], 0.75)):
            features = net.layers[1](images)
            total += share * 0.02 * tf.reduce_sum(features**2) / BATCH
            outputs = net(images, training=True)
            for t in TASKS:
                loss = tasks_lib.TASKS[t].loss
                image_losses = loss(batch["targets"][t], outputs[t], batch["masks"][t])
                total += share * WEIGHTS[t] * tf.reduce_mean(image_losses)
    for got, want in zip(
        gradients, tape.gradient(total, net.trainable_variables), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_what_layers_add_is_the_same_on_two_replicas(mirrored):
    weights, start = [], regularized().get_weights()
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            net = regularized()
            net.set_weights(start)
            setup = learner(model=net)
        step_lib.compile_steps(setup, strategy)(batches(strategy, 2), tf.constant(2))
        weights.append(net.get_weights())
    for single, double in zip(*weights, strict=True):
        np.testing.assert_allclose(single, double, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_two_replicas_equal_one(mirrored, weight_decay):
    settings = {"weight_decay": weight_decay, "rate": 0.002}
    single = train(tf.distribute.get_strategy(), **settings)
    double = train(mirrored, **settings)
    np.testing.assert_allclose(single[0], double[0], rtol=1e-5)
    for a, b in zip(single[1], double[1], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_statistics_of_replicas_settle_on_their_mean(mirrored):
    with mirrored.scope():
        model = models.build("tiny", TASKS, (16, 16, 3), 3, sync_batch_norm=False)

    @tf.function
    def update(batch):
        mirrored.run(lambda batch: model(batch["image"], training=True), (batch,))

    update(next(batches(mirrored, 1)))
    statistics = [v for v in model.non_trainable_variables if "moving" in v.path]
    pairs = [[copy.numpy() for copy in v.value.values] for v in statistics]
    assert any(not np.array_equal(*pair) for pair in pairs)
    step_lib.settle_statistics(model, Workers(mirrored))
    for variable, pair in zip(statistics, pairs, strict=True):
        for copy in variable.value.values:
            np.testing.assert_allclose(copy.numpy(), np.mean(pair, axis=0), rtol=1e-6)


@pytest.mark.parametrize("replicas", [3, 5, 7])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_the_same_on_all_replicas_stays_the_same(replicas, dtype):
    expected = np.random.default_rng(0).normal(size=1000).astype(dtype)
    copies = [tf.Variable(expected) for _ in range(replicas)]
    value = types.SimpleNamespace(dtype=copies[0].dtype, values=copies)
    variable = types.SimpleNamespace(value=value)
    model = types.SimpleNamespace(non_trainable_variables=[variable])
    workers = Workers(tf.distribute.get_strategy())
    for _ in range(3):
        step_lib.settle_statistics(model, workers)
    for copy in copies:
        np.testing.assert_array_equal(copy.numpy(), expected)


@pytest.mark.slow
def test_a_strategy_of_one_mirrored_device_trains_under_xla():
    """Keras cannot update weights in a mirrored replica that XLA compiles."""
    weights = []
    for name in ("mirrored", "one_device"):
        strategy = strategy_lib.create(name)
        with strategy.scope():
            setup = learner()
        run = step_lib.compile_steps(setup, strategy, jit=True)
        run(batches(strategy, 2), tf.constant(2))
        weights.append([v.numpy() for v in setup.model.trainable_variables])
    for first, second in zip(*weights, strict=True):
        np.testing.assert_array_equal(first, second)


def test_steps_in_one_call_equal_steps_in_many():
    strategy, setup = tf.distribute.get_strategy(), learner()
    run = step_lib.compile_steps(setup, strategy)
    weights = setup.model.trainable_variables
    remainder = setup.model.non_trainable_variables + setup.optimizer.variables
    state = [*weights, *remainder]
    start, ends = [v.numpy() for v in state], []
    for calls in ([3], [1, 1, 1]):
        for variable, value in zip(state, start, strict=True):
            variable.assign(value)
        iterator = batches(strategy, 3)
        for count in calls:
            run(iterator, tf.constant(count))
        ends.append([v.numpy() for v in state])
    assert run.experimental_get_tracing_count() == 1
    for one_call, many_calls in zip(*ends, strict=True):
        np.testing.assert_array_equal(one_call, many_calls)
    assert (ends[0][0] != start[0]).any()


def test_training_lowers_the_loss_on_one_batch():
    strategy = tf.distribute.get_strategy()
    setup = learner(rate=0.05)
    dataset = tf.data.Dataset.from_tensors(next(batches(strategy, 1))).repeat(20)
    losses = step_lib.compile_steps(setup, strategy)(
        iter(dataset), tf.constant(20)
    ).numpy()
    assert (losses[-1] < losses[0] * [0.98, 0.7]).all()


# Learned weights.


def learned(seg=0.0, depth=0.0):
    return Weighting(
        {"seg": 1.0, "depth": 0.5},
        {
            "seg": keras.Variable(seg, dtype="float32"),
            "depth": keras.Variable(depth, dtype="float32"),
        },
    )


def test_one_step_of_learned_weights_by_hand():
    weighting = learned(0.3, -0.2)
    losses, _, _ = train(tf.distribute.get_strategy(), 1, weighting=weighting, rate=0.1)
    for task, c, s in (("seg", 1.0, 0.3), ("depth", 0.5, -0.2)):
        loss = losses[0, TASKS.index(task)]
        want = s - 0.1 * (0.5 - c * np.exp(-s) * loss)
        got = float(weighting.log_variances[task].value)
        assert got == pytest.approx(want, abs=1e-6)
        assert weighting.current()[task] == pytest.approx(c * np.exp(-got))


@pytest.mark.slow
def test_learned_weights_on_two_replicas_equal_those_on_one(mirrored):
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            weighting = learned()
        train(strategy, 2, weighting=weighting, rate=0.002)
        weights.append(weighting.current())
    assert weights[0] == pytest.approx(weights[1], abs=1e-6)


# Adversarial training.


def adversary(**changes):
    settings = {
        "attack": attacks.PGD(8 / 255, 2 / 255, 3, keep="last"),
        "tasks": ("seg",),
        "share": 1.0,
        "batch_norm": "inference",
        "seed": 7,
    }
    return step_lib.Adversary(**(settings | changes))


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_one_adversarial_step_by_hand(share):
    attacker = adversary(share=share)
    losses, weights, _ = train(tf.distribute.get_strategy(), 1, adversary=attacker)
    setup = learner()
    batch = next(batches(tf.distribute.get_strategy(), 1))
    objective = attacks.objective(
        setup.model, batch["targets"], batch["masks"], ("seg",)
    )
    keys = threat.fold_in(threat.fold_in(7, batch["step"]), batch["position"])
    attacked = attacker.attack(objective, batch["image"], seed=keys)
    assert np.abs(attacked - batch["image"]).max() > 7 / 255
    variables = setup.model.trainable_variables
    start = [v.numpy() for v in variables]
    want = dict.fromkeys(TASKS, 0.0)
    with tf.GradientTape() as tape:
        for images, part in ((attacked, share), (batch["image"], 1 - share)):
            outputs = setup.model(images, training=True)
            for t in TASKS:
                loss = tasks_lib.TASKS[t].loss
                image_losses = loss(batch["targets"][t], outputs[t], batch["masks"][t])
                want[t] += part * tf.reduce_mean(image_losses)
        total = sum(WEIGHTS[t] * want[t] for t in TASKS)
    np.testing.assert_allclose(losses[0], list(want.values()), rtol=1e-4)
    for w, g, got in zip(start, tape.gradient(total, variables), weights, strict=True):
        np.testing.assert_allclose(got, w - 0.01 * g, atol=1e-5)


@pytest.mark.slow
def test_adversarial_steps_on_two_replicas_equal_those_on_one(mirrored):
    settings = {"adversary": adversary(tasks=TASKS), "rate": 0.002}
    single = train(tf.distribute.get_strategy(), 2, **settings)
    double = train(mirrored, 2, **settings)
    np.testing.assert_allclose(single[0], double[0], rtol=1e-3)
    for a, b in zip(single[1], double[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_batch_norm_in_training_mode_sees_the_attack():
    """As in the released code: each pass of the attack moves running statistics."""
    inference, training = (
        train(tf.distribute.get_strategy(), 1, adversary=adversary(batch_norm=mode))[2]
        for mode in ("inference", "training")
    )
    shifts = [
        float(np.abs(a.numpy() - b.numpy()).max())
        for a, b in zip(
            inference.model.non_trainable_variables,
            training.model.non_trainable_variables,
            strict=True,
        )
    ]
    assert max(shifts) > 1e-3


def test_what_the_flags_make():
    def make(**settings):
        tasks = ("seg", "depth", "autoencoder")
        config = TrainConfig(tasks=tasks, main_tasks=("seg",), **settings)
        return step_lib.make_adversary(directory.canonical(config), task_set(tasks))

    assert make() is None
    assert make(adversarial_tasks="main", adversarial_share=0.0) is None
    main = make(adversarial_tasks="main")
    assert tuple(main.tasks) == ("seg",)
    assert main.attack.epsilon == pytest.approx(8 / 255)
    assert main.attack.step_size == pytest.approx(2 / 255)
    assert tuple(make(adversarial_tasks="all").tasks) == tuple(task_set("s,d,A"))
    assert tuple(make(adversarial_tasks="d+A").tasks) == ("depth", "autoencoder")
    with pytest.raises(InputError, match="--adversarial_tasks .* but normal is not"):
        make(adversarial_tasks="normal")


@pytest.mark.parametrize("wrong", [None, 0, 1])
def test_an_overflow_on_any_replica_skips_the_step_of_all(mirrored, wrong):
    with mirrored.scope():
        weight = keras.Variable([1.0, 2.0])
        inner = keras.optimizers.SGD(0.5)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
        optimizer.build([weight])

    @tf.function
    def step():
        def replica_step():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            is_wrong = tf.equal(replica, -1 if wrong is None else wrong)
            gradient = tf.where(is_wrong, np.float32(np.inf), tf.constant([4.0, 8.0]))
            gradients = step_lib._spread_nan([gradient])
            optimizer.apply(gradients, [weight])

        mirrored.run(replica_step)

    step()
    # Each replica's gradient over the scale, summed: (2, 4).
    expected = [1.0 - 0.5 * 2, 2.0 - 0.5 * 4] if wrong is None else [1.0, 2.0]
    np.testing.assert_allclose(weight.numpy(), expected)
    assert int(inner.iterations.numpy()) == (wrong is None)
