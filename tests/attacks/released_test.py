# SPDX-License-Identifier: Apache-2.0
"""The released code's attacks: hand-computed numbers, and its rules written in NumPy.

Against the released models' own attacked images: models_parity_test.py.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

import mtr_tf
from mtr_tf import attacks
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.attacks.released import ReleasedPGD
from mtr_tf.config.attack import AttackConfig
from mtr_tf.errors import InputError
from mtr_tf.evaluation import plan

OUTSIDE = [name for name, kind in KINDS.items() if not kind.bounded]

CITYSCAPES = {
    "mean": (0.290101, 0.328081, 0.286964),
    "std": (0.182954, 0.186566, 0.184475),
}
RED = {name: values[:1] for name, values in CITYSCAPES.items()}
LEVELS = np.arange(256)


def linear(slope):
    return attacks.simple(
        lambda x: tf.reduce_sum(slope * x, list(range(1, x.shape.rank)))
    )


def every_red_level(epsilon, slope, **settings):
    """Returns where each of the 256 levels of red goes, in levels."""
    x = (LEVELS / 255).reshape(1, 256, 1)
    attack = ReleasedPGD(epsilon / 255, 1 / 255, 20, scale="wrong", **RED, **settings)
    return 255 * attack(linear(slope), x).numpy().ravel()


@pytest.mark.parametrize("start", ["corner", "image"])
def test_the_wrong_scale_at_4_on_every_red_level(start):
    # r is 2 * 4 * .182954 = 1.463632 levels. The box is mean -+ std, from
    # 255 * .107147 = 27.322485 to 255 * .473055 = 120.629025 levels.
    up, down = (every_red_level(4, slope, start=start) for slope in (1.0, -1.0))
    for end in (up, down):
        # The high levels cannot reach the box: x - r whatever the objective.
        np.testing.assert_allclose(end[123:], LEVELS[123:] - 1.463632, atol=1e-9)
        # The low ones go to its edge, out of the ball: black by 27 levels.
        np.testing.assert_allclose(end[:26], 27.322485, atol=1e-9)
    unattacked = np.isclose(up, down, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(LEVELS[unattacked], [*range(26), *range(123, 256)])
    assert unattacked.mean() == pytest.approx(0.62, abs=0.005)
    # The other levels are attacked with a third of the radius, 29 to 119 in full.
    np.testing.assert_allclose(up[29:120], LEVELS[29:120] + 1.463632, atol=1e-9)
    np.testing.assert_allclose(down[29:120], LEVELS[29:120] - 1.463632, atol=1e-9)
    # And 26 to 28 and 120 to 122 between an end of the ball and one of the box.
    np.testing.assert_allclose(up[[26, 28]], [27.463632, 29.463632], atol=1e-9)
    np.testing.assert_allclose(down[[26, 28]], [27.322485, 27.322485], atol=1e-9)
    np.testing.assert_allclose(up[[120, 122]], [120.629025, 120.629025], atol=1e-9)
    np.testing.assert_allclose(down[[120, 122]], [118.536368, 120.536368], atol=1e-9)


def test_the_wrong_scale_at_8_is_2_93():
    up = every_red_level(8, 1.0)
    np.testing.assert_allclose(up[31:117], LEVELS[31:117] + 2.927264, atol=1e-9)
    np.testing.assert_allclose(up[124:], LEVELS[124:] - 2.927264, atol=1e-9)
    np.testing.assert_allclose(up[:25], 27.322485, atol=1e-9)


def test_the_start_is_the_upper_corner():
    x = np.array([[[0.0, 0.5], [0.99, 1.0]]])
    flat_loss = linear(0.0)  # Nothing moves the start.
    got = ReleasedPGD(0.03, 0.01, 3)(flat_loss, x)
    np.testing.assert_allclose(got, [[[0.03, 0.53], [1.0, 1.0]]], atol=1e-9)
    got = ReleasedPGD(0.03, 0.01, 3, start="image")(flat_loss, x)
    np.testing.assert_array_equal(got, x)
    # Five steps of 2 from there come back to -2 only, far from the other corner.
    x = np.full((1, 2, 2), 0.5)
    got = ReleasedPGD(8 / 255, 2 / 255, 5)(linear(-1.0), x)
    np.testing.assert_allclose(got, x - 2 / 255, atol=1e-9)


def clamp(image, upper, lower):
    """Clamps in the released order; its argument names, which one caller swaps."""
    image = np.where(image > upper, upper, image)
    return np.where(image < lower, lower, image)


def by_hand(slope, x, epsilon, step_size, steps, mean, std, decay, rng):
    """The released evaluation on Cityscapes, on standardised images, noise and all."""
    mean, std = np.array(mean), np.array(std)
    point = clean = (x - mean) / std
    epsilon, step_size = 2 * epsilon, 2 * step_size
    upper = np.minimum(1, clean + epsilon)
    lower = np.maximum(-1, clean - epsilon)
    if rng is not None:
        point = clean + rng.uniform(-epsilon, epsilon, x.shape)
        point = clamp(point, lower, upper)  # Its second argument is the upper bound.
    total = 0
    for _ in range(steps):
        total = decay * total + slope(point * std + mean) * std
        point = clamp(point + step_size * np.sign(total), upper, lower)
    return point * std + mean


@pytest.mark.parametrize("noise", [None, 0, 1])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_it_is_the_released_algorithm_on_standardised_images(noise, decay):
    # The sum of sin(W x): each pixel's gradient depends on all pixels.
    x = np.random.default_rng(2).uniform(size=(3, 4, 5, 3))
    x[:, 0], x[:, 1] = 0.2 * x[:, 0], 0.5 + 0.5 * x[:, 1]  # Far from the mean.
    w = np.random.default_rng(3).normal(size=(60, 60))

    @attacks.simple
    def loss(x):
        mixed = tf.reshape(x, (-1, 60)) @ tf.constant(w, x.dtype)
        return tf.reduce_sum(tf.sin(mixed), axis=1)

    def slope(x):
        return (np.cos(x.reshape(-1, 60) @ w) @ w.T).reshape(x.shape)

    attack = ReleasedPGD(
        0.03,
        0.011,
        7,
        start="image" if noise is None else "corner",
        scale="wrong",
        decay=decay,
        **CITYSCAPES,
    )
    rng = None if noise is None else np.random.default_rng(noise)
    want = by_hand(slope, x, 0.03, 0.011, 7, *CITYSCAPES.values(), decay, rng)
    np.testing.assert_allclose(attack(loss, x, seed=noise or 0), want, atol=1e-9)
    assert np.abs(want - x).max() > 0.09  # Out of the ball of .03, and not put back.


def test_the_scale_is_right_for_images_from_minus_1_to_1():
    x = np.random.default_rng(4).uniform(size=(2, 5, 3))
    w = np.random.default_rng(5).normal(size=(2, 5, 3))
    half = (0.5, 0.5, 0.5)
    pixels_attack, wrong_attack = (
        ReleasedPGD(0.1, 0.03, 5),
        ReleasedPGD(0.1, 0.03, 5, scale="wrong", mean=half, std=half),
    )
    np.testing.assert_allclose(
        pixels_attack(linear(w), x), wrong_attack(linear(w), x), atol=1e-12
    )


@pytest.mark.parametrize(
    ("decay", "twin"),
    [
        (0.0, attacks.PGD),
        (0.5, functools.partial(attacks.MIM, decay=0.5, normalize=False)),
    ],
)
def test_without_its_start_and_scale_it_is_ours(decay, twin):
    x = np.random.default_rng(6).uniform(size=(3, 20)).astype(np.float32)
    w = 30 * np.random.default_rng(7).normal(size=(3, 20))
    loss = attacks.simple(lambda x: tf.reduce_sum(tf.sin(tf.cast(w, x.dtype) * x), 1))
    want = twin(0.1, 0.04, 6, random_start=False, keep="last")(loss, x)
    got = ReleasedPGD(0.1, 0.04, 6, start="image", decay=decay)(loss, x)
    np.testing.assert_allclose(got, want, atol=1e-7)


@pytest.mark.parametrize(
    ("losses", "decay", "end"),
    [
        ("houdini", 0.0, 0.75),  # Its true derivative is 0 at a pixel still right.
        ("houdini_released", 0.0, 0.375),  # Up to the first point that is wrong.
        ("houdini_released", 0.5, 0.125),  # There momentum alone goes on.
    ],
)
def test_houdini_as_released(losses, decay, end):
    # Two classes, and the image is their scores: class 0 is right while x_0 >= x_1.
    objective = attacks.objective(
        lambda x: {"seg": x},
        {"seg": np.zeros((1, 1, 1), np.int32)},
        {"seg": np.ones((1, 1, 1), np.float32)},
        losses=losses,
    )
    attack = ReleasedPGD(0.625, 0.125, 5, start="image", decay=decay)
    x = np.array([0.75, 0.25], np.float32).reshape(1, 1, 1, 2)
    got = attack(objective, x).numpy().ravel()
    np.testing.assert_allclose(got, [end, 1 - end], atol=1e-6)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float32])
def test_type_and_shape_stay_and_zero_is_zero(dtype):
    x = tf.cast(np.random.default_rng(8).uniform(size=(2, 4, 3)), dtype)
    for epsilon in (0.0, tf.constant(0.0, tf.float64)):
        attack = ReleasedPGD(epsilon, 0.01, 3, scale="wrong", **CITYSCAPES)
        got = attack(linear(1.0), x)
        assert got.dtype == dtype
        assert np.all(got == x)  # The released code returns early.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epsilon": 8}, "epsilon must be in"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"decay": -1}, "decay must be at least 0"),
        ({"start": "random"}, "start must be one of corner, image"),
        ({"scale": "right"}, "scale must be one of pixels, wrong"),
        ({"scale": "wrong"}, "needs mean"),
        ({"scale": "wrong", "mean": (0.5,)}, "needs std"),
        ({"scale": "wrong", "mean": (0.5,), "std": (0.5, 0.5)}, "got 1 and 2"),
        ({"scale": "wrong", "mean": (0.5,), "std": (0.0,)}, "std must be above 0"),
        ({"scale": "wrong", "mean": (np.nan,), "std": (1.0,)}, "mean must be a finite"),
        ({"mean": (0.5,)}, "only for scale='wrong'"),
    ],
)
def test_what_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        ReleasedPGD(**{"epsilon": 0.1, "step_size": 0.1, "steps": 1, **settings})


def test_channels_must_fit():
    attack = ReleasedPGD(0.1, 0.1, 1, scale="wrong", **CITYSCAPES)
    with pytest.raises(InputError, match="must have 3 channels"):
        attack(linear(1.0), np.zeros((2, 4, 1)))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pgd_released", {"start": "corner", "scale": "wrong", **CITYSCAPES}),
        ("pgd_released_start", {"start": "corner"}),
        ("pgd_released_scale", {"start": "image", "scale": "wrong", **CITYSCAPES}),
    ],
)
def test_by_name(name, settings):
    config = AttackConfig(ckpt="-", attack=(name,), eps=(8.0,), steps=3)
    scale = (CITYSCAPES["mean"], CITYSCAPES["std"])
    (cell,) = plan.make_cells(config, ("seg",), (), scale)
    x = np.random.default_rng(0).uniform(size=(2, 4, 4, 3))
    got = cell.build()(linear(1.0), x, 0, *cell.numbers)
    want = ReleasedPGD(8 / 255, 2 / 255, 3, **settings)(linear(1.0), x)
    np.testing.assert_array_equal(got, want)
    threat = dataclasses.replace(cell.threat, norm="l2")
    with pytest.raises(InputError, match="needs --norm=linf"):
        dataclasses.replace(cell, threat=threat).check((4, 4, 3))
    with pytest.raises(InputError, match="Unknown attack in --ensemble"):
        AttackConfig(ckpt="-", ensemble=(name,))


@pytest.mark.parametrize("eps", [4.0, 100.0])
@pytest.mark.parametrize("name", OUTSIDE)
def test_its_records_say_how_far_it_goes(name, eps):
    config = AttackConfig(ckpt="-", attack=(name,), eps=(0.0, eps), steps=9)
    scale = (CITYSCAPES["mean"], CITYSCAPES["std"])
    zero_cell, cell = plan.make_cells(config, ("seg",), (), scale)
    x = (LEVELS / 255).reshape(1, 256, 1, 1).repeat(3, axis=-1)  # All there are.
    ends = [cell.build()(linear(s), x, 0, *cell.numbers) for s in (1.0, -1.0)]
    max_distance = 255 * max(np.abs(end - x).max() for end in ends)
    (warning,) = cell.warnings
    assert f"{name} does not stay within eps" in warning
    assert f"at eps {eps:g} values move by up to {max_distance:.3g} levels" in warning
    assert max_distance == pytest.approx(36.09 if eps == 4 else 37.31, abs=0.01)
    assert zero_cell.warnings == ()
    config = AttackConfig(ckpt="-", attack=("pgd", "pgd_released_start"))
    for cell in plan.make_cells(config, ("seg",), (), scale):
        assert cell.warnings == ()
        assert cell.attack.scale == ()


def test_only_its_names_lead_to_it():
    folder = pathlib.Path(mtr_tf.__file__).parent
    names = re.compile(r"attacks\.released|attacks import released|ReleasedPGD")
    files = {
        path.name for path in folder.rglob("*.py") if names.search(path.read_text())
    }
    assert files == {"released.py", "kinds.py"}
    assert not hasattr(attacks, "ReleasedPGD")
