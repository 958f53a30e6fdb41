# SPDX-License-Identifier: Apache-2.0
"""Results with XLA equal those without; what XLA cannot compile runs without it.

On CPUs XLA runs only where it is forced: here, on nets that are compiled quickly.
"""

from __future__ import annotations

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from columns_fixture import columns
from tiers_fixture import slow

from mtr_tf import attacks
from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import base
from mtr_tf.attacks import threat
from mtr_tf.data import batching
from mtr_tf.errors import InputError
from mtr_tf.evaluation.evaluator import Evaluator
from mtr_tf.models import compiling
from mtr_tf.models import folding
from mtr_tf.models import pooling
from mtr_tf.runs.workers import Workers
from mtr_tf.training import step as step_lib
from mtr_tf.training.losses import Weighting

TASKS = ("seg", "depth")
SIZE = 8


def net() -> keras.Model:
    """A minimal net with a convolution, a batch norm, max pooling and two heads."""
    keras.utils.set_random_seed(1)
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(image)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.MaxPooling2D(2, 1, padding="same")(x)
    outputs = {
        "seg": keras.layers.Conv2D(3, 1)(x),
        "depth": keras.layers.Conv2D(1, 1)(x),
    }
    return keras.Model(image, outputs)


@pytest.fixture(scope="module")
def problem():
    """An objective on a small net with batch norms, and its images."""
    model = net()
    data = columns(3, SIZE)
    objective = attacks.objective(
        model,
        {task: tf.constant(data.targets[task]) for task in TASKS},
        {task: tf.constant(data.masks[task], tf.float32) for task in TASKS},
    )
    return objective, tf.constant(data.images / np.float32(255))


def both(attack, problem):
    objective, x = problem
    return [attack(objective, x, seed=3, jit=jit).numpy() for jit in ("off", "on")]


E = 8 / 255
ATTACKS = {
    "pgd": attacks.PGD(E, E / 4, 3),
    "pgd l2": attacks.PGD(0.5, 0.2, 3, "l2"),
    "restarts": attacks.PGD(E, E / 4, 2, restarts=2),
    "fgsm": attacks.FGSM(E),
    "mim": attacks.MIM(E, E / 4, 3),
    "apgd": attacks.APGD(E, 5),
    "square": attacks.Square(E, 10),
    "noise": attacks.Noise(0.5, "l2"),
    "corner": attacks.Corner(E),
    "sea": attacks.SEA(E, 5),
}
# Without a random start, which takes long to compile.
ASCENT = attacks.PGD(E, E / 4, 3, random_start=False)


@pytest.mark.parametrize(
    "attack",
    [ASCENT, *map(slow, ATTACKS.values())],
    ids=["ascent", *ATTACKS],
)
def test_attacks(attack, problem, caplog):
    reference, compiled = both(attack, problem)
    assert np.abs(reference - np.asarray(problem[1])).max() > E / 2
    np.testing.assert_allclose(compiled, reference, atol=1e-6)
    assert "XLA" not in caplog.text  # It compiled.


def assert_same_gradients(objective, x):
    """Compares all that an attack takes from its objective, halfway through."""
    point = tf.clip_by_value(x + E * tf.sin(1e3 * x), 0, 1)

    def follow(x, point):
        return base.gradient(base.begin(objective, x, x), point, tf.constant(0.5))

    reference = tf.function(follow, autograph=False)
    compiled = compiling.compiled(follow)
    triples = zip(reference(x, point), compiled(x, point), (0, 1e-6), strict=True)
    for expected, result, rounding in triples:  # Scores may be rises of loss ratios.
        scale = np.abs(expected).max()
        assert scale > 0
        np.testing.assert_allclose(result, expected, atol=1e-5 * scale + rounding)


@pytest.mark.slow
@pytest.mark.parametrize("balance", attacks.BALANCES)
def test_balances(balance, problem):
    objective, x = problem
    recipe = dataclasses.replace(objective.recipe, balance=balance)
    assert_same_gradients(recipe.bind(objective.batch), x)


@pytest.mark.slow
@pytest.mark.parametrize("loss", attacks.ATTACK_LOSSES)
def test_losses(loss, problem):
    objective, x = problem
    surrogate = attacks.ATTACK_LOSSES[loss]
    tasks = [task for task in TASKS if surrogate.fits(tasks_lib.TASKS[task])]
    if not tasks:
        pytest.skip("for other tasks")
    batch = objective.batch
    objective = attacks.objective(
        objective.recipe.model, batch["targets"], batch["masks"], tasks, losses=loss
    )
    assert_same_gradients(objective, x)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [([], tf.float64), ([37], tf.float32), ([5, 3, 7], tf.float64)],
)
def test_random_numbers_are_those_of_tensorflow(shape, dtype):
    key = tf.constant([5, 7], tf.int64)
    options = {"dtype": dtype, "alg": "philox"}
    uniform = tf.random.stateless_uniform(shape, key, **options)
    normal = tf.random.stateless_normal(shape, key, **options)

    def draw(key):
        return threat.uniform(shape, key, dtype), threat.normal(shape, key, dtype)

    for call in (draw, compiling.compiled(draw)):
        uniform_draw, normal_draw = call(key)
        np.testing.assert_allclose(uniform_draw, uniform)
        np.testing.assert_allclose(normal_draw, normal, atol=1e-5)


def test_max_pooling_has_a_gradient_that_xla_can_make_deterministic():
    """All settings are in one graph, which is compiled once."""
    image = keras.Input((9, 8, 2))
    sizes = itertools.product([(1, 2), (3, 2), (2, 2), (2, 1)], ["valid", "same"])
    settings = {
        f"{size} by {stride} {padding}": (size, stride, padding)
        for (size, stride), padding in sizes
    }
    model = keras.Model(
        image,
        {
            name: keras.layers.MaxPooling2D(*arguments)(image)
            for name, arguments in settings.items()
        },
    )
    layers = {
        name: pooling.MaxPooling(*arguments) for name, arguments in settings.items()
    }
    x = tf.random.stateless_normal((2, 9, 8, 2), (0, 1))

    def values_and_slopes(x):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            outputs = folding.fold(model, list(settings))(x)
            waves = {n: tf.sin(y) + tf.cos(layers[n](x)) for n, y in outputs.items()}
        return outputs, {name: tape.gradient(wave, x) for name, wave in waves.items()}

    compiled = compiling.compiled(values_and_slopes)
    for expected, result in zip(values_and_slopes(x), compiled(x), strict=True):
        for name in settings:
            np.testing.assert_allclose(result[name], expected[name], atol=1e-6)
    graph = compiled.get_concrete_function(x).graph
    assert not [op for op in graph.get_operations() if "MaxPool" in op.type]


def test_what_xla_cannot_compile_goes_on_without(problem, caplog):
    _, x = problem

    @attacks.simple
    def objective(x):
        means = tf.reduce_mean(x, [1, 2, 3])
        return tf.ensure_shape(tf.py_function(tf.exp, [means], tf.float32), [3])

    reference, compiled = both(attacks.Noise(E), (objective, x))
    np.testing.assert_array_equal(compiled, reference)
    assert caplog.text.count("XLA cannot compile the attack, which continues") == 1


def test_an_error_that_is_not_of_xla_is_raised():
    def build(jit):
        @tf.function(jit_compile=jit, autograph=False)
        def run(x):
            tf.py_function(lambda: 1 / 0, [], [])
            return x

        return run

    with pytest.raises(tf.errors.UnknownError, match="division by zero"):
        compiling.Fallback(build, True, "it")(tf.constant(1.0))


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "x.pb; No space left"), True),
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"), False),
        (tf.errors.InternalError(None, None, "Dst tensor is not initialized."), False),
    ],
)
def test_a_full_disk_is_not_taken_for_too_little_memory(error, goes_on):
    def build(jit):
        def run(x):
            if jit:
                raise error
            return x + 1

        return run

    call = compiling.Fallback(build, True, "it")
    if goes_on:
        assert call(1) == call(1) == 2
    else:
        with pytest.raises(type(error)):
            call(1)


def test_when_it_pays(monkeypatch):
    small, batch = 32 * 64 * 64, 8 * 256 * 512
    for mode, expected in (("on", True), ("off", False), ("auto", False)):
        assert compiling.worthwhile(mode, 10**9, small) == expected  # On a CPU.
    monkeypatch.setattr(compiling, "on_gpu", lambda: True)
    assert not compiling.worthwhile("auto", 3999, small)
    assert compiling.worthwhile("auto", 4000, small)
    assert compiling.worthwhile("auto", 4000, batch)
    assert compiling.worthwhile("auto", 1000, 4 * batch)
    assert not compiling.worthwhile("auto", 990, 4 * batch)
    with pytest.raises(InputError, match="jit must be one of auto, on, off; got 'yes'"):
        compiling.worthwhile("yes", 1, 1)


def steps(jit, make_optimizer, strategy=None, count=3, adversary=None):
    """Losses and all weights after some steps of training."""
    strategy = strategy or tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        model = net()
        optimizer = make_optimizer()
        optimizer.build(model.trainable_variables)
        weighting = Weighting(dict.fromkeys(TASKS, 0.5))
    losses = {task: tasks_lib.TASKS[task].loss for task in TASKS}
    learner = step_lib.Learner(
        model, optimizer, losses, weighting, 1e-4, 4, adversary=adversary
    )
    batches = strategy.distribute_datasets_from_function(
        lambda context: batching.train_batches(
            columns(8, SIZE),
            TASKS,
            batch_size=4,
            seed=0,
            first_step=0,
            last_step=count,
            context=context,
        )
    )
    run = step_lib.compile_steps(learner, strategy, jit)
    history = run(iter(batches), tf.constant(count)).numpy()
    return history, model.get_weights()


def assert_same_training(*arguments, **options):
    reference, compiled = (steps(jit, *arguments, **options) for jit in (False, True))
    np.testing.assert_allclose(compiled[0], reference[0], rtol=1e-5)
    for expected, result in zip(reference[1], compiled[1], strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(1e-3),
}


@pytest.mark.slow
def test_adversarial_training():
    attack = attacks.PGD(E, E / 2, 1, keep="last")
    adversary = step_lib.Adversary(attack, TASKS, 0.5, "inference", 7)
    assert_same_training(OPTIMIZERS["sgd"], adversary=adversary)


@pytest.mark.parametrize("name", [n if n == "sgd" else slow(n) for n in OPTIMIZERS])
def test_training(name):
    assert_same_training(OPTIMIZERS[name])


@pytest.mark.slow
def test_training_on_two_replicas(mirrored):
    assert_same_training(OPTIMIZERS["sgd"], mirrored, 2)


def evaluated(jit, strategy=None):
    with (strategy or tf.distribute.get_strategy()).scope():
        model = net()
    attack = attacks.FGSM(E)
    workers = strategy and Workers(strategy)
    evaluator = Evaluator(model, TASKS, 3, workers, attack=attack, jit=jit)
    return evaluator.run(columns(5, SIZE), batch_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_evaluation(replicas, mirrored):
    strategy = mirrored if replicas == 2 else None
    reference, compiled = (evaluated(jit, strategy) for jit in (False, True))
    for kind in ("clean", "attacked"):
        expected, result = getattr(reference, kind), getattr(compiled, kind)
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5),
            expected,
            result,
        )
