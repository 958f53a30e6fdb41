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


def best_of_box(slope: np.ndarray, other: np.ndarray) -> float:
    """The most that slope . d comes to in [-1, 1]^n with other . d <= 0.

    At a corner of that polytope all values but one are -1 or 1.
    """
    count, found = len(slope), -np.inf
    for free in range(count):
        rest = [n for n in range(count) if n != free]
        for signs in itertools.product((-1.0, 1.0), repeat=count - 1):
            d = np.zeros(count)
            d[rest] = signs
            limit = -(other @ d) / other[free]
            ends = [-1.0, 1.0, np.clip(limit, -1, 1)]
            for d[free] in ends:
                if other @ d <= 1e-12:
                    found = max(found, slope @ d)
    return found


def bent(slope, other, room, move=None):
    slope, other = (tf.constant(a[None], tf.float32) for a in (slope, other))
    room = [tf.constant([room], tf.float32)]
    return sparing.bent(slope, [other], room, move, margin=0.0)[0]


def test_for_l2_the_bent_gradient_is_the_projection():
    slope, other = slopes_of(40, 0)
    assert slope @ other > 0
    found = bent(slope, other, 0.0).numpy()
    expected = slope - other * (slope @ other) / (other @ other)
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 1 - 1e-6
    free = bent(slope, other, 1e6).numpy()
    np.testing.assert_array_equal(free, slope.astype(np.float32))  # As it was.
    back = bent(slope, other, -1e6).numpy()
    cosine = back @ -other / np.linalg.norm(back) / np.linalg.norm(other)
    assert cosine > 1 - 1e-6


def test_for_linf_the_bent_sign_is_the_best_corner_that_fits():
    for seed in range(4):
        slope, other = slopes_of(9, seed)
        step = np.sign(bent(slope, other, 0.0, tf.sign).numpy())
        assert other @ step <= 1e-6
        bound = best_of_box(slope, other)
        # Of the best point one value is no sign: corners may lack as much as it weighs.
        assert bound - 2 * np.abs(slope).max() <= slope @ step <= bound + 1e-6


def every_attack(norm="linf"):
    yield attacks.PGD(EPS, EPS / 4, 20, norm=norm)
    yield attacks.APGD(EPS, 20, norm=norm)
    yield attacks.FGSM(EPS, norm=norm)
    if norm == "linf":
        yield attacks.MIM(EPS, EPS / 4, 20)
        yield attacks.Square(EPS, 100)
        yield attacks.Worst((attacks.Noise(EPS, draws=20), attacks.FGSM(EPS)))


@pytest.mark.parametrize("norm", ["linf", slow("l2")])
def test_every_attack_spares_the_other_of_two_linear_heads(norm):
    slope, other = slopes_of(9, 3)
    x = np.full((2, 1, 9, 1), 0.5, np.float32)
    goal = objective(of_functions(linear(slope), linear(other)), 2)
    most = EPS * best_of_box(slope, other)
    if norm == "l2":
        most = EPS * np.linalg.norm(slope - other * (slope @ other) / (other @ other))
    for attack in every_attack(norm):
        moved = (attack(goal, x, seed=1).numpy() - x).reshape(2, 9)
        size = np.abs(moved).max(1) if norm == "linf" else np.linalg.norm(moved, axis=1)
        assert np.all(size <= EPS * (1 + 1e-6)), attack
        assert np.all(moved @ other <= 1e-5), attack
        assert np.all(moved @ slope <= most + 1e-5), attack
        if isinstance(attack, attacks.PGD):
            assert np.all(moved @ slope >= 0.9 * most), attack


def bowl(x):
    return 1 + 40 * tf.reduce_sum((x - 0.5) ** 2 * [1.0, 3.0], 1)


def wave(x):
    return 2 + tf.sin(9 * x[:, 0]) + x[:, 1] + x[:, 0] * x[:, 1]


def test_two_pixels_against_all_their_values():
    """PGD raises the spared loss much; sparing keeps it, for most of the harm."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.35, 0.65, (6, 1, 2, 1)).astype(np.float32)
    model = of_functions(wave, bowl)
    axis = np.linspace(-EPS, EPS, 201, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 1, 2, 1)
    grid = grid[np.linalg.norm(grid, axis=2)[:, 0, 0] <= EPS]
    clean = {k: v.numpy()[:, 0] for k, v in model(x).items()}
    plain = attacks.PGD(EPS, EPS / 4, 20, norm="l2")(objective(model, 6, spare=()), x)
    assert np.mean(model(plain)["back"].numpy()[:, 0] / clean["back"]) > 1.3
    goal = objective(model, 6)
    for attack in (
        attacks.PGD(EPS, EPS / 8, 40, norm="l2"),
        attacks.APGD(EPS, 40, norm="l2"),
    ):
        found = {k: v.numpy()[:, 0] for k, v in model(attack(goal, x)).items()}
        assert np.all(found["back"] <= clean["back"] * (1 + 1e-6))
        for image in range(6):
            every = {k: v.numpy()[:, 0] for k, v in model(x[image] + grid).items()}
            allowed = every["back"] <= clean["back"][image]
            most = every["front"][allowed].max() - clean["front"][image]
            rise = found["front"][image] - clean["front"][image]
            assert rise <= most + 1e-2  # The grid is not all values.
            assert rise >= 0.7 * most, (attack, image)


def test_several_tasks_are_spared_together():
    slope, other = slopes_of(12, 5)
    third = np.random.default_rng(6).normal(size=12) + slope
    model = of_functions(linear(slope), linear(other), linear(third))
    goal = objective(model, 1, spare=(BACK, SIDE))
    x = np.full((1, 1, 12, 1), 0.5, np.float32)
    moved = (attacks.PGD(EPS, EPS / 4, 20)(goal, x).numpy() - x).ravel()
    assert max(moved @ other, moved @ third) <= 1e-5
    assert moved @ slope > 0.05 * EPS * np.abs(slope).sum()


def test_an_attack_that_does_not_say_how_it_moves_is_bent_all_the_same():
    class Plain(base.Attack):
        """Ten small steps, by what `base.gradient` alone says."""

        epsilon, passes = EPS, 10

        def search(self, objective, x, keys):
            begun = base.begin(objective, x, x)

            def step(_, x):
                slope, _ = base.gradient(begun, x, tf.constant(0.0))
                return x + EPS / 10 * threat.L2(EPS).steepest(slope)

            return base.loop(0, 10, step, x)

    slope, other = slopes_of(9, 3)
    x = np.full((1, 1, 9, 1), 0.5, np.float32)
    goal = objective(of_functions(linear(slope), linear(other)), 1)
    moved = (Plain()(goal, x).numpy() - x).ravel()
    assert moved @ other <= 1e-4
    most = EPS * np.linalg.norm(slope - other * (slope @ other) / (other @ other))
    assert moved @ slope >= 0.8 * most


def test_the_score_puts_what_spares_first_and_then_the_smaller_excess():
    losses = {"back": tf.constant([1.0, 1.0, 1.1, 2.0, np.nan, 0.0, 1e-3])}
    clean = {"back": tf.constant([1.0, 2.0, 1.0, 1.0, 1.0, 0.0, 0.0])}
    scores = sparing.score(tf.constant([5.0, -7, 9, 9, 9, 0, 9]), losses, clean)
    scores = scores.numpy()
    np.testing.assert_array_equal(scores[[0, 1, 5]], [5, -7, 0])
    assert -sparing.FAR > scores[2] > scores[3] > scores[4]
    assert scores[6] < -sparing.FAR
    assert np.all(np.isfinite(scores))
    assert scores[4] / 100 < -sparing.FAR  # Also a mean over draws is.


def test_a_clean_loss_that_is_not_finite_is_not_spared():
    clean = {"one": tf.constant([np.nan, np.inf, 1.0]), "two": tf.ones(3)}
    losses = {"one": tf.ones(3), "two": tf.constant([2.0, 1.0, 1.0])}
    excess = sparing.excess(losses, clean).numpy()
    assert np.all(excess[:2] > 0)
    assert excess[2] == 0


def test_gradients_of_channels_that_stay_do_not_bend():
    rng = np.random.default_rng(0)
    slope, other = (tf.constant(rng.normal(size=(2, 3, 3, 2))) for _ in range(2))
    large = tf.concat((tf.zeros((2, 3, 3, 1)), tf.ones((2, 3, 3, 1))), -1)
    large = 1e6 * tf.cast(large, slope.dtype)
    whole = channels._Whole(slope, (0,))
    move = channels._Move(threat.L2(0.1).steepest, whole)
    room = [tf.zeros(2, slope.dtype)]
    bent = [
        sparing.bent(slope + i * large, [other - i * large], room, move) for i in (0, 1)
    ]
    np.testing.assert_allclose(bent[0], bent[1], atol=1e-12)
    np.testing.assert_array_equal(bent[1][..., 1], 0)


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
    masks["depth"][0] = 0  # Nothing is known of it: nothing to spare.
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
    clean = losses_of(case, x)
    plain = attacked(case, tasks="seg")
    hurt = losses_of(case, plain)
    assert np.any(hurt["depth"] > clean["depth"] * 1.1)
    assert np.any(hurt["scene"] > clean["scene"] * 1.02)
    for spare in (("depth",), (SCENE,), ("depth", SCENE)):
        images = attacked(case, tasks="seg", spare=spare)
        found = losses_of(case, images)
        for name in tasks_lib.task_set(spare):
            assert np.all(found[name] <= clean[name] * (1 + 1e-5)), spare
        rise = (found["seg"] - clean["seg"]) / (hurt["seg"] - clean["seg"])
        assert np.all(rise > 0.3), spare
        if spare == ("depth",):  # Without a target in the first image: as it was.
            np.testing.assert_allclose(images[0], plain[0], atol=1e-6)
            again = attacked(case, tasks="seg", spare=spare)
            np.testing.assert_array_equal(images, again)
            assert np.any(images[1:] != plain[1:])


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
    clean = losses_of(case, x)
    found = losses_of(case, attacked(case, spare="depth", **settings))
    assert np.all(found["depth"] <= clean["depth"] * (1 + 1e-5))
    change = found["seg"] - clean["seg"]
    assert np.mean(change) * (-1 if settings.get("targeted") else 1) > 0


def test_what_cannot_be_spared_is_said(case):
    model, x, targets, masks = case

    def make(**settings):
        return attacks.objective(model, targets, masks, **settings)

    with pytest.raises(InputError, match="must not be attacked too, but 'depth' is"):
        make(tasks=("seg", "depth"), spare="depth")
    with pytest.raises(
        InputError, match="single draw of a random model's noise; got eot=3"
    ):
        make(tasks="seg", spare="depth", eot=3)
    with pytest.raises(InputError, match="No target was given for 'normal'"):
        make(tasks="seg", spare="normal")
    with pytest.raises(InputError, match="no task 'depth' to spare"):
        attacks.objective(
            keras.Model(model.input, {"seg": model.output["seg"]}),
            targets,
            masks,
            tasks="seg",
            spare="depth",
        )(x)
    two = {name: targets[name] for name in ("seg", "depth")}
    goal = attacks.objective(model, two, masks, spare="depth")
    assert tuple(goal.recipe.tasks) == ("seg",)


def test_some_channels_alone(case):
    model, x, targets, masks = case
    clean = losses_of(case, x)
    goal = attacks.objective(model, targets, masks, tasks="seg", spare="depth")
    images = attacks.on_channels(PGD, (0, 2))(goal, x, seed=3).numpy()
    np.testing.assert_array_equal(images[..., 1], x[..., 1])
    found = losses_of(case, images)
    assert np.all(found["depth"] <= clean["depth"] * (1 + 1e-5))
    assert np.all(found["seg"] > clean["seg"])
