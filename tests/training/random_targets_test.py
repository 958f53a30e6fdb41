# SPDX-License-Identifier: Apache-2.0
"""The control `--random_targets` from batches to runs that are stopped and go on."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mtr_tf.data import batching
from mtr_tf.data import noise_targets
from mtr_tf.data.augment import Augment
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.runs import loading
from mtr_tf.training import loop as training
from mtr_tf.training.keeper import Keeper

TASKS = ("seg", "normal", "autoencoder")
NOISY = ("normal", "autoencoder")
N, HEIGHT, WIDTH = 7, 9, 11
CROP = (6, 8)
INFO = DatasetInfo(
    name="made up",
    image_shape=(HEIGHT, WIDTH, 3),
    classes=("a", "b"),
    colors=((0, 0, 0),) * 2,
    tasks=TASKS,
    splits={"train": N},
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    ranges={},
)


def real_columns() -> Columns:
    rng = np.random.default_rng(0)
    shape = (N, HEIGHT, WIDTH)
    valid = rng.random(shape) < 0.7
    return Columns(
        images=rng.integers(0, 256, (*shape, 3), np.uint8),
        targets={
            "seg": rng.integers(0, 2, shape, np.uint8),
            "normal": rng.normal(size=(*shape, 3)).astype(np.float32),
        },
        masks={"normal": valid},
    )


def epochs(columns, count=4, first=0):
    """All batches of some epochs of three steps, flipped and cropped."""
    batches = batching.train_batches(
        columns,
        TASKS,
        batch_size=2,
        seed=5,
        first_step=first,
        last_step=3 * count,
        augment=Augment(flip=True, crop=CROP),
    )
    return list(batches.as_numpy_iterator())


def way_of(picture, image):
    """Finds the (rows, columns, step) that cut the picture out of its image."""
    for top in range(HEIGHT - CROP[0] + 1):
        for left in range(WIDTH - CROP[1] + 1):
            rows, columns = slice(top, top + CROP[0]), slice(left, left + CROP[1])
            window = image[rows, columns]
            for step in (1, -1):
                if np.array_equal(window[:, ::step], picture):
                    return rows, columns, step
    raise AssertionError("no window of the whole picture")


def test_noise_is_mirrored_and_cropped_as_its_picture_and_stays_from_epoch_to_epoch():
    columns = noise_targets.replace(real_columns(), NOISY, INFO, 5)
    targets = {task: columns.targets[task][np.arange(N)] for task in NOISY}
    images = columns.images.astype(np.float32) / np.float32(255)
    order, steps = [], set()
    for batch in epochs(columns):
        for place, index in enumerate(batch["index"]):
            rows, cols, step = way_of(batch["image"][place], images[index])
            mirror = {
                "autoencoder": 1,
                "normal": (step, 1, 1),
            }  # x points the other way.
            for task in NOISY:
                window = targets[task][index][rows, cols][:, ::step]
                result = batch["targets"][task][place]
                np.testing.assert_array_equal(result, window * np.float32(mirror[task]))
            mask = columns.masks["normal"][index][rows, cols][:, ::step]
            np.testing.assert_array_equal(batch["masks"]["normal"][place], mask)
            order.append(int(index))
            steps.add(step)
    assert steps == {1, -1}
    assert min(order.count(index) for index in set(order)) >= 2  # Several epochs each.


def test_all_else_is_bit_equal_and_a_later_start_goes_on():
    control = noise_targets.replace(real_columns(), NOISY, INFO, 5)
    for real, noisy in zip(epochs(real_columns()), epochs(control), strict=True):
        for name in ("image", "masks", "index", "position", "step"):
            np.testing.assert_equal(noisy[name], real[name])
        np.testing.assert_array_equal(noisy["targets"]["seg"], real["targets"]["seg"])
        for task in NOISY:
            assert noisy["targets"][task].dtype == np.float32
            assert noisy["targets"][task].shape == real["targets"][task].shape
            assert (noisy["targets"][task] != real["targets"][task]).any()
    for expected, result in zip(
        epochs(control)[7:], epochs(control, first=7), strict=True
    ):
        np.testing.assert_equal(result, expected)


class Stopped(Exception):
    """Stands for a kill."""


def weights_of(workdir):
    model = loading.load_run(str(workdir)).model
    return {variable.path: variable.numpy() for variable in model.variables}


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_bits(noise_config, tmp_path, monkeypatch):
    config = dataclasses.replace(noise_config, epochs=2, checkpoint_every=2)
    training.train(config, tmp_path / "whole")
    save = Keeper.save

    def save_and_stop(keeper, step):
        save(keeper, step)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "save", save_and_stop)
        with pytest.raises(Stopped):
            training.train(config, tmp_path / "cut")
    training.train(config, tmp_path / "cut")
    expected, result = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert expected.keys() == result.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(result[name], value, err_msg=name)
    settings = json.loads((tmp_path / "cut" / "config.json").read_text())["train"]
    assert settings["random_targets"] == ["autoencoder"]
