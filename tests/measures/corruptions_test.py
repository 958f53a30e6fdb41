# SPDX-License-Identifier: Apache-2.0
"""Common corruptions by closed forms, SciPy and Pillow; their records by hand."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from PIL import Image

from mtr_tf.attacks import threat
from mtr_tf.measures import corruptions
from mtr_tf.measures import records as measure_records
from mtr_tf.show import tables
from mtr_tf.show import theory
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import task_set

KEYS = threat.fold_in(3, tf.range(2))


def images(height=24, width=32, channels=3) -> np.ndarray:
    random = np.random.default_rng(0)
    levels = random.integers(0, 256, (2, height, width, channels))
    return (levels / 255).astype(np.float32)


def apply(name, x, strength, **settings) -> np.ndarray:
    function = tf.function(
        lambda x, strength: corruptions.corrupted(name, x, strength, KEYS, **settings),
        autograph=False,
    )
    return function(tf.constant(x), tf.constant(strength, tf.float32)).numpy()


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        *((name, 3) for name in corruptions.SEVERITIES),
        *((name, 5) for name in ("gaussian_noise", "brightness", "jpeg")),
        *((name, 1) for name in ("pixelate", "jpeg")),
    ],
)
def test_results_are_images_and_severer_is_further_away(name, channels):
    x = images(64, 72, channels)
    distances = []
    for strength in corruptions.SEVERITIES[name]:
        output = apply(name, x, strength)
        assert output.shape == x.shape
        assert output.dtype == np.float32
        assert output.min() >= 0
        assert output.max() <= 1
        distances.append(np.sqrt(np.mean((output - x) ** 2)))
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_other_channels_stay():
    x = images(channels=4)
    output = apply("contrast", x, 0.1, channels=(2, 0))
    expected = apply("contrast", x, 0.1)
    np.testing.assert_array_equal(output[..., [1, 3]], x[..., [1, 3]])
    np.testing.assert_array_equal(output[..., [0, 2]], expected[..., [0, 2]])


def test_noise_of_an_image_is_its_own():
    """Neither the other images nor their order change it."""
    x = images()
    for name in ("gaussian_noise", "shot_noise", "impulse_noise"):
        strength = corruptions.SEVERITIES[name][2]
        output = apply(name, x, strength)
        reversed_output = corruptions.corrupted(
            name, x[::-1], strength, KEYS[::-1]
        ).numpy()
        np.testing.assert_array_equal(reversed_output, output[::-1])
        assert (output[0] != output[1]).any()


def test_gaussian_noise_has_its_deviation():
    x = np.full((2, 128, 128, 3), 0.5, np.float32)
    noise = apply("gaussian_noise", x, 0.08) - x
    assert abs(noise.mean()) < 0.001
    assert noise.std() == pytest.approx(0.08, rel=0.01)


def test_shot_noise_has_the_variance_of_a_count():
    x = np.full((2, 128, 128, 3), 0.3, np.float32)
    output = apply("shot_noise", x, 60)
    np.testing.assert_allclose(output * 60, np.round(output * 60), atol=1e-4)
    assert output.mean() == pytest.approx(0.3, rel=0.01)
    assert output.var() == pytest.approx(0.3 / 60, rel=0.03)


def test_impulse_noise_hits_its_share():
    x = np.full((2, 128, 128, 3), 0.5, np.float32)
    output = apply("impulse_noise", x, 0.17)
    for value, share in ((0, 0.085), (1, 0.085), (0.5, 0.83)):
        assert (output == value).mean() == pytest.approx(share, rel=0.03)


@pytest.mark.parametrize("deviation", [1, 6])
def test_gaussian_blur_is_scipys(deviation):
    """Weights outside the picture are left out."""
    x = images().astype(np.float64)
    inside = np.ones_like(x[..., 0])
    sigma = deviation * 24 / 224
    options = {"sigma": (0, sigma, sigma), "mode": "constant", "radius": 31}
    gaussian = scipy.ndimage.gaussian_filter
    blurred = [gaussian(channel, **options) for channel in np.moveaxis(x, -1, 0)]
    expected = np.stack(blurred, axis=-1)
    expected /= gaussian(inside, **options)[..., np.newaxis]
    output = apply("gaussian_blur", images(), deviation)
    np.testing.assert_allclose(output, expected, atol=1e-6)


def test_brightness_is_added_in_hsv():
    x = images(4, 4)
    x[0, 0, 0] = 0
    output = apply("brightness", x, 0.3)
    for pixel, new_pixel in zip(x.reshape(-1, 3), output.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel.tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3))
        np.testing.assert_allclose(new_pixel, expected, atol=1e-6)


def test_contrast_by_hand():
    x = np.float32([[[[0.2]], [[0.6]]]])
    output = apply("contrast", np.concatenate([x, x]), 0.5)
    np.testing.assert_allclose(output[0].ravel(), [0.3, 0.5], atol=1e-7)


def test_pixelate_by_hand():
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1) / 16
    output = apply("pixelate", np.concatenate([x, x]), 0.5)[1, ..., 0] * 16
    rows = [[2.5, 2.5, 4.5, 4.5]] * 2 + [[10.5, 10.5, 12.5, 12.5]] * 2
    np.testing.assert_allclose(output, rows, atol=1e-5)


def test_jpeg_is_near_pillows():
    """Decoders differ by rounding; another quality is much further away."""
    ramp = np.linspace(0, 255, 32 * 32 * 3).reshape(1, 32, 32, 3).astype(np.uint8)
    x = (np.concatenate([ramp, ramp]) / 255).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray(ramp[0]).save(file, "JPEG", quality=10)
    expected = np.asarray(Image.open(file)) / 255
    output = apply("jpeg", x, 10)[0]
    output_40 = apply("jpeg", x, 40)[0]
    assert np.abs(output - expected).mean() < 0.2 * np.abs(output_40 - expected).mean()


def test_records_by_hand():
    """Absolute errors of two images, as they are and corrupted twice."""
    tasks = task_set([TASKS["depth"]])
    names = [metric.name for metric in tasks["depth"].all_metrics]

    def rows(first_sum, second_sum):  # (sum, count) of each image.
        return {
            f"depth/{name}": np.array([[first_sum, 2], [second_sum, 2]])
            for name in names
        }

    arrays = {("", 0): rows(1, 3), ("jpeg", 1): rows(2, 4), ("jpeg", 2): rows(3, 7)}
    records = measure_records.of_corruptions(tasks, arrays, seed=0)
    mae = [r for r in records if r["metric"] == "mae"]
    assert [r["quantity"] for r in mae] == ["corrupted", "corrupted", "mean_corrupted"]
    assert [r["clean"] for r in mae] == [1.0] * 3
    assert [r["value"] for r in mae] == [1.5, 2.5, 2.0]
    assert [r.get("severity") for r in mae] == [1, 2, None]
    assert {(r["better"], r["unit"]) for r in mae} == {("lower", "m")}
    assert "depth mae [m]\n" in "\n".join(tables.measures(records).split("  "))
    (axes,) = theory.corruptions_of_run(records).axes
    assert axes.get_xlabel() == "mae [m], lower is better"
    px_records = measure_records.of_corruptions(tasks, arrays, 0, None, {"depth": "px"})
    assert {r["unit"] for r in px_records if r["metric"] == "mae"} == {"px"}
