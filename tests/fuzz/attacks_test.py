# SPDX-License-Identifier: Apache-2.0
"""What holds for any settings of an attack on Keras nets with batch norms.

Results are finite, in ball and box as stored, of x's type and shape; the same seed
gives the same bits; an empty batch comes back empty; and the net stays the same,
its moving statistics included. Settings that do not go together are refused in one
sentence.
"""

from __future__ import annotations

import fuzz_fixture
import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf.attacks import ensemble
from mtr_tf.attacks import kinds

SIZE = 8
CLASSES = 3
# Without those that repeat the released code, whose balls end where float32 rounds.
NAMES = kinds.member_names()
LOSSES = ((), (), "cospgd", "margin", "segpgd", "masked_ce", "js", "angular", "houdini")


@pytest.fixture(scope="module")
def nets() -> list[keras.Model]:
    """Nets with batch norms in several places, with statistics of their own."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    models = []
    for number in range(4):
        image = x = keras.Input((SIZE, SIZE, 3))
        if number == 1:
            x = layers.BatchNormalization()(x)
        x = layers.Conv2D(4, 3, padding="same")(x)
        x = layers.BatchNormalization(scale=number != 2)(x)
        x = layers.Activation(("relu", "tanh", "relu", "gelu")[number])(x)
        if number == 3:
            y = layers.BatchNormalization()(
                layers.DepthwiseConv2D(3, padding="same")(x)
            )
            x = layers.Add()([x, y])
        outputs = {
            "seg": layers.Conv2D(CLASSES, 1)(x),
            "depth": layers.BatchNormalization()(layers.Conv2D(1, 1)(x)),
            "normal": layers.Conv2D(3, 1)(x),
        }
        net = keras.Model(image, outputs)
        for variable in net.non_trainable_variables:
            variable.assign(rng.uniform(0.2, 1.5, variable.shape))
        models.append(net)
    return models


@pytest.fixture
def eagerly():
    """Runs functions eagerly, which for few passes is faster than making a graph."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def batch(rng, size: int):
    """Images at the edge of the box and within, targets, and masks of any kind."""
    low, high = np.sort(rng.uniform(-0.5, 1.5, 2))
    shape = (size, SIZE, SIZE)
    x = np.clip(rng.uniform(low, high, (*shape, 3)), 0, 1).astype(np.float32)
    targets = {
        "seg": rng.integers(0, CLASSES, shape).astype(np.int32),
        "depth": rng.uniform(0.1, 9, (*shape, 1)).astype(np.float32),
        "normal": rng.normal(size=(*shape, 3)).astype(np.float32),
    }
    masks = {
        task: (rng.random(shape) < rng.choice([0, 0.02, 0.5, 1])).astype(np.float32)
        for task in targets
    }
    return x, targets, masks


def attack(rng, epsilon: float, norm: str):
    """An attack with random settings; one in ten is an ensemble of two."""

    def make(name: str):
        settings = {"norm": norm, "steps": int(rng.integers(1, 4))}
        settings["restarts"] = int(rng.choice([1, 1, 2, 3]))
        settings["step_size"] = epsilon * float(rng.choice([0.1, 0.25, 1, 3]))
        if rng.random() < 0.5:
            settings["random_start"] = bool(rng.integers(2))
        settings["queries"] = int(rng.integers(1, 6))
        return kinds.make(name, epsilon, **settings)

    if rng.random() < 0.1:
        return ensemble.Worst(tuple(make(name) for name in rng.choice(NAMES, 2)))
    return make(str(rng.choice(NAMES)))


def goal(rng, net, targets, masks):
    """A random objective: some of the tasks, with any losses and balance."""
    tasks = rng.permutation(list(targets))[: rng.integers(1, 4)].tolist()
    settings = {
        "balance": str(rng.choice(list(attacks.BALANCES))),
        "losses": LOSSES[rng.integers(len(LOSSES))],
        "targeted": bool(rng.random() < 0.2),
        "judge": str(rng.choice(["auto", "harm", "loss"])),
        "fold": bool(rng.integers(2)),
    }
    if rng.random() < 0.2:
        settings["pixels"] = (rng.random((SIZE, SIZE)) < 0.3).astype(np.float32)
    if rng.random() < 0.2:
        settings["weights"] = {tasks[0]: float(rng.choice([0, 0.5, 1e6]))}
    return attacks.objective(net, targets, masks, tasks, **settings)


def length(norm: str, offset: np.ndarray) -> float:
    flat = offset.reshape(len(offset), SIZE * SIZE * 3)
    lengths = np.abs(flat) if norm == "linf" else np.sqrt(np.square(flat).sum(1))
    return float(lengths.max(initial=0))


@pytest.mark.slow
@fuzz_fixture.tiers(quick=20, least=2000)
@pytest.mark.filterwarnings("ignore")  # Of attacks that leave the images as they are.
def test_any_settings_keep_every_promise(cases, nets, eagerly):
    for rng in cases:
        net = nets[rng.integers(len(nets))]
        old_weights = [weight.copy() for weight in net.get_weights()]
        x, targets, masks = batch(rng, int(rng.choice([0, 1, 2, 3])))
        norm = ("linf", "l2")[rng.integers(2)]
        epsilon = float(
            rng.choice([0, 1 / 255, 8 / 255, 0.3, 1, 10 ** rng.uniform(-6, 0)])
        )
        seed = int(rng.integers(2**31))
        with cases.refused():
            run = attack(rng, epsilon, norm)
            objective = goal(rng, net, targets, masks)
            result = run(objective, x, seed, jit="off").numpy()
            assert result.shape == x.shape
            assert result.dtype == x.dtype
            assert np.isfinite(result).all()
            assert result.min(initial=0) >= 0
            assert result.max(initial=0) <= 1
            assert length(norm, result.astype(np.float64) - x) <= epsilon
            repeat = run(objective, x, seed, jit="off").numpy()
            assert result.tobytes() == repeat.tobytes()
            cases.counts["images"] += len(x)
            cases.counts["empty batches"] += not len(x)
        for old, new in zip(old_weights, net.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
