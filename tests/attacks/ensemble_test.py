# SPDX-License-Identifier: Apache-2.0
"""The worst of several attacks, per image and by the objective's score; SEA's runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tiers_fixture import slow

from mtr_tf import attacks
from mtr_tf.attacks import apgd
from mtr_tf.attacks import threat
from mtr_tf.attacks.baselines import Corner
from mtr_tf.attacks.baselines import Noise
from mtr_tf.attacks.ensemble import SEA
from mtr_tf.attacks.ensemble import Worst
from mtr_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class Move:
    """An attack that shifts every value, whatever the objective, and saves its keys."""

    by: float
    passes: int = 3

    def search(self, objective, x, keys):
        KEYS.append(keys.numpy())
        return x + tf.cast(self.by, x.dtype)


KEYS = []


@dataclasses.dataclass(frozen=True)
class Losses:
    """An objective: the sum of linear losses, each with a maximum of its own."""

    names: tuple = ("up",)
    harm: bool = False
    slopes = {"up": 1.0, "down": -1.0, "masked_ce_balanced": [1.0, 1.0, 1.0]}
    slopes |= {"masked_ce": [-1.0, 1.0, 1.0], "js": [1.0, -1.0, -1.0]}
    slopes |= {"cospgd": [-1.0, -1.0, -1.0]}

    def with_losses(self, names):
        return dataclasses.replace(self, names=tuple(names))

    def in_ensemble(self):
        return dataclasses.replace(self, harm=True)

    def __call__(self, z, progress=0.0):
        total = tf.add_n([tf.reduce_sum(z * self.slopes[n], 1) for n in self.names])
        return (total, harm(z)) if self.harm else total


@attacks.simple
def harm(z):
    """Scores; highest where image 0 is low, 1 high, 2 low-high-high, 3 high-low-low."""
    signs = [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, -1.0, -1.0]]
    return tf.reduce_sum(z * tf.constant(signs), 1)


def search(attack, objective, x, seed=0):
    keys = threat.image_keys(seed, tf.range(len(x)))
    return attack.search(objective, tf.constant(x), keys).numpy()


def test_each_image_keeps_its_highest_and_of_equals_the_first():
    x = np.full((4, 2), 0.5, np.float32)
    goals = np.array([[0.125], [-0.25], [0.375], [0.0]], np.float32)
    nearness = attacks.simple(lambda z: -tf.reduce_sum(tf.abs(z - x - goals), 1))
    worst = Worst((Move(0.125), Move(-0.25), Move(0.375), Move(-0.125)))
    got = search(worst, nearness, x)
    # The last image is as near to the first as to the fourth.
    moves = np.array([[0.125], [-0.25], [0.375], [0.125]])
    np.testing.assert_array_equal(got, x + moves)


@pytest.mark.parametrize("order", [(0.1, -0.1), (-0.1, 0.1)])
def test_nan_never_wins_wherever_it_comes(order):
    x = np.full((2, 2), 0.5, np.float32)
    root = attacks.simple(lambda z: tf.sqrt(tf.reduce_sum(z - 0.5, 1)))
    got = search(Worst(tuple(Move(shift) for shift in order)), root, x)
    np.testing.assert_allclose(got, 0.6)
    first_result = search(Worst((Move(-0.1), Move(-0.2))), root, x)
    np.testing.assert_allclose(first_result, 0.4)  # None has a score: the first's.


def test_members_and_images_have_random_numbers_of_their_own():
    KEYS.clear()
    x = np.full((3, 2), 0.5, np.float32)
    flat_loss = attacks.simple(lambda z: 0 * tf.reduce_sum(z, 1))
    search(Worst((Move(0.1), Worst((Move(0.1), Move(0.1))))), flat_loss, x)
    assert len(np.unique(np.concatenate(KEYS), axis=0)) == 9
    image_keys = threat.image_keys(0, tf.range(3)).numpy()
    assert not any((key == image_keys).all(1).any() for key in np.concatenate(KEYS))
    # Two members of one kind draw differently: no worse than either, better somewhere.
    wave = attacks.simple(lambda z: tf.reduce_sum(tf.sin(30 * z), 1))
    x = np.random.default_rng(0).uniform(0, 1, (8, 3)).astype(np.float32)
    single_values = wave(Worst((Noise(0.2),))(wave, x)).numpy()
    double_values = wave(Worst((Noise(0.2), Noise(0.2)))(wave, x)).numpy()
    assert np.all(double_values >= single_values - 1e-5)
    assert np.any(double_values > single_values + 0.1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_results_are_the_members_bit_for_bit_in_every_dtype(dtype):
    x = tf.cast(np.random.default_rng(1).uniform(0, 1, (5, 3)), dtype)
    worst = Worst((Corner(0.1), Noise(0.1)))
    keys = threat.image_keys(0, tf.range(5))
    total = attacks.simple(lambda z: tf.reduce_sum(z, 1))
    got = worst.search(total, x, keys)
    assert got.dtype == x.dtype
    results = []
    for number, member in enumerate(worst.attacks):
        member_keys = tf.stack([threat.fold_in(key, number) for key in keys])
        results.append(member.search(total, x, member_keys))
    sums = [tf.reduce_sum(tf.cast(points, tf.float64), 1).numpy() for points in results]
    for i in range(5):
        expected = results[int(sums[1][i] > sums[0][i])][i]
        assert np.all((got[i] == expected).numpy())


def test_members_with_losses_of_their_own():
    x = np.full((4, 3), 0.5, np.float32)
    run = apgd.APGD(0.1, 4, random_start=False)
    worst = Worst(((run, ("down",)), (run, ["up"])))
    assert worst == Worst(((run, ("down",)), (run, "up")))
    assert Worst(((run, "up,down"), (run, None))) == Worst(((run, ["up", "down"]), run))
    got = worst(Losses(), x).numpy()
    # Each image goes all up or all down, whichever has more harm.
    expected = np.array([-0.1, 0.1, 0.1, -0.1])[:, None] + x
    np.testing.assert_allclose(got, expected, atol=1e-6)

    class WithoutJudge(Losses):  # Without a judge, the objective's score decides.
        in_ensemble = property()

    result = Worst((run, (run, ("down",))))(WithoutJudge(("up",)), x)
    np.testing.assert_allclose(result, 0.6, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", slow("l2")])
def test_sea_is_the_worst_of_four_runs_by_harm(norm):
    x = np.full((4, 3), 0.5, np.float32)
    got = SEA(0.1, 60, norm)(Losses(), x).numpy() - x
    # What each image's harm likes best of (1, 1, 1), (-1, 1, 1), (1, -1, -1) and
    # (-1, -1, -1).
    signs = [[-1, -1, -1], [1, 1, 1], [-1, 1, 1], [1, -1, -1]]
    scale = 1 if norm == "linf" else np.sqrt(1 / 3)
    np.testing.assert_allclose(got, 0.1 * scale * np.array(signs), atol=1e-4)


def test_sea_is_four_runs_of_shrinking_radius():
    assert SEA(0.1).steps == 300
    assert SEA(0.1, 300).passes == 4 * (300 + 3 + 1)
    members = SEA(0.1, 300)._worst().attacks
    assert [losses for _, losses in members] == [
        ("masked_ce_balanced",),
        ("masked_ce",),
        ("js",),
        ("cospgd",),
    ]
    radii = ((2, 0.3), (1.5, 0.3), (1, 0.4))
    assert {run for run, _ in members} == {apgd.APGD(0.1, 300, radii=radii)}
    assert SEA(0.1) == SEA(0.1, 300, "linf", 1, True)
    (member, *_) = SEA(0.1, 9, restarts=1, random_start=False)._worst().attacks
    assert member[0] == apgd.APGD(0.1, 9, "linf", 1, False, radii)
    with pytest.raises(InputError, match="not 8"):
        SEA(8)
    with pytest.raises(InputError, match="steps must be a whole number"):
        SEA(0.1, 0)


def test_the_objective_begins_once_for_every_member_and_for_the_judge():
    starts = []

    class StartRecorder:
        def begin(self, start, clean):
            starts.append(start.numpy())
            np.testing.assert_array_equal(clean, x)
            return attacks.simple(lambda z: tf.reduce_sum(z, 1))

    x = np.full((2, 3), 0.5, np.float32)
    search(Worst((apgd.APGD(0.1, 2, restarts=3), Noise(0.1))), StartRecorder(), x)
    # The judge and the noise begin at the images, the runs where they start.
    assert len(starts) == 5
    assert [bool(np.all(start == x)) for start in starts] == [True, *[False] * 3, True]


def test_passes_are_the_members_and_one_more_each():
    assert Worst((apgd.APGD(0.1, 10), (Noise(0.1, draws=4), ("up",)))).passes == 17


@pytest.mark.parametrize(
    "attacks",
    [
        (),
        None,
        (1,),
        (Noise,),
        (("up",),),
        ((Noise, ("up",), 1),),
        ((Noise(0.1), 5),),
        ((Noise(0.1), Noise(0.2)),),
    ],
)
def test_members_that_are_no_attacks_are_refused(attacks):
    with pytest.raises(InputError, match="got "):
        Worst(attacks)


def test_objectives_without_the_methods_are_refused():
    x = np.full((2, 3), 0.5, np.float32)
    total = attacks.simple(lambda z: tf.reduce_sum(z, 1))
    with pytest.raises(
        InputError, match=r"method with_losses; make it with attacks\.ob"
    ):
        SEA(0.1, 10)(total, x)
    with pytest.raises(InputError, match="method with_losses"):
        Worst(((Noise(0.1), ("ce",)),))(total, x)
