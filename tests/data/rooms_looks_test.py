# SPDX-License-Identifier: Apache-2.0
"""Classes, colours, textures, noise and ranges of rooms, by counting."""

from __future__ import annotations

import numpy as np
import pytest

from mtr_tf.data.rooms import layout
from mtr_tf.data.rooms import render
from mtr_tf.data.rooms import sampling
from mtr_tf.data.rooms import scene
from mtr_tf.data.rooms import textures
from mtr_tf.data.rooms import workers

MANY = 200


@pytest.fixture(scope="module")
def many() -> list[dict[str, np.ndarray]]:
    """The first examples of the training split, 32 x 32."""
    return [workers.example(0, 0, index, 32) for index in range(MANY)]


def test_every_pixel_is_finite_and_in_range(many):
    limits = {**layout.RANGES, "depth": (0.3, 10), "depth_euclidean": (0.3, 10)}
    for arrays in many:
        for name, (low, high) in limits.items():
            if name in arrays:
                assert np.isfinite(arrays[name]).all(), name
                assert arrays[name].min() >= low - 1e-6, name
                assert arrays[name].max() <= high + 1e-6, name
        assert arrays["seg"].max() < len(scene.CLASSES)
        k = arrays["curvature"]
        assert (k[..., 0] >= k[..., 1]).all()


def test_mean_and_deviation_are_those_of_the_pictures(many):
    pixels = np.reshape([arrays["image"] / 255 for arrays in many], (-1, 3))
    np.testing.assert_allclose(pixels.mean(0), layout.MEAN, atol=0.02)
    np.testing.assert_allclose(pixels.std(0), layout.STD, atol=0.01)


def test_no_class_is_rare(many):
    counts = sum(np.bincount(a["seg"].ravel(), minlength=8) for a in many)
    share = counts / counts.sum()
    assert len(scene.CLASSES) == len(share) == len(layout.COLORS) == 8
    assert share.min() > 0.02
    assert share.max() < 0.5


def test_colours_and_textures_say_nothing_about_the_class():
    class_materials: dict[str, list[scene.Material]] = {
        name: [] for name in scene.CLASSES
    }
    for index in range(400):
        room = sampling.sample(0, 0, index)
        kinds = ("wall", None, None, None, "floor", "ceiling")
        for kind, material in zip(kinds, room.faces, strict=True):
            if kind:
                class_materials[kind].append(material)
        for thing in room.things:
            class_materials[thing.kind].append(thing.material)
    all_materials = [m for materials in class_materials.values() for m in materials]
    assert {m.texture for m in all_materials} == set(textures.TEXTURES)
    for name, materials in class_materials.items():
        count = len(materials)
        assert count >= 400, name
        for part in (0, 1):
            color = np.array([m.colors[part] for m in materials])
            # The variance of a colour is below 0.06.
            error = 4.5 * np.sqrt(0.06 / count)
            np.testing.assert_allclose(color.mean(0), 0.5, atol=error, err_msg=name)
        for texture in textures.TEXTURES:
            share = np.mean([m.texture == texture for m in materials])
            assert abs(share - 1 / 8) < 4.5 * np.sqrt(1 / 8 * 7 / 8 / count), name


def test_pictures_hue_says_nothing_about_the_class(many):
    """Per class, the mean share of red, green and blue in the light is near a third."""
    for number, name in enumerate(scene.CLASSES):
        shares = []
        for arrays in many:
            pixels = arrays["image"][arrays["seg"] == number].astype(float) ** 2
            if len(pixels) >= 10:
                shares.append(pixels.sum(0) / max(pixels.sum(), 1))
        assert len(shares) > 50
        np.testing.assert_allclose(np.mean(shares, 0), 1 / 3, atol=0.05, err_msg=name)


def test_textures_differ_and_stay_in_range():
    rng = np.random.default_rng(0)
    x, y, z = rng.uniform(-20, 20, (3, 4000))
    table = rng.integers(0, 256, textures.NOISE_CELLS**3) / 255
    weights = {name: f(x, y, z, table) for name, f in textures.TEXTURES.items()}
    for name, weight in weights.items():
        assert weight.min() >= 0, name
        assert weight.max() <= 1, name
        assert (weight.std() > 0.2) == (name != "plain"), name
    correlation = np.corrcoef([w for name, w in weights.items() if name != "plain"])
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 0.4
    # Checker by its definition, noise by its table at whole numbers.
    parity = (np.floor(x) + np.floor(y) + np.floor(z)) % 2
    np.testing.assert_array_equal(weights["checker"], parity)
    i, j, k = rng.integers(-40, 40, (3, 50))
    expected = table.reshape(16, 16, 16)[i % 16, j % 16, k % 16]
    noise = textures.noise(*(v.astype(float) for v in (i, j, k)), table)
    np.testing.assert_allclose(noise, expected)


def test_noise_of_the_sensor():
    room = sampling.sample(0, 0, 3)
    clean_image = render.render(room, 128, 128)["image"].astype(float)
    noisy_image = render.render(room, 128, 128, key=(0, 0, 3))["image"].astype(float)
    valid = (clean_image > 30) & (clean_image < 225)
    error = (noisy_image - clean_image)[valid]
    assert abs(error.mean()) < 0.1
    np.testing.assert_allclose(error.std(), room.noise, rtol=0.1)
