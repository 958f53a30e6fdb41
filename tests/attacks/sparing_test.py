# SPDX-License-Identifier: Apache-2.0
"""Attacks that spare tasks: closed forms, brute force, and what cannot be spared."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiers_fixture import slow

from mtr_tf import attacks
from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import base
from mtr_tf.attacks import channels
from mtr_tf.attacks import sparing
from mtr_tf.attacks import threat
from mtr_tf.errors import InputError

EPS = 0.1


def value(name: str) -> tasks_lib.Task:
    """A task of one number per image, whose loss is its distance to the target."""
    return tasks_lib.Task(name, kind="numbers", channels=1, places=0)


FRONT, BACK, SIDE = value("front"), value("back"), value("side")
NAMES = ("front", "back", "side")


def of_functions(*functions):
    """A model [batch, 1, N, 1] -> {task: [batch, 1]} of functions of [batch, N]."""

    def model(x):
        flat = tf.reshape(x, [tf.shape(x)[0], -1])
        outputs = zip(NAMES, functions, strict=False)
        return {name: function(flat)[:, None] for name, function in outputs}

    return model


def linear(slopes):
    return lambda x: 10 + tf.linalg.matvec(x, tf.constant(slopes, x.dtype))


def objective(model, count, *, tasks=(FRONT,), spare=(BACK,), **settings):
    """Targets of 0, so that the losses of positive outputs are the outputs."""
    targets = {name: np.zeros((count, 1), np.float32) for name in NAMES}
    masks = {name: np.ones(count, np.float32) for name in NAMES}
    return attacks.objective(
        model, targets, masks, tasks=tasks, spare=spare, **settings
    )


def slopes_of(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two slopes that point much the same way, so that sparing is not for free."""
    rng = np.random.default_rng(seed)
    slope = rng.normal(size=count)
    return slope, rng.normal(size=count) + slope


def best_of_box(slope: np.ndarray, spared_slope: np.ndarray) -> float:
    """The maximum of slope . d over d in [-1, 1]^n with spared_slope . d <= 0.

    At a corner of that polytope all values but one are -1 or 1.
    """
    count, best = len(slope), -np.inf
    for free_index in range(count):
        other_indices = [n for n in range(count) if n != free_index]
        for signs in itertools.product((-1.0, 1.0), repeat=count - 1):
            d = np.zeros(count)
            d[other_indices] = signs
            limit = -(spared_slope @ d) / spared_slope[free_index]
            ends = [-1.0, 1.0, np.clip(limit, -1, 1)]
            for d[free_index] in ends:
                if spared_slope @ d <= 1e-12:
                    best = max(best, slope @ d)
    return best


def bent(slope, spared_slope, room, move=None):
    slope, spared_slope = (
        tf.constant(a[None], tf.float32) for a in (slope, spared_slope)
    )
    room = [tf.constant([room], tf.float32)]
    return sparing.bent(slope, [spared_slope], room, move, margin=0.0)[0]


def test_for_l2_the_bent_gradient_is_the_projection():
    slope, spared_slope = slopes_of(40, 0)
    assert slope @ spared_slope > 0
    bent_slope = bent(slope, spared_slope, 0.0).numpy()
    expected = slope - spared_slope * (slope @ spared_slope) / (
        spared_slope @ spared_slope
    )
    cosine = (
        bent_slope @ expected / np.linalg.norm(bent_slope) / np.linalg.norm(expected)
    )
    assert cosine > 1 - 1e-6
    free_slope = bent(slope, spared_slope, 1e6).numpy()
    np.testing.assert_array_equal(free_slope, slope.astype(np.float32))  # As it was.
    return_slope = bent(slope, spared_slope, -1e6).numpy()
    cosine = (
        return_slope
        @ -spared_slope
        / np.linalg.norm(return_slope)
        / np.linalg.norm(spared_slope)
    )
    assert cosine > 1 - 1e-6


def test_for_linf_the_bent_sign_is_the_best_corner_that_fits():
    for seed in range(4):
        slope, spared_slope = slopes_of(9, seed)
        step = np.sign(bent(slope, spared_slope, 0.0, tf.sign).numpy())
        assert spared_slope @ step <= 1e-6
        bound = best_of_box(slope, spared_slope)
        # One value of the best point is no sign: a corner may lack up to its weight.
        assert bound - 2 * np.abs(slope).max() <= slope @ step <= bound + 1e-6


def every_attack(norm="linf"):
    yield attacks.PGD(EPS, EPS / 4, 20, norm=norm)
    yield attacks.APGD(EPS, 20, norm=norm)
    yield attacks.FGSM(EPS, norm=norm)
    if norm == "linf":
        yield attacks.MIM(EPS, EPS / 4, 20)
        yield attacks.Square(EPS, 100)
        yield attacks.Worst((attacks.Noise(EPS, draws=20), attacks.FGSM(EPS)))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_attack_spares_the_other_of_two_linear_heads(norm):
    slope, spared_slope = slopes_of(9, 3)
    x = np.full((2, 1, 9, 1), 0.5, np.float32)
    goal = objective(of_functions(linear(slope), linear(spared_slope)), 2)
    bound = EPS * best_of_box(slope, spared_slope)
    if norm == "l2":
        bound = EPS * np.linalg.norm(
            slope
            - spared_slope * (slope @ spared_slope) / (spared_slope @ spared_slope)
        )
    for attack in every_attack(norm):
        difference = (attack(goal, x, seed=1).numpy() - x).reshape(2, 9)
        size = (
            np.abs(difference).max(1)
            if norm == "linf"
            else np.linalg.norm(difference, axis=1)
        )
        assert np.all(size <= EPS * (1 + 1e-6)), attack
        assert np.all(difference @ spared_slope <= 1e-5), attack
        assert np.all(difference @ slope <= bound + 1e-5), attack
        if isinstance(attack, attacks.PGD):
            assert np.all(difference @ slope >= 0.9 * bound), attack


def bowl(x):
    return 1 + 40 * tf.reduce_sum((x - 0.5) ** 2 * [1.0, 3.0], 1)


def wave(x):
    return 2 + tf.sin(9 * x[:, 0]) + x[:, 1] + x[:, 0] * x[:, 1]


def test_two_pixels_against_all_their_values():
    """Plain PGD raises the spared loss; sparing does not, and does most of the harm."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.35, 0.65, (6, 1, 2, 1)).astype(np.float32)
    model = of_functions(wave, bowl)
    axis = np.linspace(-EPS, EPS, 201, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 1, 2, 1)
    grid = grid[np.linalg.norm(grid, axis=2)[:, 0, 0] <= EPS]
    clean_losses = {k: v.numpy()[:, 0] for k, v in model(x).items()}
    plain_images = attacks.PGD(EPS, EPS / 4, 20, norm="l2")(
        objective(model, 6, spare=()), x
    )
    assert (
        np.mean(model(plain_images)["back"].numpy()[:, 0] / clean_losses["back"]) > 1.3
    )
    goal = objective(model, 6)
    for attack in (
        attacks.PGD(EPS, EPS / 8, 40, norm="l2"),
        attacks.APGD(EPS, 40, norm="l2"),
    ):
        losses = {k: v.numpy()[:, 0] for k, v in model(attack(goal, x)).items()}
        assert np.all(losses["back"] <= clean_losses["back"] * (1 + 1e-6))
        for image in range(6):
            grid_losses = {
                k: v.numpy()[:, 0] for k, v in model(x[image] + grid).items()
            }
            allowed = grid_losses["back"] <= clean_losses["back"][image]
            bound = grid_losses["front"][allowed].max() - clean_losses["front"][image]
            rise = losses["front"][image] - clean_losses["front"][image]
            assert rise <= bound + 1e-2  # The grid is not all values.
            assert rise >= 0.7 * bound, (attack, image)


def test_several_tasks_are_spared_together():
    slope, spared_slope = slopes_of(12, 5)
    third_slope = np.random.default_rng(6).normal(size=12) + slope
    model = of_functions(linear(slope), linear(spared_slope), linear(third_slope))
    goal = objective(model, 1, spare=(BACK, SIDE))
    x = np.full((1, 1, 12, 1), 0.5, np.float32)
    difference = (attacks.PGD(EPS, EPS / 4, 20)(goal, x).numpy() - x).ravel()
    assert max(difference @ spared_slope, difference @ third_slope) <= 1e-5
    assert difference @ slope > 0.05 * EPS * np.abs(slope).sum()


def test_an_attack_that_does_not_say_how_it_moves_is_bent_all_the_same():
    class SmallSteps(base.Attack):
        """Ten small steps along `base.gradient`, which is not told how they move."""

        epsilon, passes = EPS, 10

        def search(self, objective, x, keys):
            run_objective = base.begin(objective, x, x)

            def step(_, x):
                slope, _ = base.gradient(run_objective, x, tf.constant(0.0))
                return x + EPS / 10 * threat.L2(EPS).steepest(slope)

            return base.loop(0, 10, step, x)

    slope, spared_slope = slopes_of(9, 3)
    x = np.full((1, 1, 9, 1), 0.5, np.float32)
    goal = objective(of_functions(linear(slope), linear(spared_slope)), 1)
    difference = (SmallSteps()(goal, x).numpy() - x).ravel()
    assert difference @ spared_slope <= 1e-4
    bound = EPS * np.linalg.norm(
        slope - spared_slope * (slope @ spared_slope) / (spared_slope @ spared_slope)
    )
    assert difference @ slope >= 0.8 * bound


def test_the_score_puts_what_spares_first_and_then_the_smaller_excess():
    losses = {"back": tf.constant([1.0, 1.0, 1.1, 2.0, np.nan, 0.0, 1e-3])}
    clean = {"back": tf.constant([1.0, 2.0, 1.0, 1.0, 1.0, 0.0, 0.0])}
    scores = sparing.score(tf.constant([5.0, -7, 9, 9, 9, 0, 9]), losses, clean)
    scores = scores.numpy()
    np.testing.assert_array_equal(scores[[0, 1, 5]], [5, -7, 0])
    assert -sparing.FAR > scores[2] > scores[3] > scores[4]
    assert scores[6] < -sparing.FAR
    assert np.all(np.isfinite(scores))
    assert scores[4] / 100 < -sparing.FAR  # So is a mean over draws.


def test_a_clean_loss_that_is_not_finite_is_not_spared():
    clean = {"one": tf.constant([np.nan, np.inf, 1.0]), "two": tf.ones(3)}
    losses = {"one": tf.ones(3), "two": tf.constant([2.0, 1.0, 1.0])}
    excess = sparing.excess(losses, clean).numpy()
    assert np.all(excess[:2] > 0)
    assert excess[2] == 0


def test_gradients_of_channels_that_stay_do_not_bend():
    rng = np.random.default_rng(0)
    slope, spared_slope = (tf.constant(rng.normal(size=(2, 3, 3, 2))) for _ in range(2))
    large_slope = tf.concat((tf.zeros((2, 3, 3, 1)), tf.ones((2, 3, 3, 1))), -1)
    large_slope = 1e6 * tf.cast(large_slope, slope.dtype)
    merge = channels._Whole(slope, (0,))
    move = channels._Move(threat.L2(0.1).steepest, merge)
    room = [tf.zeros(2, slope.dtype)]
    bent_slopes = [
        sparing.bent(
            slope + i * large_slope, [spared_slope - i * large_slope], room, move
        )
        for i in (0, 1)
    ]
    np.testing.assert_allclose(bent_slopes[0], bent_slopes[1], atol=1e-12)
    np.testing.assert_array_equal(bent_slopes[1][..., 1], 0)


def net(size=6):
    keras.utils.set_random_seed(0)
    image = keras.Input((size, size, 3))
    y = keras.layers.Conv2D(4, 3, padding="same", activation="softplus")(10 * image)
    y = keras.layers.BatchNormalization()(y)
    y = keras.layers.Conv2D(4, 3, padding="same", activation="softplus")(y)
    heads = {
        "seg": keras.layers.Conv2D(3, 3, padding="same", name="seg")(y),
        "depth": keras.layers.Conv2D(1, 3, padding="same", name="depth")(y),
        "scene": keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(y)),
    }
    return keras.Model(image, heads)


SCENE = tasks_lib.Task("scene", kind="classes", channels=4, places=0)
COUNT = 5


@pytest.fixture(scope="module")
def case():
    """A net of two maps and a class per image, its images, targets and masks."""
    rng = np.random.default_rng(0)
    pixels = (COUNT, 6, 6)
    targets = {
        "seg": rng.integers(0, 3, pixels),
        "depth": rng.normal(size=(*pixels, 1)).astype(np.float32),
        "scene": rng.integers(0, 4, COUNT),
    }
    masks = {name: np.ones(target.shape[:3]) for name, target in targets.items()}
    masks["depth"] = (rng.random(pixels) < 0.7).astype(np.float32)
    masks["depth"][0] = 0  # No valid pixel, so nothing to spare.
    x = rng.uniform(size=(*pixels, 3)).astype(np.float32)
    return net(), x, targets, masks


def losses_of(case, images) -> dict[str, np.ndarray]:
    model, _, targets, masks = case
    tasks = tasks_lib.task_set(["seg", "depth", SCENE])
    outputs = model(images)
    return {
        name: task.loss(targets[name], outputs[name], masks[name]).numpy()
        for name, task in tasks.items()
    }


PGD = attacks.PGD(EPS, EPS / 4, 8)


def attacked(case, **settings) -> np.ndarray:
    model, x, targets, masks = case
    goal = attacks.objective(model, targets, masks, **settings)
    return PGD(goal, x, seed=3).numpy()


@pytest.mark.slow
def test_a_net_keeps_maps_and_classes_of_images_and_attacks_the_others(case):
    _, x, _, _ = case
    clean_losses = losses_of(case, x)
    plain_images = attacked(case, tasks="seg")
    plain_losses = losses_of(case, plain_images)
    assert np.any(plain_losses["depth"] > clean_losses["depth"] * 1.1)
    assert np.any(plain_losses["scene"] > clean_losses["scene"] * 1.02)
    for spare in (("depth",), (SCENE,), ("depth", SCENE)):
        images = attacked(case, tasks="seg", spare=spare)
        losses = losses_of(case, images)
        for name in tasks_lib.task_set(spare):
            assert np.all(losses[name] <= clean_losses[name] * (1 + 1e-5)), spare
        rise = (losses["seg"] - clean_losses["seg"]) / (
            plain_losses["seg"] - clean_losses["seg"]
        )
        assert np.all(rise > 0.3), spare
        if spare == ("depth",):  # Without a target in the first image: as it was.
            np.testing.assert_allclose(images[0], plain_images[0], atol=1e-6)
            repeat = attacked(case, tasks="seg", spare=spare)
            np.testing.assert_array_equal(images, repeat)
            assert np.any(images[1:] != plain_images[1:])


@pytest.mark.parametrize(
    "settings",
    [
        {"targeted": True, "tasks": "seg"},
        slow({"tasks": ("seg", SCENE), "weights": {"seg": 1, "scene": -0.5}}),
        slow({"tasks": ("seg", SCENE), "balance": "normalized", "judge": "harm"}),
        {"tasks": ("seg", SCENE), "balance": "worst"},
        {"tasks": "seg", "pixels": attacks.block(6, 6, 0, 0, 3, 3), "losses": "cospgd"},
    ],
    ids=["targeted", "weights", "normalized", "worst", "pixels"],
)
def test_a_task_is_spared_whatever_is_done_to_the_others(case, settings):
    _, x, _, _ = case
    clean_losses = losses_of(case, x)
    losses = losses_of(case, attacked(case, spare="depth", **settings))
    assert np.all(losses["depth"] <= clean_losses["depth"] * (1 + 1e-5))
    change = losses["seg"] - clean_losses["seg"]
    assert np.mean(change) * (-1 if settings.get("targeted") else 1) > 0


def test_what_cannot_be_spared_is_said(case):
    model, x, targets, masks = case

    def make_objective(**settings):
        return attacks.objective(model, targets, masks, **settings)

    with pytest.raises(InputError, match="must not be attacked too, but 'depth' is"):
        make_objective(tasks=("seg", "depth"), spare="depth")
    with pytest.raises(
        InputError, match="single draw of a random model's noise; got eot=3"
    ):
        make_objective(tasks="seg", spare="depth", eot=3)
    with pytest.raises(InputError, match="No target was given for 'normal'"):
        make_objective(tasks="seg", spare="normal")
    with pytest.raises(InputError, match="no task 'depth' to spare"):
        attacks.objective(
            keras.Model(model.input, {"seg": model.output["seg"]}),
            targets,
            masks,
            tasks="seg",
            spare="depth",
        )(x)
    two_targets = {name: targets[name] for name in ("seg", "depth")}
    goal = attacks.objective(model, two_targets, masks, spare="depth")
    assert tuple(goal.recipe.tasks) == ("seg",)


def test_some_channels_alone(case):
    model, x, targets, masks = case
    clean_losses = losses_of(case, x)
    goal = attacks.objective(model, targets, masks, tasks="seg", spare="depth")
    images = attacks.on_channels(PGD, (0, 2))(goal, x, seed=3).numpy()
    np.testing.assert_array_equal(images[..., 1], x[..., 1])
    losses = losses_of(case, images)
    assert np.all(losses["depth"] <= clean_losses["depth"] * (1 + 1e-5))
    assert np.all(losses["seg"] > clean_losses["seg"])
