# SPDX-License-Identifier: Apache-2.0
"""Objectives on multi-task models: which losses, pixels and heads, and at what cost."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiers_fixture import slow

from mtr_tf import attacks
from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import attack_losses
from mtr_tf.attacks import base
from mtr_tf.attacks import output_mask as attacks_pixels
from mtr_tf.errors import InputError

NAMES = ("seg", "depth", "autoencoder")
EPS = 8 / 255
PGD = attacks.PGD(EPS, EPS / 4, 4)


def batch(size=4, height=6, width=5, seed=0):
    rng = np.random.default_rng(seed)
    pixels = (size, height, width)
    targets = {
        "seg": rng.integers(0, 3, pixels).astype(np.int32),
        "depth": rng.normal(size=(*pixels, 1)).astype(np.float32),
        "autoencoder": rng.uniform(size=(*pixels, 3)).astype(np.float32),
    }
    masks = {n: rng.integers(0, 2, pixels).astype(np.float32) for n in NAMES}
    return rng.uniform(size=(*pixels, 3)).astype(np.float32), targets, masks


def keras_net(height=6, width=5, kernel=3):
    keras.utils.set_random_seed(0)
    image = keras.Input((height, width, 3), name="image")
    y = keras.layers.Conv2D(8, kernel, padding="same", name="trunk")(image)
    y = keras.layers.BatchNormalization(name="norm")(y)
    y = keras.layers.Activation("softplus")(y)
    channels = {"seg": 3, "depth": 1, "autoencoder": 3}
    heads = {n: keras.layers.Conv2D(c, 1, name=n)(y) for n, c in channels.items()}
    return keras.Model(image, heads)


@pytest.fixture(scope="module")
def net():
    return keras_net()


def slope(objective, x):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        ascend, score = objective(x)
    np.testing.assert_array_equal(ascend, score)
    return score.numpy(), tape.gradient(ascend, x).numpy()


def test_joint_objective_is_the_sum_of_the_single_ones_and_so_is_its_gradient(net):
    x, targets, masks = batch()
    task_results = [slope(attacks.objective(net, targets, masks, n), x) for n in NAMES]
    pair = slope(attacks.objective(net, targets, masks, ("seg", "depth")), x)
    joint = slope(attacks.objective(net, targets, masks), x)
    mean = slope(attacks.objective(net, targets, masks, balance="mean"), x)
    for kind in (0, 1):  # Values, gradients.
        total = sum(s[kind] for s in task_results)
        pair_total = task_results[0][kind] + task_results[1][kind]
        np.testing.assert_allclose(joint[kind], total, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(pair[kind], pair_total, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(mean[kind], total / 3, rtol=1e-4, atol=1e-6)


def test_the_value_is_the_mean_over_chosen_valid_pixels_by_hand(net):
    x, targets, masks = batch()
    pixels = np.random.default_rng(3).integers(0, 2, (6, 5)).astype(np.float32)
    objective = attacks.objective(net, targets, masks, "depth", pixels=pixels)
    error = np.abs(net(x)["depth"] - targets["depth"])[..., 0]
    chosen_mask = masks["depth"] * pixels
    expected = (error * chosen_mask).sum((1, 2)) / chosen_mask.sum((1, 2))
    np.testing.assert_allclose(objective(x)[0], expected, rtol=1e-5)
    batch_pixels = np.repeat(pixels[None], 4, 0)
    batch_objective = attacks.objective(
        net, targets, masks, "depth", pixels=batch_pixels
    )
    np.testing.assert_array_equal(objective(x)[0], batch_objective(x)[0])


def test_targets_may_be_lists_which_tell_the_places_too():
    logits = tf.constant([[2.0, 0.0], [0.0, 1.0]])
    task = tasks_lib.Task("scene", classes=("in", "out"))
    objective = attacks.objective(
        lambda x: {"scene": logits}, {"scene": [0, 0]}, {"scene": [1, 1]}, [task]
    )
    expected = np.log1p(np.exp([-2.0, 1.0]))
    np.testing.assert_allclose(objective(tf.zeros((2, 4, 4, 3)))[0], expected, 1e-6)


def test_names_letters_and_aliases_mean_the_same(net):
    x, targets, masks = batch()
    by_name = attacks.objective(net, targets, masks, ("seg", "autoencoder"))
    by_letter = attacks.objective(net, targets, masks, "s,A")
    assert by_name.recipe == by_letter.recipe
    np.testing.assert_array_equal(by_name(x)[0], by_letter(x)[0])


@pytest.mark.slow
def test_an_image_whose_mask_is_all_zero_does_not_move(net):
    x, targets, masks = batch()
    masks = {name: mask.copy() for name, mask in masks.items()}
    for mask in masks.values():
        mask[2] = 0
    for attack in (PGD, attacks.FGSM(EPS), attacks.PGD(0.5, 0.1, 3, "l2", restarts=2)):
        got = attack(attacks.objective(net, targets, masks), x).numpy()
        np.testing.assert_array_equal(got[2], x[2])
        assert np.all(np.abs(got - x).max((1, 2, 3))[[0, 1, 3]] > 0)
    objective = attacks.objective(net, targets, masks, pixels=np.zeros((6, 5)))
    np.testing.assert_array_equal(PGD(objective, x), x)


def test_a_subset_of_output_pixels_moves_only_what_they_see():
    x, targets, masks = batch()
    masks = {name: np.ones_like(mask) for name, mask in masks.items()}
    pixels = np.zeros((6, 5), np.float32)
    pixels[1, 1] = pixels[4, 3] = 1
    attack = attacks.PGD(EPS, EPS / 4, 3, random_start=False)
    for kernel in (1, 3):  # A 1x1 net sees one pixel, a 3x3 net its neighbours too.
        net = keras_net(kernel=kernel)
        objective = attacks.objective(net, targets, masks, pixels=pixels)
        moved = np.any(attack(objective, x).numpy() != x, axis=-1)
        reach = np.zeros((6, 5), bool)
        for row, column in ((1, 1), (4, 3)):
            r = kernel // 2
            reach[row - r : row + r + 1, column - r : column + r + 1] = True
        assert not moved[:, ~reach].any()
        assert moved[:, reach].all()


def test_batch_norm_is_in_inference_mode_and_left_as_it_is():
    net = keras_net()
    layer = net.get_layer("norm")
    layer.moving_mean.assign(tf.range(8.0) / 8)
    old_weights = [w.numpy() for w in net.weights]
    x, targets, masks = batch()
    objective = attacks.objective(net, targets, masks)
    losses = objective(x)[0].numpy()
    # In training mode an image's loss would depend on the rest of its batch.
    first_objective = attacks.objective(
        net,
        {n: t[:1] for n, t in targets.items()},
        {n: m[:1] for n, m in masks.items()},
    )
    np.testing.assert_allclose(first_objective(x[:1])[0], losses[:1], rtol=1e-5)
    PGD(objective, x)
    for weight, old_weight in zip(net.weights, old_weights, strict=True):
        np.testing.assert_array_equal(weight, old_weight)


def test_only_attacked_heads_are_in_the_backward_pass():
    @tf.custom_gradient
    def one_way(y):
        def backward(upstream):
            raise AssertionError("the backward pass entered a head not attacked")

        return y, backward

    def model(x):
        return {"seg": one_way(x), "depth": x[..., :1]}

    x, targets, masks = batch()
    PGD(attacks.objective(model, targets, masks, "depth"), x)
    with pytest.raises(AssertionError, match="not attacked"):
        PGD(attacks.objective(model, targets, masks, "seg,depth"), x)


def test_the_attack_raises_the_attacked_loss_of_every_image(net):
    x, targets, masks = batch()
    masks = {name: np.ones_like(mask) for name, mask in masks.items()}
    for tasks in ("seg", "depth", "seg,depth,autoencoder"):
        objective = attacks.objective(net, targets, masks, tasks)
        rise = objective(PGD(objective, x))[0] - objective(x)[0]
        fgsm_rise = objective(attacks.FGSM(EPS)(objective, x))[0] - objective(x)[0]
        assert np.all(rise > 0)
        assert np.all(fgsm_rise > 0)


def test_eager_calls_compile_once_per_attack_and_model():
    traces = []

    class Counted(keras.layers.Layer):
        def call(self, y):
            if not hasattr(y, "numpy"):  # The check before is no part of the graph.
                traces.append(y)
            return y

    image = keras.Input((6, 5, 3))
    net = keras.Model(image, {"autoencoder": Counted()(image)})
    traces.clear()
    results = []
    for seed in range(4):
        x, targets, masks = batch(seed=seed)
        attack = attacks.PGD(EPS, EPS / 4, 4)  # An equal record, made anew.
        objective = attacks.objective(net, targets, masks, "autoencoder")
        results.append(attack(objective, x, seed).numpy())
    assert len(traces) == 2  # The loop's body and the last point's score.
    for seed in range(4):  # And each call had its own batch.
        x, targets, masks = batch(seed=seed)
        objective = attacks.objective(
            lambda z: {"autoencoder": z}, targets, masks, "autoencoder"
        )
        np.testing.assert_allclose(PGD(objective, x, seed), results[seed], atol=1e-6)


def test_graphs_kept_between_eager_calls_begin_their_runs_too(net):
    # A kept graph binds the recipe to each batch: `begin` must not be lost.
    x, targets, masks = batch()
    attack = attacks.PGD(EPS, EPS / 4, 4, random_start=False, keep="last")
    kept_result, fresh_result = (
        attack(attacks.objective(model, targets, masks, balance="wgd_released"), x)
        for model in (net, lambda z: net(z, training=False))
    )
    np.testing.assert_allclose(kept_result, fresh_result, atol=1e-6)


def test_weights_that_change_between_eager_calls_are_seen():
    net = keras_net()
    x, targets, masks = batch()
    objective = attacks.objective(net, targets, masks, "depth")
    fgsm = attacks.FGSM(EPS)
    old_result = fgsm(objective, x).numpy()
    head = net.get_layer("depth")
    head.set_weights([-w for w in head.get_weights()])
    new_result = fgsm(objective, x).numpy()
    fresh_objective = attacks.objective(
        lambda z: net(z, training=False), targets, masks, "depth"
    )
    np.testing.assert_allclose(new_result, fgsm(fresh_objective, x), atol=1e-6)
    assert np.any(old_result != new_result)


@pytest.mark.slow
def test_two_replicas_equal_one_with_a_model(mirrored):
    x, targets, masks = batch()
    with mirrored.scope():
        net = keras_net()
    objective = attacks.objective(net, targets, masks)
    expected = PGD(objective, x, attacks.fold_in(1, tf.range(4))).numpy()

    def batch_part(context):
        rows = slice(2 * context.replica_id_in_sync_group, None)
        cut = lambda value: tf.constant(value[rows][:2])  # noqa: E731
        return tf.nest.map_structure(cut, (x, targets, masks, np.arange(4)))

    def replica(x, targets, masks, index):
        objective = attacks.objective(net, targets, masks)
        return PGD(objective, x, attacks.fold_in(1, index))

    parts = mirrored.experimental_distribute_values_from_function(batch_part)
    compiled = tf.function(lambda parts: mirrored.run(replica, parts))
    for result in (compiled(parts), mirrored.run(replica, parts)):
        joined = mirrored.gather(result, axis=0)
        np.testing.assert_allclose(joined, expected, atol=1e-6)


def test_half_precision_images_and_models():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        net = keras_net()
    finally:
        keras.config.set_dtype_policy("float32")
    x, targets, masks = batch()
    x = tf.cast(x, tf.bfloat16)
    got = PGD(attacks.objective(net, targets, masks), x)
    assert got.dtype == tf.bfloat16
    difference = tf.cast(got, tf.float64) - tf.cast(x, tf.float64)
    assert 0 < np.abs(difference).max() <= EPS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tasks": "normal"},
            "No target was given for 'normal'. Pass targets={'normal'",
        ),
        ({"tasks": "segg"}, "seg"),
        ({"tasks": ()}, "At least one task"),
        ({"masks": {}}, "No mask was given for 'seg'. Pass masks={'seg'"),
        ({"masks": None}, "No mask was given for 'seg'. Pass masks={'seg'"),
        (
            {"balance": "summ"},
            "balance must be one of sum, mean.*'summ'. Did you mean 'su",
        ),
        (
            {"judge": "harms"},
            "judge must be one of auto, harm, loss; got 'harms'. Did you",
        ),
        ({"judge": "ham"}, "got 'ham'. Did you mean 'harm'?"),
        (
            {"losses": ("cosgpd",)},
            "A loss must be one of ce, .* Did you mean 'cospgd'?",
        ),
        ({"losses": "ce,margin"}, "but 'ce' and 'margin' both fit 'seg'; choose one"),
        ({"losses": "angular"}, "'angular' fits none of 'seg', 'depth', 'autoencoder'"),
        ({"losses": "l1", "tasks": "seg"}, "'l1' fits none of 'seg'; leave it out"),
        ({"losses": "margin", "balance": "dgba"}, "must not be negative, but 'margin'"),
        ({"losses": "houdini_released", "targeted": True}, "has no targeted form"),
        ({"weights": {"seg": -1e7}}, "0 or of size 1e-06 to .*; got -1.*for 'seg'"),
        ({"weights": {"seg": -1}, "tasks": "seg"}, "weight must be above 0"),
        ({"weights": {"seg": np.inf}}, "0 or of size 1e-06 to .*; got inf for 'seg'"),
        ({"weights": {"seg": "1"}}, "0 or of size 1e-06 to .*; got '1' for 'seg'"),
        ({"weights": {"segg": 1}}, "Unknown task 'segg'"),
        (
            {"weights": {"normal": 1}},
            r"'seg', 'depth', 'autoencoder'\); got one for 'nor",
        ),
        ({"weights": {"seg": 0}, "tasks": "seg"}, "weight must be above 0"),
        (
            {"weights": {"seg": 2}, "balance": "wgd"},
            "with the balances sum, mean;.*wgd",
        ),
        ({"classes": ()}, r"classes must be whole numbers from 0; got \[\]"),
        ({"classes": (-1,)}, r"classes must be whole numbers from 0; got \[-1\]"),
        ({"classes": (1,), "tasks": "depth"}, r"no attacked task has any \('depth'\)"),
        ({"pixels": np.ones((5, 6))}, r"of one image, \(6, 5\); got \(5, 6\)"),
    ],
)
def test_bad_arguments_are_refused(net, change, message):
    _, targets, masks = batch()
    arguments = {"model": net, "targets": targets, "masks": masks} | change
    with pytest.raises(InputError, match=message):
        attacks.objective(**arguments)


@dataclasses.dataclass
class Scaled:
    """A model that compares by value, and so has no hash."""

    factor: float

    def __call__(self, x):
        return {"depth": self.factor * x[..., :1]}


def test_a_model_may_be_any_callable():
    x, targets, masks = batch()
    objective = attacks.objective(Scaled(2.0), targets, masks, "depth")
    result = attacks.FGSM(EPS)(objective, x)
    assert np.all(objective(result)[0] > objective(x)[0])


def test_models_without_the_task_are_refused():
    x, targets, masks = batch()
    for model, message in (
        (lambda z: {"seg": z}, "The model has no task 'depth' to attack, only 'seg'"),
        (
            lambda z: z,
            r"must return a dict {task: output}, but it returned a SymbolicTensor",
        ),
    ):
        with pytest.raises(InputError, match=message):
            PGD(attacks.objective(model, targets, masks, "depth"), x)


def test_a_negative_weight_makes_a_task_better_and_divides_the_joint_harm(net):
    x, targets, masks = batch()
    weights = {"depth": -1}
    seg, depth = (attacks.objective(net, targets, masks, t)(x)[0] for t in ("s", "d"))
    joint = attacks.objective(net, targets, masks, ("s", "d"), weights=weights)
    for value in joint(x):
        np.testing.assert_allclose(value, seg - depth, rtol=1e-5)
    harms = [
        attacks.objective(net, targets, masks, t, judge="harm")(x)[1]
        for t in ("s", "d")
    ]
    joint = attacks.objective(
        net, targets, masks, ("s", "d"), weights=weights, judge="harm"
    )
    np.testing.assert_allclose(joint(x)[1], np.sqrt(harms[0] / harms[1]), rtol=1e-4)


def test_weights_multiply_each_task_s_loss(net):
    x, targets, masks = batch()
    task_results = [slope(attacks.objective(net, targets, masks, n), x) for n in NAMES]
    weights = {"s": 2, "autoencoder": 0.5}  # The depth's is 1.
    for balance, share in (("sum", 1), ("mean", 3)):
        joint = attacks.objective(net, targets, masks, NAMES, balance, weights=weights)
        for kind, got in enumerate(slope(joint, x)):
            parts = [
                w * s[kind] for w, s in zip((2, 1, 0.5), task_results, strict=True)
            ]
            np.testing.assert_allclose(got, sum(parts) / share, rtol=1e-4, atol=1e-6)


def test_each_task_raises_the_surrogate_that_fits_it_or_its_own_loss(net):
    x, targets, masks = batch()
    plain_objective = attacks.objective(net, targets, masks)
    outputs = net(x)

    def surrogate(name, task):
        case = attack_losses.Case(
            tf.constant(targets[task]),
            outputs[task],
            tf.constant(masks[task]),
            tasks_lib.TASKS[task].loss,
            0.25,
        )
        return attack_losses.ATTACK_LOSSES[name].loss(case)

    def own_loss(task):
        return tasks_lib.TASKS[task].loss(targets[task], outputs[task], masks[task])

    for names, expected in (
        (
            "segpgd",
            surrogate("segpgd", "seg") + own_loss("depth") + own_loss("autoencoder"),
        ),
        (
            "js,l2",
            surrogate("js", "seg")
            + surrogate("l2", "depth")
            + surrogate("l2", "autoencoder"),
        ),
        ("cospgd", sum(surrogate("cospgd", task) for task in NAMES)),
        (
            "houdini",
            surrogate("houdini", "seg") + own_loss("depth") + own_loss("autoencoder"),
        ),
    ):
        surrogate_objective = attacks.objective(net, targets, masks, losses=names)
        for objective in (
            surrogate_objective,
            plain_objective.with_losses(names.split(",")),
        ):
            ascend, score = objective(x, 0.25)
            np.testing.assert_allclose(ascend, expected, rtol=1e-5)
            harm = plain_objective.with_judge("harm")(x)[1]
            np.testing.assert_array_equal(score, harm)
            loss_score = objective.with_judge("loss")(x, 0.25)[1]
            np.testing.assert_array_equal(loss_score, plain_objective(x)[1])
        assert surrogate_objective.recipe == objective.recipe
        assert hash(surrogate_objective.recipe) == hash(objective.recipe)
    assert plain_objective.with_losses(()).recipe == plain_objective.recipe
    with pytest.raises(InputError, match="fits none of"):
        plain_objective.with_losses(["angular"])


@pytest.mark.parametrize("balance", ["sum", "dgba", slow("worst")])
def test_targeted_attacks_bring_every_task_nearer_to_its_target(net, balance):
    x, targets, masks = batch()
    masks = {name: np.ones_like(mask) for name, mask in masks.items()}
    objective = attacks.objective(net, targets, masks, balance=balance, targeted=True)
    images = attacks.PGD(0.2, 0.02, 8, random_start=False)(objective, x)
    clean_losses, losses = (
        tasks_lib.task_losses(NAMES, net(z), targets, masks) for z in (x, images)
    )
    for name in NAMES:
        assert np.mean(losses[name]) < np.mean(clean_losses[name])
    run_objective = objective.begin(x)
    np.testing.assert_array_less(run_objective(x)[1], run_objective(images)[1])


def test_targeted_is_minus_untargeted_where_no_weights_of_pixels_turn_round(net):
    x, targets, masks = batch()
    for losses in ((), ("margin", "l2"), ("js",), ("houdini",)):
        untargeted_result, targeted_result = (
            attacks.objective(net, targets, masks, losses=losses, targeted=t)(x)
            for t in (False, True)
        )
        for a, b in zip(untargeted_result, targeted_result, strict=True):
            np.testing.assert_allclose(a, -b, rtol=1e-6)


def test_one_class_is_attacked_alone(net):
    x, targets, masks = batch()
    targets["seg"] = np.where(masks["seg"] > 0, targets["seg"], 255)
    for classes in ((1,), (0, 2)):
        class_mask = np.isin(targets["seg"], classes).astype(np.float32)
        objective = attacks.objective(net, targets, masks, "seg,depth", classes=classes)
        masked_objective = attacks.objective(
            net, targets, {**masks, "seg": masks["seg"] * class_mask}, "seg,depth"
        )
        np.testing.assert_array_equal(objective(x)[0], masked_objective(x)[0])
    void_objective = attacks.objective(net, targets, masks, "seg", classes=(255,))
    assert not np.any(void_objective(x)[0])


@pytest.mark.parametrize("losses", ["masked_ce_balanced", "cospgd", "houdini_released"])
def test_garbage_under_masks_does_not_reach_any_gradient(net, losses):
    x, targets, masks = batch()
    clean_objective = attacks.objective(
        net, targets, masks, balance="dgba", losses=losses
    )
    for name, target in targets.items():
        target[masks[name] == 0] = 255 if name == "seg" else np.nan
    dirty_objective = attacks.objective(
        net, targets, masks, balance="dgba", losses=losses
    )
    gradients = [
        base.gradient(f, tf.constant(x), 0.5)
        for f in (clean_objective, dirty_objective)
    ]
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(gradients[0][0])


def test_random_pixels_and_blocks():
    mask = attacks_pixels.random_pixels(6, 5, 7, seed=3)
    assert (mask.shape, mask.dtype, mask.sum()) == ((6, 5), np.float32, 7)
    order = np.random.default_rng(3).permutation(30)
    np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(order[:7]))
    full_mask = attacks_pixels.random_pixels(6, 5, 30, seed=3)
    assert full_mask.all()
    block = attacks_pixels.block(4, 5, top=1, left=2, rows=2, columns=3)
    expected = [[0] * 5, [0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0] * 5]
    np.testing.assert_array_equal(block, expected)
    assert block.dtype == np.float32
    for count in (0, 31, 2.5):
        with pytest.raises(InputError, match=r"from 1 to 30, .* 6x5 output; got"):
            attacks_pixels.random_pixels(6, 5, count, seed=0)
    for corner in ((-1, 0, 2, 2), (3, 0, 2, 2), (0, 4, 1, 2), (0, 0, 0, 2)):
        with pytest.raises(InputError, match="must lie inside the 4x5 pixels; got"):
            attacks_pixels.block(4, 5, *corner)


def test_every_balance_takes_any_task():
    # One entry per task is all that a balance sees: no names, no shapes but [batch].
    losses = {name: tf.constant([1.0, 3.0]) for name in tasks_lib.TASKS}
    before = {name: tf.constant([2.0, 2.0]) for name in losses}
    loss, count = np.array([1.0, 3.0]), len(losses)
    total, growth, logs = count * loss, count * loss / 2, np.log(loss)
    expected = {  # What is climbed, and what points are judged by.
        "sum": (total, total),
        "mean": (loss, loss),
        "dgba": ([count, count], logs),
        "dgba_paper": (growth, growth),
        "wgd": (total, logs),  # All losses have grown alike.
        "wgd_released": (growth, logs),
        "normalized": (total, logs),
        "sign_sum": (total, logs),
        "worst": (loss / 2, np.log(loss / 2)),
    }
    assert set(expected) == set(attacks.BALANCES)
    for name, balance in attacks.BALANCES.items():
        climbed, score = expected[name]
        result = balance(losses, before, progress=0.5)
        np.testing.assert_allclose(result, climbed, rtol=1e-6, err_msg=name)
        result = balance.score(losses, before)
        np.testing.assert_allclose(result, score, rtol=1e-6, err_msg=name)
