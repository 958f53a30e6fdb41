# SPDX-License-Identifier: Apache-2.0
"""What is wrong with images, targets and masks is one sentence, in graphs too."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf.attacks import base
from mtr_tf.attacks import threat
from mtr_tf.attacks.balance import BALANCES
from mtr_tf.errors import InputError
from mtr_tf.errors import input_error_within
from mtr_tf.tasks import Task

CLASSES = 3
ATTACK = attacks.PGD(8 / 255, 2 / 255, 2)


@pytest.fixture(scope="module")
def model():
    """Images of any size -> classes and depth."""
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    heads = {
        "seg": keras.layers.Conv2D(CLASSES, 3, padding="same")(image),
        "depth": keras.layers.Conv2D(1, 3, padding="same")(image),
    }
    return keras.Model(image, heads)


def a_batch():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(2, 4, 6, 3)).astype(np.float32)
    targets = {
        "seg": rng.integers(0, CLASSES, (2, 4, 6)).astype(np.int32),
        "depth": rng.uniform(size=(2, 4, 6, 1)).astype(np.float32),
    }
    return x, targets, {name: np.ones((2, 4, 6), np.float32) for name in targets}


def above(x, targets, masks):
    x[0, 0, 0, 0] = 2.5
    return r"Images must be in \[0, 1\]; got values from \S+ to 2.5; put the normalis"


def missing(x, targets, masks):
    x[1, 2, 3] = np.nan
    return r"Images must be in \[0, 1\]; got 3 values that are NaN; replace them"


def label(x, targets, masks):
    targets["seg"][1, 1, 1] = CLASSES
    return r"Labels of 'seg' must be below its number of classes, 3, .* got 3; mask"


def negative(x, targets, masks):
    targets["seg"][1, 1, 1] = -1
    return r"Labels of 'seg' .* not negative, where the mask is not zero; got -1; mask"


def eager(model, x, targets, masks, **settings):
    return ATTACK(attacks.objective(model, targets, masks, **settings), x)


def anew(model, x, targets, masks, **settings):
    """Eagerly on a model that is no Keras model: compiled in each call."""
    objective = attacks.objective(lambda z: model(z), targets, masks, **settings)
    return ATTACK(objective, x)


@functools.cache
def graph_of(model, settings):
    """A function whose graphs are kept, one for each signature."""
    return tf.function(
        lambda x, targets, masks: eager(model, x, targets, masks, **dict(settings)),
        autograph=False,
    )


def in_graph(model, x, targets, masks, size=2, **settings):
    """In a graph that knows all shapes, within `base.input_errors`."""

    def spec(tensor):
        return tf.TensorSpec([size, *tensor.shape[1:]], tensor.dtype)

    batch = tf.nest.map_structure(tf.constant, (x, targets, masks))
    signature = tf.nest.map_structure(spec, batch)
    run = graph_of(model, tuple(settings.items()))
    with base.input_errors():
        return run.get_concrete_function(*signature)(*batch)


def of_any_size(*args, **settings):
    return in_graph(*args, size=None, **settings)


CALLERS = [eager, anew, in_graph, of_any_size]


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("mistake", [above, missing, label, negative])
def test_values_are_checked_alike(model, caller, mistake):
    batch = a_batch()
    message = mistake(*batch)
    with pytest.raises(InputError, match=message) as raised:
        caller(model, *batch)
    assert "]" not in str(raised.value).replace("[0, 1]", "")
    assert "\n" not in str(raised.value)


def test_an_objective_that_is_called_by_hand_says_it_in_the_same_words(model):
    x, *arguments = batch = a_batch()
    label(*batch)
    with pytest.raises(InputError) as raised:
        attacks.objective(model, *arguments)(x)
    assert str(raised.value) == (
        "Labels of 'seg' must be below its number of classes, 3, and not negative, "
        "where the mask is not zero; got 3; mask such places (for AdversarialModel: by "
        "ignore_class of the loss, or by any class with a sample weight of 0)."
    )


@pytest.mark.slow
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("balance", ["sum", "wgd"])
def test_what_is_right_passes_and_masked_labels_may_be_anything(model, caller, balance):
    x, targets, masks = a_batch()
    targets["seg"][0, 0, 0], targets["seg"][0, 0, 1] = 255, -1
    masks["seg"][0, 0, :2] = 0
    images = caller(model, x, targets, masks, balance=balance)
    assert np.all(np.isfinite(images))


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, t, m: m.update(seg=m["seg"][:, :, :5]),
            r"mask of 'seg' must have one number per place of its target, shape "
            r"\(\S+, 4, 6\), but its shape is \(\S+, 4, 5\); reshape",
        ),
        (
            lambda x, t, m: t.update(depth=t["depth"][..., 0]),
            r"target of 'depth' must be \[batch, H, W, channels\], but its shape",
        ),
        (
            lambda x, t, m: (
                t.update(depth=t["depth"][:, :3]),
                m.update(depth=m["depth"][:, :3]),
            ),
            r"output of 'depth' must be its target's shape, here \(\S+, 3, 6, 1\), but",
        ),
        (
            lambda x, t, m: (
                t.update(seg=t["seg"][:, :3]),
                m.update(seg=m["seg"][:, :3]),
            ),
            r"output of 'seg' must be \[batch, H, W, classes\], here \(\S+, 3, 6, ",
        ),
    ],
)
def test_shapes_are_checked_alike(model, caller, change, message):
    x, targets, masks = a_batch()
    change(x, targets, masks)
    with pytest.raises(InputError, match=message):
        caller(model, x, targets, masks)


def test_sizes_that_only_show_when_the_graph_runs(model):
    x, targets, masks = a_batch()
    targets = {name: target[:1] for name, target in targets.items()}
    masks = {name: mask[:1] for name, mask in masks.items()}
    message = (
        "must have the same size; got outputs of 2 x 4 x 6; got targets of 1 x 4 x 6"
    )
    with pytest.raises(InputError, match=message):
        of_any_size(model, x, targets, masks)
    with pytest.raises(InputError, match="output of '(seg|depth)' must be"):
        eager(model, x, targets, masks)


def test_another_caller_finds_the_sentence_in_tensorflows_error(model):
    batch = a_batch()
    above(*batch)
    run = tf.function(lambda x: eager(model, x, *batch[1:]), autograph=False)
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        run(tf.constant(batch[0]))
    assert input_error_within(raised.value).startswith("Images must be in [0, 1]; got")


def test_under_xla_values_are_not_checked(model):
    """Out of reach of the value that is too large, results are those without it."""
    x, *arguments = batch = a_batch()
    objective = attacks.objective(model, *arguments)
    attack = attacks.FGSM(8 / 255)
    expected = attack(objective, x).numpy()
    assert np.all(expected != x)
    above(*batch)
    run = tf.function(lambda x: attack(objective, x), jit_compile=True, autograph=False)
    result = run(tf.constant(x)).numpy()
    assert np.all(np.isfinite(result))
    np.testing.assert_allclose(result[1], expected[1], atol=1e-6)
    # Two convolutions of 3x3, there and back, reach two columns.
    np.testing.assert_allclose(result[0, :, 3:], expected[0, :, 3:], atol=1e-6)


@pytest.mark.parametrize(
    "said",
    [
        "A deterministic GPU implementation of fused batch-norm backprop, when "
        "training is disabled, is not currently available",
        "Determinism is not yet supported in GPU implementation of DenseBincount",
    ],
)
def test_an_operation_without_a_deterministic_kernel_is_one_sentence(said):
    place = "{{function_node __wrapped__Op_device_/job:localhost/device:GPU:0}}"
    text = f"Graph execution error:\n\n{place} {said}.\n\t [[{{{{node a}}}}]] [Op:Op]"
    with pytest.raises(InputError) as raised, base.input_errors():
        raise tf.errors.UnimplementedError(None, None, text)
    assert str(raised.value) == (
        f"the model uses an operation that has no deterministic kernel ({said}); give "
        "--nodeterministic, or in Python leave out enable_op_determinism()."
    )


def test_other_errors_of_tensorflow_stay_as_they_are():
    with pytest.raises(tf.errors.UnimplementedError), base.input_errors():
        raise tf.errors.UnimplementedError(None, None, "Cast string to float")
    with pytest.raises(tf.errors.InvalidArgumentError), base.input_errors():
        tf.debugging.Assert(False, ["something else"])


@pytest.mark.parametrize("scale", [np.nan, 0.0])
def test_images_that_come_back_as_they_were_are_counted(scale, caplog):
    """A model that answers NaN, or has no gradient, only looks robust."""
    x = tf.fill((2, 2, 2, 3), 0.5)
    attack = attacks.PGD(8 / 255, 2 / 255, 2)
    result = attack(attacks.simple(lambda x: scale * tf.reduce_sum(x, (1, 2, 3))), x)
    np.testing.assert_array_equal(result, x)
    assert "2 of 2 images are unchanged" in caplog.text
    caplog.clear()
    attack(attacks.simple(lambda x: tf.reduce_sum(x, (1, 2, 3))), x)
    assert "are unchanged" not in caplog.text


NORMALS = Task(
    "pointing", kind="numbers", channels=3, loss=keras.losses.CosineSimilarity()
)
NEGATIVE = "divides losses by losses, but that of 'pointing' is negative, -.*choose sum"


def pointing():
    """A model, and its batch: a loss of about -1, and one that is never negative."""
    x, targets, masks = a_batch()
    task_targets = {"pointing": 2 * x - 1 + 0.1, "depth": targets["depth"]}
    masks = {"pointing": masks["depth"], "depth": masks["depth"]}
    tasks = (NORMALS, "depth")

    def model(z):
        return {"pointing": 2 * z - 1, "depth": z[..., :1]}

    return model, x, task_targets, masks, tasks


RELATIVE = [name for name, record in BALANCES.items() if record.relative]


@pytest.mark.parametrize(
    ("caller", "balance"),
    [*((eager, balance) for balance in RELATIVE), (in_graph, "dgba")],
)
def test_a_negative_loss_cannot_divide(caller, balance):
    *batch, tasks = pointing()
    with pytest.raises(InputError, match=NEGATIVE) as raised:
        caller(*batch, tasks=tasks, balance=balance)
    assert "\n" not in str(raised.value)


def test_a_negative_loss_is_seen_before_xla_which_drops_what_graphs_check():
    model, x, targets, masks, tasks = pointing()
    objective = attacks.objective(model, targets, masks, tasks, "dgba")
    with pytest.raises(InputError, match=NEGATIVE):
        ATTACK(objective, x, jit="on")


@pytest.mark.parametrize("targeted", [False, True])
def test_a_loss_that_xla_would_let_divide_is_seen_in_all_images(targeted):
    """In clean images and, if an attack lowers the loss, in the images it returns."""
    x = np.full((3, 8, 8, 3), 0.5, np.float32)
    x[2] = 0.1 if not targeted else 0.5

    def outputs(z):
        return {name: z[..., :1] for name in ("mine", "depth")}

    def loss(target, output, mask):
        del target, mask
        return tf.reduce_mean(output, (1, 2, 3)) - (0.45 if targeted else 0.3)

    layer = keras.layers.Lambda(outputs)
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layer(image))
    task = Task("mine", kind="numbers", channels=1, loss=loss)
    targets = {name: np.ones((3, 8, 8, 1), np.float32) for name in ("mine", "depth")}
    masks = {name: np.ones((3, 8, 8), np.float32) for name in targets}
    objective = attacks.objective(
        model, targets, masks, (task, "depth"), "dgba", targeted=targeted
    )
    attack = attacks.PGD(0.2, 0.1, 3, random_start=False)
    for jit in ("off", "on"):
        with pytest.raises(InputError, match="that of 'mine' is negative, -"):
            attack(objective, x, jit=jit)


def test_a_loss_below_0_by_rounding_alone_is_none():
    """Such a loss, like 1 - cos, counts as 0."""
    task = Task("mine", kind="numbers", channels=1, loss=lambda t, o, m: o[:, 0, 0, 0])
    x, targets, masks = a_batch()
    targets, masks = {"mine": targets["depth"]}, {"mine": masks["depth"]}
    for low, message in ((-5e-5, ""), (-2e-4, "is negative, -0.0002; choose")):
        objective = attacks.objective(
            lambda z, low=low: {"mine": 0 * z[..., :1] + low},
            targets,
            masks,
            (task,),
            "dgba",
        )
        if message:
            with pytest.raises(InputError, match=message):
                objective(x)
        else:
            assert np.all(np.isfinite(objective(x)[0]))


@pytest.mark.parametrize("balance", ["dgba", "worst"])
def test_a_negative_loss_that_nothing_divides_by_is_none_of_its_business(balance):
    """The ensemble's runs raise losses of their own, and compare harm."""
    x, targets, masks = a_batch()
    task = Task(
        "cls",
        kind="classes",
        channels=3,
        loss=lambda t, o, m: -tf.reduce_mean(tf.nn.softmax(o)[..., 0], (1, 2)),
    )
    task_targets = {name: targets["seg"] for name in ("cls", "seg")}
    masks = {name: masks["seg"] for name in task_targets}
    objective = attacks.objective(
        lambda z: dict.fromkeys(task_targets, 9 * z),
        task_targets,
        masks,
        (task, "seg"),
        balance,
    )
    worst = attacks.Worst(((attacks.FGSM(0.1), ("masked_ce",)),))
    worst(objective, x, jit="off")
    # What a call does, but eagerly, because compiling takes long.
    sea, x = attacks.SEA(8 / 255, 3), tf.constant(x)
    checked_objective = objective.checked(x, sea.raises_own_losses)
    sea.search(checked_objective, x, threat.image_keys(0, tf.range(2)))
    with pytest.raises(InputError, match="that of 'cls' is negative"):
        attacks.Worst((attacks.FGSM(0.1),))(objective, x, jit="off")


@pytest.mark.parametrize("balance", sorted(set(BALANCES) - set(RELATIVE)))
def test_the_balances_to_choose_instead_raise_a_negative_loss(balance):
    model, x, targets, masks, tasks = pointing()
    objective = attacks.objective(model, targets, masks, tasks, balance)
    result = attacks.PGD(0.1, 0.025, 5, random_start=False)(objective, x, jit="off")

    def loss(images):
        return NORMALS.loss(
            targets["pointing"], model(images)["pointing"], masks["pointing"]
        )

    assert np.all(loss(result) > loss(x) + 0.01)
    assert np.all(objective(result)[1] > objective(x)[1])
