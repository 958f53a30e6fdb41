# SPDX-License-Identifier: Apache-2.0
"""What holds for every attack, over random configurations.

Results are in ball and box as stored, finite, of x's dtype; an image's result depends
on nothing else in its batch; and attacks that keep their best are never below their
start. The fuzz test tries 11 264 images, each with an objective of its own, 64 to a
batch and a radius to each batch: a new graph costs far more than running it.
"""

from __future__ import annotations

import functools

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from tiers_fixture import slow

from mtr_tf import attacks
from mtr_tf.attacks import apgd
from mtr_tf.attacks import base
from mtr_tf.attacks import baselines
from mtr_tf.attacks import ensemble
from mtr_tf.attacks import momentum
from mtr_tf.attacks import pgd
from mtr_tf.attacks import square
from mtr_tf.attacks import threat

SHAPE = (5, 4, 2)
SEA = ((2, 0.3), (1.5, 0.3), (1, 0.4))


def step(epsilon):
    return tf.constant(0.3, tf.float64) * epsilon


ATTACKS = {
    "fgsm": pgd.FGSM,
    "pgd": lambda e, norm: pgd.PGD(e, step(e), 3, norm),
    "pgd_last": lambda e, norm: pgd.PGD(e, step(e), 3, norm, restarts=2, keep="last"),
    "mim": lambda e, norm: momentum.MIM(e, step(e), 3, norm),
    "mim_released": lambda e, norm: momentum.MIM(
        e, step(e), 3, norm, True, decay=0.5, normalize=False
    ),
    "apgd": lambda e, norm: apgd.APGD(e, 9, norm, restarts=2),
    "apgd_radii": lambda e, norm: apgd.APGD(e, 9, norm, radii=SEA),
    "square": lambda e, norm: square.Square(e, 8, norm),
    "noise": lambda e, norm: baselines.Noise(e, norm, draws=2),
    "corner": lambda e, norm: baselines.Corner(e, norm, draws=2),
    "worst": lambda e, norm: ensemble.Worst(
        (apgd.APGD(e, 2, norm), square.Square(e, 3, norm), pgd.FGSM(e, norm))
    ),
}
STARTED = ("pgd", "mim_released", "apgd", "noise")  # At draw 0; they keep their best.
# Every attack in both norms; each dtype comes with each attack and with each norm.
DTYPES = ("float32", "float16", "float64", "bfloat16")
CASES = [
    (name, norm, DTYPES[(i + j) % 4])
    for i, name in enumerate(ATTACKS)
    for j, norm in enumerate(("linf", "l2"))
]
EPSILONS = st.one_of(
    st.sampled_from([0.0, 1.0, 4 / 255, 8 / 255]),
    st.floats(0, 1),
    st.floats(1e-6, 1e-2),
)


def objective(weights, dtype):
    """Polynomials: their values do not depend on an image's place in its batch."""
    a, b, c = (tf.cast(w, dtype) for w in tf.unstack(weights))

    @attacks.simple
    def loss(z):
        wave = a * z + b * z * z * (1 - z) + c * z * tf.reverse(z, [1])
        return tf.reduce_sum(wave, [1, 2, 3])

    return loss


def run(name, norm, epsilon, x, weights, keys):
    """Returns the attack's images, and the first start of an attack in STARTED."""
    ball = threat.ball(norm, epsilon)
    draw = (
        threat.random_start if name in ("pgd", "mim_released") else threat.random_point
    )
    start = ball.projection(x)(draw(ball, x, keys, 0))
    attack = ATTACKS[name](epsilon, norm)
    return attack.search(objective(weights, start.dtype), x, keys), start


compiled = functools.lru_cache(maxsize=None)(
    lambda name, norm: tf.function(functools.partial(run, name, norm), autograph=False)
)


def batch(size, dtype, seed):
    """Images (many at the box's edge), weights and keys; some weights are broken."""
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.uniform(-0.5, 1.5, (2, size, 1, 1, 1)), axis=0)
    images = np.clip(rng.uniform(low, high, (size, *SHAPE)), 0, 1)
    weights = rng.normal(size=(3, size, *SHAPE)) * 10 ** rng.uniform(
        -6, 6, (1, size, 1, 1, 1)
    )
    weights = weights.astype(np.float32)
    broken = rng.choice([np.nan, np.inf, 0, 1e38], size)
    weights[0, :, 0, 0, 0] = np.where(
        rng.uniform(size=size) < 0.2, broken, weights[0, :, 0, 0, 0]
    )
    weights[:, rng.uniform(size=size) < 0.05] = 0
    keys = rng.integers(0, 2**31, (size, 2))
    return tf.cast(images, dtype), tf.constant(weights), tf.constant(keys, tf.int64)


def check(runner, name, norm, dtype, epsilon, seed, size):
    """Runs a batch, and again among other images; checks all that must hold."""
    radius = tf.constant(epsilon, tf.float64)
    x, weights, keys = batch(size, dtype, seed)
    got, start = runner(radius, x, weights, keys)
    assert got.dtype == x.dtype
    check_place(norm, epsilon, wide(got), wide(x))

    rng = np.random.default_rng(seed)
    order, swap = rng.permutation(size), rng.uniform(size=size) < 0.5
    swap[0] = False
    parts = [
        np.where(swap.reshape(-1, *[1] * (new_part.shape.rank - 1)), new_part, old_part)
        for new_part, old_part in zip(
            leading(*batch(size, dtype, seed + 1)),
            leading(x, weights, keys),
            strict=True,
        )
    ]
    mixed_x, mixed_weights, mixed_keys = (tf.constant(part[order]) for part in parts)
    mixed_result, _ = runner(
        radius, mixed_x, tf.stack(tf.unstack(mixed_weights, axis=1)), mixed_keys
    )
    common = ~swap[order]
    np.testing.assert_array_equal(wide(mixed_result)[common], wide(got)[order][common])

    if name in STARTED and dtype in ("float32", "float64"):
        judge = objective(weights, x.dtype)
        start_scores, scores = judge(start).numpy(), judge(got).numpy()
        size = np.abs(weights.numpy()).sum((0, 2, 3, 4))
        with np.errstate(invalid="ignore"):  # Infinite scores; NaN is not below.
            assert not np.any(scores < start_scores - 1e-5 * size)


def leading(x, weights, keys):
    """With the batch as every tensor's first axis."""
    return x, tf.stack(tf.unstack(weights), axis=1), keys


def wide(x):
    return tf.cast(x, tf.float64).numpy()


def check_place(norm, epsilon, got, x):
    assert np.all(np.isfinite(got))
    assert got.min() >= 0
    assert got.max() <= 1
    offset = (got - x).reshape(len(x), -1)
    if norm == "linf":
        assert np.abs(offset).max() <= epsilon
    else:
        assert np.sqrt(np.square(offset).sum(1)).max() <= epsilon


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_attack_keeps_its_promises(case):
    # Run eagerly: for one batch, compiling takes longer.
    number = CASES.index(case)
    epsilon = (8 / 255, 0.0, 0.3, 1.0, 1e-5)[number % 5]
    check(functools.partial(run, *case[:2]), *case, epsilon, seed=number, size=3)


@pytest.mark.fuzz
@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("part", range(2))
def test_every_attack_keeps_its_promises_in_ten_thousand_cases(case, part):
    runner = compiled(*case[:2])

    @hypothesis.settings(max_examples=4, deadline=None, derandomize=True)
    @hypothesis.given(epsilon=EPSILONS, seed=st.integers(0, 2**31))
    def batches(epsilon, seed):
        check(runner, *case, epsilon, 2 * seed + part, size=64)

    batches()


def test_a_class_without_a_search_is_no_attack():
    # Python's own error, when it is made, and not one of TensorFlow's when it runs.
    class Nothing(base.Attack):
        passes = 1

    with pytest.raises(TypeError, match="abstract method '?search"):
        Nothing()


def test_every_image_alone_equals_it_in_a_batch():
    # As the public call runs it: seeds from one int and the image's number.
    x, weights, _ = batch(4, "float32", 7)
    weights = tf.where(tf.math.is_finite(weights), weights, 1.0)
    seeds = threat.fold_in(5, tf.range(4))
    for name, norm in (("apgd", "l2"), ("square", "linf"), ("corner", "linf")):
        attack = ATTACKS[name](tf.constant(0.1, tf.float64), norm)
        batch_result = attack(objective(weights, x.dtype), x, 5)
        image_result = attack(objective(weights[:, 2:3], x.dtype), x[2:3], seeds[2:3])
        np.testing.assert_allclose(image_result[0], batch_result[2], atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"fgsm", "pgd", "pgd_last"}))
def test_every_run_begins_the_objective_where_it_starts(name):
    # `begin` is called once per run, and the objective that it returns is evaluated.
    starts, points = [], []

    class StartRecorder:
        def begin(self, start, clean):
            np.testing.assert_array_equal(clean, x)
            starts.append(start.numpy())

            @attacks.simple
            def loss(z):
                points.append(z.numpy())
                return tf.reduce_sum(z, [1, 2, 3])

            return loss

    x, _, keys = batch(2, "float32", 3)
    attack = ATTACKS[name](tf.constant(0.1, tf.float64), "linf")
    attack.search(StartRecorder(), x, keys)
    runs = {"apgd": 2, "worst": 4}.get(name, 1)
    assert len(starts) == runs
    assert len(points) == attack.passes
    if name not in ("noise", "corner", "worst"):
        np.testing.assert_array_equal(points[0], starts[0])


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", slow("l2")])
def test_empty_batches_give_empty_batches(name, norm):
    # Convolutions fail on an empty batch, so the model must not be called at all.
    kernel = tf.constant(np.random.default_rng(0).normal(size=(3, 3, 2, 1)), tf.float32)
    loss = attacks.simple(
        lambda z: tf.reduce_sum(tf.nn.conv2d(z, kernel, 1, "SAME"), [1, 2, 3])
    )
    attack = ATTACKS[name](8 / 255, norm)
    x = np.random.default_rng(1).uniform(size=(2, *SHAPE)).astype(np.float32)
    empty = attack(loss, x[:0])
    assert empty.shape == (0, *SHAPE)
    assert empty.dtype == tf.float32
    graph = tf.function(
        lambda z: attack(loss, z, seed=3),
        input_signature=[tf.TensorSpec([None, *SHAPE])],
        autograph=False,
    )
    assert graph(x[:0]).shape == (0, *SHAPE)
    if norm == "l2" or name in ("pgd", "apgd"):  # For linf, two attacks stand for all.
        np.testing.assert_allclose(graph(x), attack(loss, x, seed=3), atol=1e-3)
