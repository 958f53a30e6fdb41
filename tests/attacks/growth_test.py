# SPDX-License-Identifier: Apache-2.0
"""Many models attacked in one process: compiled graphs are bounded in bytes and freed.

Counts beyond what loops can count are refused, by every attack.
"""

from __future__ import annotations

import gc
import pathlib
import resource

import numpy as np
import pytest
from tensorflow.python.eager import context
from tensorflow.python.framework import ops

from mtr_tf import attacks
from mtr_tf import models
from mtr_tf.attacks import base
from mtr_tf.errors import InputError

SIZE = 16
IMAGES = np.random.default_rng(0).uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
TARGETS = {"seg": np.zeros((2, SIZE, SIZE), np.int32)}
MASKS = {"seg": np.ones((2, SIZE, SIZE), np.float32)}
PGD = attacks.PGD(8 / 255, 2 / 255, 2)


def attack_new_model(seed):
    """Attacks a new model, which nothing else keeps."""
    model = models.build("tiny", ("seg",), (SIZE, SIZE, 3), 3, seed=seed)
    PGD(attacks.objective(model, TARGETS, MASKS), IMAGES)


def held():
    """How many functions and gradients TensorFlow has for our graphs."""
    for _ in range(3):  # A graph is freed after its owner.
        gc.collect()
    names = ops.gradient_registry.list()
    gradients = sum(name.startswith("CustomGradient-") for name in names)
    return len(context.context().list_function_names()), gradients


def memory():
    """Bytes that this process has in memory."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


@pytest.fixture
def kept(monkeypatch):
    """A cache for about two graphs of this size."""
    cache = base._Compiled(25 * 2**20)
    monkeypatch.setattr(base, "_compiled", cache)
    return cache


@pytest.mark.slow
def test_what_is_compiled_is_bounded_and_goes(kept):
    for seed in range(3):
        attack_new_model(seed)
    counts = held()
    for seed in range(3, 6):
        attack_new_model(seed)
    assert 1 <= len(kept) <= 3
    assert kept.bytes < 40 * 2**20
    assert held() == counts


def test_models_that_fit_are_compiled_once(kept):
    model = models.build("tiny", ("seg",), (SIZE, SIZE, 3), 3)
    for _ in range(2):
        PGD(attacks.objective(model, TARGETS, MASKS), IMAGES)
    (graph,) = kept._made.values()
    assert len(graph._sized) == 1
    assert 2**20 < graph.bytes < 2**25
    weights = sum(4 * np.prod(v.shape) for v in model.variables)
    assert kept.bytes == graph.bytes + weights


@pytest.mark.fuzz  # A minute; other tests in the process disturb it.
def test_forty_models_take_no_more_memory_than_what_is_kept(kept):
    for seed in range(10):
        attack_new_model(seed)
    counts, start_memory = held(), memory()
    for seed in range(10, 50):
        attack_new_model(seed)
    assert held() == counts
    growth = (memory() - start_memory) / 2**20
    assert growth < 180  # 40 graphs, if they stayed, would take 300.


@pytest.mark.parametrize("count", [2**31, 2**32, 10**20])
@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (attacks.PGD, "steps"),
        (attacks.PGD, "restarts"),
        (attacks.MIM, "steps"),
        (attacks.APGD, "steps"),
        (attacks.APGD, "restarts"),
        (attacks.Square, "queries"),
        (attacks.Square, "restarts"),
        (attacks.Noise, "draws"),
        (attacks.Corner, "draws"),
        (attacks.SEA, "steps"),
    ],
)
def test_counts_that_nothing_can_do_are_refused(attack, name, count):
    settings = {"epsilon": 8 / 255, name: count}
    if attack in (attacks.PGD, attacks.MIM):
        settings = {"step_size": 1 / 255, "steps": 2} | settings
    elif attack is attacks.APGD:
        settings = {"steps": 2} | settings
    with pytest.raises(
        InputError, match=f"{name} must be a whole number from 1 to 10+;"
    ):
        attack(**settings)


def test_draws_of_noise_and_weights_have_a_range():
    model = models.build("tiny", ("seg",), (SIZE, SIZE, 3), 3)
    with pytest.raises(InputError, match="eot must be a whole number from 1 to"):
        attacks.objective(model, TARGETS, MASKS, eot=2**31)
    for weight in (1e308, 1e-40, float("nan")):
        with pytest.raises(InputError, match="Weights must be 0 or of size 1e-06 to"):
            attacks.objective(model, TARGETS, MASKS, weights={"seg": weight})
