# SPDX-License-Identifier: Apache-2.0
"""How many images are attacked at a time, where a device decides."""

from __future__ import annotations

import dataclasses
import types

import cells_fixture
import keras
import numpy as np
import pytest
import tensorflow as tf
import workers_fixture
from tiers_fixture import slow

import mtr_tf
from mtr_tf import attack_job
from mtr_tf.attack_job import job as job_lib
from mtr_tf.attack_job import resolving
from mtr_tf.config.attack import AttackConfig
from mtr_tf.data.source import Columns
from mtr_tf.evaluation import largest_batch
from mtr_tf.evaluation import sweep
from mtr_tf.models import compiling
from mtr_tf.runs.workers import Workers

COLUMNS = Columns(images=np.zeros((3, 4, 4, 3), np.uint8), targets={}, masks={})
ONE = tf.distribute.get_strategy()


def of_at_most(limit: int, sizes: list[int] | None = None):
    """A model that runs out of memory with batches of more than `limit` images."""

    def model(images):
        size = images.shape[0]
        if sizes is not None:
            sizes.append(size)
        if size > limit:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
        return {"depth": images[..., :1], "seg": tf.cast(images > 0.5, tf.int32)}

    return model


@pytest.mark.parametrize(
    ("count", "limit", "expected", "tried"),
    [
        (100, 1000, 100, [125]),
        (100, 124, 50, [125, 63]),
        (100, 40, 25, [125, 63, 32]),
        (1000, 1000, 256, [320]),
        (3, 3, 2, [4, 3]),
        (3, 2, 1, [4, 3, 2]),
    ],
)
def test_the_largest_that_fits_with_room_for_a_fourth_more(
    count, limit, expected, tried
):
    sizes: list[int] = []
    size = largest_batch.fitting([of_at_most(limit, sizes)], COLUMNS, count, ONE)
    assert size == expected
    assert sizes == tried


def test_all_models_must_fit_on_every_replica(mirrored):
    models = [of_at_most(60), of_at_most(1000)]
    for order in (models, models[::-1]):
        assert largest_batch.fitting(order, COLUMNS, 64, mirrored) == 32


def test_one_image_too_many_is_an_error():
    with pytest.raises(tf.errors.ResourceExhaustedError):
        largest_batch.fitting([of_at_most(1)], COLUMNS, 8, ONE)


def small_net() -> keras.Model:
    image = keras.Input((4, 4, 3))
    return keras.Model(image, {"depth": keras.layers.Conv2D(1, 1)(image)})


def test_with_an_executor_its_parts_alone_try_what_fits(monkeypatch):
    counts = []
    monkeypatch.setattr(compiling, "on_gpu", lambda: True)
    monkeypatch.setattr(
        largest_batch, "fitting", lambda *arguments: counts.append(arguments[2]) or 7
    )
    columns = dataclasses.replace(COLUMNS, images=np.zeros((50, 4, 4, 3), np.uint8))
    info = cells_fixture.depth_info(50, 4)
    subject = sweep.Subject(
        small_net(), ("depth",), info, columns, 50, Workers(ONE), batch_size=1, seed=0
    )
    config = AttackConfig(ckpt="x", batch_size="auto", executor="local")
    assert job_lib.batch_size(config, subject) == 32
    assert not counts
    job = attack_job.Job(config, subject, (), None, None, (), None, None, None, "")
    assert job.after_parts().subject.batch_size == 7
    assert counts == [50]


def test_several_workers_take_what_fits_all_of_them(monkeypatch):
    config = AttackConfig(ckpt="x", batch_size="auto")
    facts = types.SimpleNamespace(model="m", source=None, data="d")

    def resolve(config, workers, *_):
        size = 8 if workers.chief else 6
        subject = sweep.Subject(
            None, ("depth",), None, COLUMNS, 50, workers, batch_size=size, seed=0
        )
        return attack_job.Job(
            config, subject, (), None, facts, (), None, None, None, ""
        )

    monkeypatch.setattr(resolving, "_resolve", resolve)
    jobs = workers_fixture.run(lambda w: attack_job.resolve(config, workers=w))
    assert [job.subject.batch_size for job in jobs] == [6, 6]
    fixed_config = dataclasses.replace(config, batch_size=8)
    errors = workers_fixture.run(lambda w: attack_job.resolve(fixed_config, workers=w))
    assert all("batch_size is 8 there and 6 here" in str(error) for error in errors)


def test_several_workers_compute_in_one_half_precision(monkeypatch):
    config = AttackConfig(ckpt="x", fast=True)
    facts = types.SimpleNamespace(model="m", source=None, data="d")

    def resolve(config, workers, *_):
        half = "bfloat16" if workers.chief else "float16"
        subject = sweep.Subject(
            None, (), None, COLUMNS, 50, workers, batch_size=8, seed=0, half=half
        )
        return attack_job.Job(
            config, subject, (), None, facts, (), None, None, None, ""
        )

    monkeypatch.setattr(resolving, "_resolve", resolve)
    errors = workers_fixture.run(lambda w: attack_job.resolve(config, workers=w))
    assert all("'bfloat16' there and 'float16' here" in str(e) for e in errors)


@pytest.mark.parametrize(("gpu", "expected"), [slow(False, 32), (True, 18)])
def test_results_are_those_of_any_other_size(gpu, expected, monkeypatch):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    depth = keras.layers.Conv2D(1, 3, padding="same")(image)
    model = keras.Model(image, {"depth": depth})
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (36, 8, 8, 3), np.uint8)
    targets = {"depth": rng.uniform(1, 2, (36, 8, 8)).astype(np.float32)}
    settings = {"attacks": "pgd", "eps": [4], "steps": 2, "checks": False, "jit": "off"}
    sizes: list[int] = []
    original_run = sweep.run

    def recording_run(subject, *arguments):
        sizes.append(subject.batch_size)
        return original_run(subject, *arguments)

    monkeypatch.setattr(sweep, "run", recording_run)
    monkeypatch.setattr(compiling, "on_gpu", lambda: gpu)
    original_pass = largest_batch._pass

    def limited_pass(model, columns, size, strategy):
        of_at_most(30)(tf.zeros([size, 1, 1, 3]))
        original_pass(model, columns, size, strategy)

    monkeypatch.setattr(largest_batch, "_pass", limited_pass)
    results = [
        mtr_tf.evaluate(model, (images, targets), batch_size=size, **settings)
        for size in ("auto", 7)
    ]
    assert sizes == [expected, 7]
    np.testing.assert_allclose(
        *[[r["attacked_value"] for r in result.records] for result in results],
        rtol=1e-6,
    )
