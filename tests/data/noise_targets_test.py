# SPDX-License-Identifier: Apache-2.0
"""Noise in place of targets: its distribution, and what it leaves alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf.config.train import TrainConfig
from mtr_tf.data import noise_targets
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import InputError
from mtr_tf.runs import loading
from mtr_tf.training import loop as training

INFO = DatasetInfo(
    name="made up",
    image_shape=(40, 50, 3),
    classes=("a", "b", "c", "d"),
    colors=((0, 0, 0),) * 4,
    tasks=("seg", "depth", "normal", "edge_texture", "keypoints2d", "autoencoder"),
    splits={"train": 6},
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    ranges={"depth": (2.0, 10.0)},
)
IMAGES = np.zeros((6, 40, 50, 3), np.uint8)
MASK = np.ones((6, 40, 50), bool)


def noisy(tasks, seed=0):
    targets = {"seg": np.zeros((6, 40, 50), np.uint8)}
    return noise_targets.replace(
        Columns(IMAGES, targets, {"seg": MASK}), tasks, INFO, seed
    )


def test_classes_and_values_are_uniform_over_what_the_data_set_has():
    columns = noisy(("seg", "depth", "autoencoder"))
    rows = np.arange(6)
    labels = columns.targets["seg"][rows]
    assert labels.dtype == np.int32
    shares = np.bincount(labels.ravel(), minlength=4) / labels.size
    np.testing.assert_allclose(shares, 0.25, atol=0.02)
    assert columns.masks["seg"] is MASK
    depth = columns.targets["depth"][rows]
    assert (depth.shape, depth.dtype) == ((6, 40, 50, 1), np.float32)
    assert (2 <= depth.min() < 2.01, 9.99 < depth.max() <= 10) == (True, True)
    assert depth.mean() == pytest.approx(6, abs=0.1)
    assert depth.var() == pytest.approx(8**2 / 12, rel=0.05)
    picture = columns.targets["autoencoder"][rows]  # Noise, not the picture.
    assert picture.shape == (6, 40, 50, 3)
    assert picture.mean() == pytest.approx(0.5, abs=0.01)


def test_normals_are_unit_vectors_without_a_direction():
    normals = noisy(("normal",)).targets["normal"][np.arange(6)]
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(normals.mean(axis=(0, 1, 2)), 0, atol=0.02)


def test_an_example_has_the_same_noise_wherever_it_comes():
    column = noisy(("depth",)).targets["depth"]
    depth = column[np.arange(6)]
    np.testing.assert_array_equal(column[np.array([4, 1])], depth[[4, 1]])
    assert (depth[0] != depth[1]).any()
    assert (noisy(("depth",), seed=1).targets["depth"][np.arange(6)] != depth).any()


def test_each_task_has_noise_of_its_own():
    targets = noisy(("keypoints2d", "edge_texture")).targets  # Both from 0 to 1.
    keypoints, edges = (targets[task][[0]] for task in ("keypoints2d", "edge_texture"))
    assert (keypoints.min() >= 0, keypoints.max() <= 1) == (True, True)
    assert (edges.min() >= 0, edges.max() <= 1) == (True, True)
    assert abs(np.corrcoef(keypoints.ravel(), edges.ravel())[0, 1]) < 0.1


def test_of_a_range_of_one_value_there_is_no_noise():
    """A sparse map may have such a range; directions and classes need none."""
    ranges = dict.fromkeys(("depth", "normal", "seg"), (0.0, 0.0))
    info = dataclasses.replace(INFO, ranges=ranges)
    columns = Columns(IMAGES, {"seg": np.zeros((6, 40, 50), np.uint8)}, {})
    noise = noise_targets.replace(columns, ("seg", "normal"), info, 0)
    assert np.ptp(noise.targets["seg"][[0]]) == 3
    assert np.ptp(noise.targets["normal"][[0]]) > 1
    with pytest.raises(InputError, match=r'are 0 and 0; give "ranges": .*"depth": \(l'):
        noise_targets.replace(columns, ("depth",), info, 0)


def trained(config, workdir):
    training.train(config, workdir)
    model = loading.load_run(str(workdir), (), "").model
    return {v.path: v.numpy() for v in model.trainable_variables}


@pytest.mark.slow
def test_with_weight_zero_noise_changes_nothing_of_the_main_task(
    noise_config, tmp_path
):
    """Noise affects only the auxiliary loss, and changes no other random numbers."""
    noise_config = dataclasses.replace(noise_config, train_examples=16)  # Two steps.
    config = dataclasses.replace(noise_config, aux_weight=0.0)
    control = trained(config, tmp_path / "0")
    expected = trained(dataclasses.replace(config, random_targets=()), tmp_path / "own")
    for name, value in expected.items():
        np.testing.assert_array_equal(control[name], value, err_msg=name)
    tf.keras.backend.clear_session()
    noisy_weights = trained(noise_config, tmp_path / "1")
    assert any((noisy_weights[name] != value).any() for name, value in expected.items())


def test_a_task_that_is_not_trained_is_refused(camvid_dir, tmp_path):
    config = TrainConfig(
        tasks=("seg",),
        random_targets=("depth",),
        dataset="camvid",
        data_dir=str(camvid_dir),
    )
    with pytest.raises(InputError, match="--random_targets must be among --tasks, seg"):
        training.train(config, tmp_path / "run")
