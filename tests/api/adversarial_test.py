# SPDX-License-Identifier: Apache-2.0
"""Adversarial training of a user's own model: the step is that of `training.step`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiers_fixture import slow

import mtr_tf
from mtr_tf import attacks
from mtr_tf import tasks as tasks_lib
from mtr_tf.tasks import losses as task_losses
from mtr_tf.training import step as step_lib
from mtr_tf.training.losses import Weighting

TASKS = ("seg", "depth")
LOSSES = {
    "seg": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "depth": keras.losses.MeanAbsoluteError(),
}


def make_model():
    keras.utils.set_random_seed(1)
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("relu")(x)
    heads = {
        "seg": keras.layers.Conv2D(3, 1)(x),
        "depth": keras.layers.Conv2D(1, 1)(x),
    }
    return keras.Model(image, heads)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    targets = {
        "seg": rng.integers(0, 3, (4, 16, 16)).astype(np.int32),
        "depth": rng.uniform(1, 3, (4, 16, 16, 1)).astype(np.float32),
    }
    return rng.uniform(0, 1, (4, 16, 16, 3)).astype(np.float32), targets


def one_step_of_ours(images, targets, share, batch_norm):
    """The weights after `replica_step`, with equal weights of the tasks."""
    model = make_model()
    tasks = tasks_lib.task_set(TASKS)
    adversary = step_lib.Adversary(
        attacks.PGD(4 / 255, 1 / 255, 3, keep="last"), tasks, share, batch_norm, 7
    )
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    learner = step_lib.Learner(
        model,
        optimizer,
        {"seg": task_losses.cross_entropy, "depth": task_losses.l1},
        Weighting({"seg": 1.0, "depth": 1.0}),
        0.0,
        len(images),
        adversary,
    )
    batch = {
        "image": tf.constant(images),
        "targets": tf.nest.map_structure(tf.constant, targets),
        "masks": {task: tf.ones((4, 16, 16)) for task in TASKS},
        "position": tf.range(4, dtype=tf.int64),
        "step": tf.constant(0, tf.int64),
    }
    step_lib.replica_step(learner, batch)
    return model.get_weights()


@pytest.mark.parametrize(
    ("share", "batch_norm"),
    [slow(1.0, "inference"), (0.5, "inference"), slow(1.0, "training")],
)
def test_a_step_is_that_of_training(batch, share, batch_norm):
    images, targets = batch
    model = make_model()
    adversarial = mtr_tf.AdversarialModel(
        model, TASKS, eps=4, steps=3, share=share, batch_norm=batch_norm, seed=7
    )
    adversarial.compile(keras.optimizers.SGD(0.1), loss=LOSSES)
    start = [weight.copy() for weight in model.get_weights()]
    adversarial.fit(images, targets, batch_size=4, shuffle=False, verbose=0)
    expected_weights = one_step_of_ours(images, targets, share, batch_norm)
    assert any((a != b).any() for a, b in zip(start, expected_weights, strict=True))
    for weight, expected in zip(model.get_weights(), expected_weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)


def test_each_replica_has_its_own_clean_images(batch, mirrored):
    """Also where synchronized batch norms let replicas take turns within a step."""
    images, targets = batch
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            keras.utils.set_random_seed(1)
            image = keras.Input((16, 16, 3))
            x = keras.layers.Conv2D(4, 1)(image)
            x = keras.layers.BatchNormalization(synchronized=True)(x)
            model = keras.Model(image, {"seg": keras.layers.Conv2D(3, 1)(x)})
            attack = attacks.FGSM(epsilon=0.1)
            adversarial = mtr_tf.AdversarialModel(model, attack=attack, share=0.3)
            adversarial.compile(keras.optimizers.SGD(0.5), loss=LOSSES["seg"])
        seg_targets = {"seg": targets["seg"]}
        adversarial.fit(images, seg_targets, batch_size=4, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for single, double in zip(*weights, strict=True):
        np.testing.assert_allclose(single, double, atol=1e-5)


def test_replicas_cannot_share_statistics_during_an_attack(mirrored):
    with mirrored.scope():
        norm = keras.layers.BatchNormalization(synchronized=True)
        model = keras.Sequential([keras.Input((4, 4, 3)), norm])
        with pytest.raises(mtr_tf.InputError, match='must be "inference" for synchr'):
            mtr_tf.AdversarialModel(model, "normal", batch_norm="training")


def test_images_of_another_range_are_attacked_by_as_many_levels(batch):
    images, targets = batch
    model = make_model()
    image = keras.Input((16, 16, 3))
    scaled = keras.Model(image, model(keras.layers.Rescaling(1 / 255)(image)))
    settings = {"eps": 4, "steps": 2, "seed": 3}
    unit = mtr_tf.AdversarialModel(model, TASKS, **settings)
    wide = mtr_tf.AdversarialModel(scaled, TASKS, input_range=(0, 255), **settings)
    for adversarial in (unit, wide):
        adversarial.compile("sgd", loss=LOSSES)
    result = unit.attacked(tf.constant(images), targets)
    wide_result = wide.attacked(tf.constant(images * 255), targets)
    change = np.abs(result - images)
    assert change.max() <= 4 / 255 + 1e-6
    assert np.median(change) > 1 / 255
    np.testing.assert_allclose(result * 255, wide_result, atol=0.6)
    assert np.mean(np.abs(result * 255 - wide_result) > 1e-3) < 0.01


def test_whole_numbers_are_moved_by_whole_levels(batch):
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, keras.layers.Conv2D(3, 1)(image / 255))
    adversarial = mtr_tf.AdversarialModel(
        model, "seg", attack=attacks.FGSM(epsilon=4 / 255), input_range=(0, 255)
    )
    adversarial.compile("sgd", loss=LOSSES["seg"])
    levels = np.random.default_rng(0).integers(4, 252, (4, 16, 16, 3), np.uint8)
    result = adversarial.attacked(tf.constant(levels), batch[1]["seg"])
    assert result.dtype == tf.uint8
    change = np.asarray(result, int) - levels
    assert set(np.unique(change)) == {-4, 4}
    unit = mtr_tf.AdversarialModel(model, "seg", eps=4)  # Of images in [0, 1].
    unit.compile("sgd", loss=LOSSES["seg"])
    with pytest.raises(
        mtr_tf.InputError, match=r"\(uint8\) must have another input_range"
    ):
        unit.attacked(tf.constant(levels), batch[1]["seg"])


class Subclassed(keras.Model):
    """Outputs as a list, and no graph of layers."""

    def __init__(self):
        super().__init__()
        self.score = keras.layers.Dense(1)

    def call(self, x, training=False):
        return [self.score(keras.ops.mean(x, (1, 2)))]


def as_a_graph():
    image = keras.Input((2, 2, 3))
    return keras.Model(image, Subclassed().call(image))


@pytest.mark.parametrize(
    ("make", "places", "shape"),
    [
        (Subclassed, 0, (1, 1)),
        (Subclassed, None, (1, 1)),
        (as_a_graph, None, (1, 1)),
        (as_a_graph, None, (1,)),
    ],
)
def test_one_step_on_a_linear_head_is_the_closed_form(make, places, shape):
    """One FGSM step on |w.m - t|, then SGD on (w.m' - t)^2, by hand."""
    task = tasks_lib.Task("price", kind="numbers", channels=1, places=places)
    model = make()
    images = np.full((1, 2, 2, 3), 0.5, np.float32)
    model(images)
    w = np.array([[1.0], [-2.0], [0.5]], np.float32)
    model.set_weights([w, np.zeros(1, np.float32)])
    adversarial = mtr_tf.AdversarialModel(
        model, [task], attack=attacks.FGSM(epsilon=0.1)
    )
    adversarial.compile(keras.optimizers.SGD(0.5), loss="mse")
    target = np.zeros(shape, np.float32)  # w.m = -0.25: the loss falls with w.m.
    adversarial.fit(images, [target], verbose=0)
    mean = 0.5 - 0.1 * np.sign(w[:, 0])
    output = float(w[:, 0] @ mean)
    expected = w[:, 0] - 0.5 * 2 * output * mean
    np.testing.assert_allclose(model.get_weights()[0][:, 0], expected, rtol=1e-5)


def test_one_logit_is_of_two_classes():
    """A step on the cross entropy of a linear logit, by hand."""
    image = keras.Input((1, 1, 3))
    layer = keras.layers.Conv2D(1, 1)
    model = keras.Model(image, layer(image))
    w = np.array([1.0, -2.0, 0.5], np.float32)
    layer.set_weights([w.reshape(1, 1, 3, 1), np.zeros(1, np.float32)])
    adversarial = mtr_tf.AdversarialModel(
        model, "seg", attack=attacks.FGSM(epsilon=0.1)
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    adversarial.compile(keras.optimizers.SGD(0.5), loss=loss)
    images = np.full((2, 1, 1, 3), 0.5, np.float32)
    labels = np.array([0, 1]).reshape(2, 1, 1, 1)
    result = adversarial.attacked(tf.constant(images), labels)
    step = 0.1 * np.sign(w)
    np.testing.assert_allclose(result[:, 0, 0], [0.5 + step, 0.5 - step], rtol=1e-6)
    adversarial.fit(images, labels, verbose=0)
    points = np.stack([0.5 + step, 0.5 - step])
    errors = 1 / (1 + np.exp(-points @ w)) - [0, 1]  # The loss's slope.
    kernel, bias = layer.get_weights()
    np.testing.assert_allclose(
        kernel[0, 0, :, 0], w - 0.5 * errors @ points / 2, rtol=1e-5
    )
    np.testing.assert_allclose(bias, [-0.5 * errors.mean()], rtol=1e-5)


def ends(activation, channels):
    """Ways to end in an activation, on features."""
    return {
        "of the layer": lambda x: keras.layers.Conv2D(
            channels, 1, activation=activation
        )(x),
        "layer": lambda x: keras.layers.Activation(activation)(
            keras.layers.Conv2D(channels, 1)(x)
        ),
        "nested": lambda x: keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                keras.layers.Conv2D(channels, 1, activation=activation),
            ]
        )(x),
    }


@pytest.mark.parametrize("end", ["of the layer", "layer", "nested"])
@pytest.mark.parametrize(
    ("of", "kind", "channels"),
    [
        slow("softmax", "classes", 3),
        ("sigmoid", "classes", 1),
        ("sigmoid", "labels", 3),
    ],
)
def test_models_of_probabilities_are_attacked_by_their_logits(of, kind, channels, end):
    """Also where outputs are so certain that probabilities have no gradient."""
    rng = np.random.default_rng(0)
    images = tf.constant(rng.uniform(0.2, 0.8, (2, 4, 4, 3)), tf.float32)
    if kind == "classes":
        targets = rng.integers(0, max(channels, 2), (2, 4, 4))
    else:
        targets = rng.integers(0, 2, (2, 4, 4, channels)).astype(np.float32)
    classes = max(channels, 2) if kind == "classes" else channels
    task = tasks_lib.Task("parts", kind=kind, channels=classes, places=2)
    image = keras.Input((4, 4, 3))
    kernel = rng.normal(size=(1, 1, 3, channels))

    def make(finish, from_logits):
        model = keras.Model(image, finish(image))
        adversarial = mtr_tf.AdversarialModel(
            model, [task], attack=attacks.FGSM(epsilon=0.1)
        )
        loss = (
            keras.losses.SparseCategoricalCrossentropy
            if of == "softmax"
            else keras.losses.BinaryCrossentropy
        )(from_logits=from_logits)
        adversarial.compile(keras.optimizers.SGD(0.5), loss=loss)
        return adversarial

    probability_model = make(ends(of, channels)[end], False)
    logit_model = make(keras.layers.Conv2D(channels, 1), True)
    for scale in (1, 300):
        for adversarial in (probability_model, logit_model):
            adversarial.inner.set_weights([scale * kernel, np.zeros(channels)])
        if (scale, of, end) == (1, "softmax", "of the layer"):  # Training agrees, too.
            for adversarial in (probability_model, logit_model):
                adversarial.fit(images, targets, verbose=0)
            for result, expected in zip(
                probability_model.inner.get_weights(),
                logit_model.inner.get_weights(),
                strict=True,
            ):
                np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            probability_model.attacked(images, targets),
            logit_model.attacked(images, targets),
            atol=1e-6,
        )
    assert len(probability_model.inner.variables) == 2


@keras.saving.register_keras_serializable("adversarial_test")
class OwnSigmoid(keras.layers.Layer):
    def call(self, x):
        return tf.sigmoid(x)


class OfProbabilities(keras.Model):
    """A model that ends in `finish`, without a graph of layers."""

    def __init__(self, finish):
        super().__init__(name="net")
        self.score, self.finish = keras.layers.Conv2D(2, 1), finish

    def call(self, x, training=False):
        return self.finish(self.score(x))


@pytest.mark.parametrize(
    "finish",
    [
        slow(tf.nn.softmax),
        tf.sigmoid,
        OwnSigmoid(),
        slow(keras.layers.Lambda(tf.nn.softmax)),
        keras.layers.Activation(lambda x: tf.nn.softmax(x)),
        tf.identity,
    ],
)
def test_what_may_be_probabilities_is_asked_about(finish, caplog):
    image = keras.Input((4, 4, 3))
    if isinstance(finish, keras.Layer):
        output = finish(keras.layers.Conv2D(2, 1)(image))
        model = keras.Model(image, output, name="net")
    else:
        model = OfProbabilities(finish)
    task = tasks_lib.Task("parts", kind="classes", channels=2, places=2)
    adversarial = mtr_tf.AdversarialModel(model, [task], steps=1)
    adversarial.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy())
    images = np.random.default_rng(0).uniform(size=(2, 4, 4, 3)).astype(np.float32)
    targets = np.zeros((2, 4, 4), np.int32)
    if finish is tf.nn.softmax:
        adversarial.fit(images, targets, verbose=0)
    else:
        adversarial.attacked(tf.constant(images), targets)
    messages = [
        r.message for r in caplog.records if "as probabilities are" in r.message
    ]
    assert len(messages) == (finish is not tf.identity)
    assert all("net's parts is in [0, 1]" in message for message in messages)


def test_names_that_outputs_and_targets_lack_are_said(batch):
    image = keras.Input((16, 16, 3))
    heads = {name: keras.layers.Conv2D(2, 1)(image) for name in ("segm", "depth")}
    with pytest.raises(mtr_tf.InputError, match="seg is missing; got segm, depth"):
        mtr_tf.AdversarialModel(keras.Model(image, heads), TASKS)
    adversarial = mtr_tf.AdversarialModel(make_model(), TASKS, steps=1)
    adversarial.compile("sgd", loss=LOSSES)
    targets = {"depth": batch[1]["depth"]}
    with pytest.raises(mtr_tf.InputError, match="targets .* seg is missing; got depth"):
        adversarial.attacked(tf.constant(batch[0]), targets)


def test_images_may_be_the_only_value_of_a_dict_or_a_list(batch):
    images, targets = tf.constant(batch[0]), batch[1]["seg"]
    image = keras.Input((16, 16, 3), name="image")
    layer = keras.layers.Conv2D(3, 1)
    results = []
    for pack in (lambda x: x, lambda x: {"image": x}, lambda x: [x]):
        model = keras.Model(pack(image), {"seg": layer(image)})
        adversarial = mtr_tf.AdversarialModel(model, steps=1)
        adversarial.compile(keras.optimizers.SGD(0.0), loss=LOSSES["seg"])
        result = adversarial.attacked(pack(images), targets)
        assert type(result) is type(pack(images))
        results += keras.tree.flatten(result)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    history = adversarial.fit([images], {"seg": targets}, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    with pytest.raises(mtr_tf.InputError, match="images alone.*got 2 in a list"):
        adversarial.attacked([images, images], targets)
    subclassed = mtr_tf.AdversarialModel(Subclassed(), "seg", steps=1)
    with pytest.raises(mtr_tf.InputError, match="got 1 in a dict. Give the images"):
        subclassed.attacked({"image": images}, targets)


class Same(keras.Model):
    """The images themselves."""

    def call(self, x):
        return {"depth": x}


def same():
    image = keras.Input((16, 16, 3))
    layer = keras.layers.Identity(dtype="float32")
    return keras.Model(image, {"depth": layer(image)})


@pytest.mark.parametrize("make", [same, lambda: Same(dtype="float32")])
def test_no_image_is_rounded_on_its_way_into_a_float32_model(batch, make):
    images = tf.constant(batch[0])
    task = tasks_lib.Task("depth", kind="numbers", channels=3, places=2)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        adversarial = mtr_tf.AdversarialModel(make(), [task], steps=1)
        np.testing.assert_array_equal(adversarial(images)["depth"], images)
        model, _ = adversarial._by_task(images.shape)
        np.testing.assert_array_equal(model(images)["depth"], images)
    finally:
        keras.config.set_dtype_policy("float32")
    assert adversarial.dtype_policy == adversarial.inner.dtype_policy


class Negative(keras.Model):
    """A functional model that does something else than its graph."""

    def call(self, x, training=False):
        return super().call(-x, training=training)


class OwnSequential(keras.Sequential):
    """A sequential model of another class."""


def test_models_are_attacked_by_what_they_do(batch):
    images, targets = tf.constant(batch[0]), batch[1]["seg"]
    image = keras.Input((16, 16, 3))
    layer = keras.layers.Conv2D(3, 1)
    layers = [keras.Input((16, 16, 3)), layer]

    def attacked(model):
        adversarial = mtr_tf.AdversarialModel(
            model, "seg", attack=attacks.FGSM(epsilon=0.1)
        )
        adversarial.compile("sgd", loss=LOSSES["seg"])
        return adversarial.attacked(images, targets).numpy()

    expected = attacked(keras.Model(image, layer(image)))
    sequential = (keras.Sequential(layers), keras.Sequential([layer]))
    for model in (*sequential, OwnSequential(layers)):
        np.testing.assert_array_equal(attacked(model), expected)
    mirrored = attacked(keras.Model(image, layer(-image)))
    negative = attacked(Negative(image, layer(image)))
    np.testing.assert_array_equal(negative, mirrored)
    assert (expected != mirrored).any()


def test_losses_of_a_list_keep_their_names():
    image = keras.Input((4, 4, 3))
    heads = [keras.layers.Conv2D(2, 1, name=name)(image) for name in ("one", "two")]
    model = keras.Model(image, heads)
    tasks = [
        tasks_lib.Task(name, kind="classes", channels=2) for name in ("one", "two")
    ]
    adversarial = mtr_tf.AdversarialModel(model, tasks, steps=1)
    images = np.random.default_rng(0).uniform(size=(2, 4, 4, 3)).astype(np.float32)
    adversarial.compile("sgd", loss=[LOSSES["seg"]] * 2)
    targets = [np.zeros((2, 4, 4), np.int32)] * 2
    history = adversarial.fit(images, targets, verbose=0).history
    assert set(history) == {"loss", "one_loss", "two_loss"}  # As without the attack.


def of_classes(*names, loss=LOSSES["seg"], pack=dict):
    """A compiled model with two heads of three classes; `names` orders its tasks."""
    keras.utils.set_random_seed(1)
    image = keras.Input((16, 16, 3))
    heads = {n: keras.layers.Conv2D(3, 3, name=n)(image) for n in ("zz", "aa")}
    tasks = [tasks_lib.Task(name, kind="classes", channels=3) for name in names]
    outputs = pack(heads) if pack is dict else [*heads.values()]
    adversarial = mtr_tf.AdversarialModel(keras.Model(image, outputs), tasks, steps=1)
    adversarial.compile("sgd", loss=loss)
    return adversarial


def targets_of_classes():
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 3, (4, 14, 14)) for name in ("aa", "zz")}


@pytest.mark.parametrize("form", [list, tuple])
def test_lists_for_outputs_in_a_dict_are_in_keras_order(batch, form):
    images, targets = tf.constant(batch[0]), targets_of_classes()
    model = of_classes("aa", "zz")
    result = model.attacked(images, form([targets["aa"], targets["zz"]]))
    np.testing.assert_array_equal(result, model.attacked(images, targets))
    reordered = of_classes("zz", "aa")
    message = (
        "A list of targets must .* outputs, aa, zz, but they are zz, aa; give a dict"
    )
    with pytest.raises(mtr_tf.InputError, match=message):
        reordered.attacked(images, form([targets["zz"], targets["aa"]]))


def test_a_dict_for_outputs_in_a_list_is_by_their_names(batch):
    images, targets = tf.constant(batch[0]), targets_of_classes()
    model = of_classes("aa", "zz", pack=list)  # The outputs are zz, aa.
    with pytest.raises(mtr_tf.InputError, match="A dict of targets .*, zz, aa, but"):
        model.attacked(images, targets)
    reordered = of_classes("zz", "aa", pack=list)
    result = reordered.attacked(images, targets)
    list_result = reordered.attacked(images, [targets["zz"], targets["aa"]])
    np.testing.assert_array_equal(result, list_result)


class SubclassedDict(keras.Model):
    """Two outputs in a dict, and no graph of layers."""

    def __init__(self):
        super().__init__()
        self.heads = {n: keras.layers.Conv2D(3, 3) for n in ("zz", "aa")}

    def call(self, x, training=False):
        return {name: head(x) for name, head in self.heads.items()}


def test_lists_for_a_subclassed_model_are_in_keras_order(batch):
    targets = targets_of_classes()
    tasks = [tasks_lib.Task(n, kind="classes", channels=3) for n in ("zz", "aa")]
    inner = SubclassedDict()
    inner(batch[0])
    model = mtr_tf.AdversarialModel(inner, tasks, steps=1)
    model.compile("sgd", loss=[LOSSES["seg"]] * 2)
    with pytest.raises(mtr_tf.InputError, match="A list of targets must"):
        model.fit(batch[0], [targets["zz"], targets["aa"]], verbose=0)


@pytest.mark.parametrize("order", [("zz", "aa"), ("aa", "zz")])
@pytest.mark.parametrize("pack", [dict, list])
def test_the_class_that_a_loss_ignores_is_that_of_keras(order, pack):
    plain_loss = LOSSES["seg"]
    skip_loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=0
    )
    # Sorted, or as given.
    losses = [skip_loss, plain_loss] if pack is dict else [plain_loss, skip_loss]
    for loss in ({"aa": skip_loss, "zz": plain_loss}, losses):
        model = of_classes(*order, loss=loss, pack=pack)
        # What the second output is called.
        skip_task = "aa" if pack is dict else order[1]
        assert [name for name in order if model._ignored_class(name) == 0] == [
            skip_task
        ]


@pytest.mark.slow
def test_losses_and_targets_in_a_list_are_in_keras_order(batch):
    """Compares the losses that Keras computes, and the attacked images."""
    images, targets = tf.constant(batch[0]), targets_of_classes()
    plain_loss = LOSSES["seg"]
    skip_loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=0
    )
    results, losses = [], []
    for loss in (
        {"aa": skip_loss, "zz": plain_loss},
        [skip_loss, plain_loss],
        [plain_loss, skip_loss],
    ):
        model = of_classes("aa", "zz", loss=loss)
        results.append(model.attacked(images, targets))
        for form in (targets, [targets["aa"], targets["zz"]]):
            losses.append(model.evaluate(images, form, verbose=0, return_dict=True))
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).numpy().any()
    assert losses[0] == losses[1] == losses[2] == losses[3]
    assert losses[4] == losses[5] != losses[0]


def test_soft_classes_are_refused_unless_they_do_not_count(batch):
    images, labels = batch[0], batch[1]["seg"]
    adversarial = mtr_tf.AdversarialModel(make_model(), "seg", steps=1)
    adversarial.compile("sgd", loss={"seg": LOSSES["seg"]})
    soft = np.where(labels == 1, 0.95, labels).astype(np.float32)
    message = (
        "Targets of seg must be class numbers.* got 0.95; give whole numb.* BinaryC"
    )
    with pytest.raises(mtr_tf.InputError, match=message):
        adversarial.attacked(tf.constant(images), {"seg": soft})
    weights = {"seg": tf.constant(labels != 1, tf.float32)}
    result = adversarial.attacked(tf.constant(images), {"seg": soft}, weights)
    expected = adversarial.attacked(tf.constant(images), {"seg": labels}, weights)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.slow
def test_soft_classes_are_refused_in_training_and_partly_known_places_are_not(batch):
    image = keras.Input((16, 16, 3))
    tasks = [
        tasks_lib.Task("kinds", kind="classes", channels=2),
        tasks_lib.Task("flow", kind="numbers", channels=2),
    ]
    heads = {task.name: keras.layers.Conv2D(2, 1)(image) for task in tasks}
    adversarial = mtr_tf.AdversarialModel(keras.Model(image, heads), tasks, steps=1)
    adversarial.compile("sgd", loss={"kinds": LOSSES["seg"], "flow": "mse"})
    kinds, flow = np.zeros((4, 16, 16)), np.zeros((4, 16, 16, 2))
    adversarial.fit(batch[0], {"kinds": kinds, "flow": flow}, verbose=0)
    with pytest.raises(mtr_tf.InputError, match="kinds must be class numbers.* 0.5;"):
        adversarial.fit(batch[0], {"kinds": kinds + 0.5, "flow": flow}, verbose=0)
    flow[0, 0, 0] = np.nan, 1
    adversarial.fit(batch[0], {"kinds": kinds, "flow": flow}, verbose=0)


@pytest.mark.parametrize("nothing", [np.nan, np.inf])
def test_places_without_a_finite_target_are_not_attacked(batch, nothing):
    images, depth = tf.constant(batch[0]), batch[1]["depth"]
    adversarial = mtr_tf.AdversarialModel(make_model(), "depth", steps=2)
    adversarial.compile("sgd", loss={"depth": LOSSES["depth"]})
    weight = np.ones((4, 16, 16), np.float32)
    weight[:, :, 4:] = 0
    partial_depth = np.where(weight[..., None] > 0, depth, np.float32(nothing))
    result = adversarial.attacked(images, {"depth": partial_depth})
    expected = adversarial.attacked(images, {"depth": depth}, {"depth": weight})
    np.testing.assert_array_equal(result, expected)
    unweighted = adversarial.attacked(images, {"depth": depth})
    assert (result != unweighted).numpy().any()


def test_places_that_lack_some_channels_are_not_attacked(batch):
    image = keras.Input((16, 16, 3))
    flow = tasks_lib.Task("flow", kind="numbers", channels=2)
    model = keras.Model(image, {"flow": keras.layers.Conv2D(2, 1)(image)})
    adversarial = mtr_tf.AdversarialModel(model, [flow], steps=1)
    adversarial.compile("sgd", loss={"flow": "mse"})
    images, target = tf.constant(batch[0]), np.zeros((4, 16, 16, 2), np.float32)
    weight = np.ones((4, 16, 16), np.float32)
    weight[:, :, 4:] = 0
    expected = adversarial.attacked(images, target, weight)
    assert (adversarial.attacked(images, target) != expected).numpy().any()
    target[:, :, 4:] = np.nan, 1
    np.testing.assert_array_equal(adversarial.attacked(images, target), expected)


def of_images(kind, loss):
    """A compiled model of three numbers per image, of one task."""
    keras.utils.set_random_seed(1)
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(3, 3, activation="gelu")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, {"what": keras.layers.Dense(3)(x)})
    task = tasks_lib.Task("what", kind=kind, channels=3)
    adversarial = mtr_tf.AdversarialModel(model, [task], steps=1)
    adversarial.compile("sgd", loss={"what": loss})
    return adversarial


@pytest.mark.parametrize("weight", [[0, 1, 1, 2], [[0], [1], [1], [2]]])
def test_images_of_weight_zero_are_not_attacked(batch, weight):
    adversarial = of_images("classes", LOSSES["seg"])
    images, weight = tf.constant(batch[0]), tf.constant(weight, tf.float32)
    labels = np.array([1, 0, 1, 2])
    expected = adversarial.attacked(images, labels, weight)
    for label in (0, -1, 3, 0.5, np.nan):  # Of the first image, which does not count.
        result = adversarial.attacked(images, np.array([label, 0, 1, 2]), weight)
        np.testing.assert_array_equal(result, expected)
    unweighted = adversarial.attacked(images, labels)
    np.testing.assert_array_equal(unweighted[1:], expected[1:])
    assert (unweighted[0] != expected[0]).numpy().any()
    with pytest.raises(mtr_tf.InputError, match="got 3; mask such places .*ignore_cla"):
        adversarial.attacked(images, np.array([3, 0, 1, 2]))


def skips_nan(y_true, y_pred):
    """The binary cross-entropy of logits where labels are known."""
    valid = tf.math.is_finite(y_true)
    loss = tf.nn.sigmoid_cross_entropy_with_logits(tf.where(valid, y_true, 0.0), y_pred)
    return tf.reduce_sum(tf.where(valid, loss, 0.0), -1)


def test_images_that_lack_a_label_train_and_are_not_attacked(batch):
    adversarial = of_images("labels", skips_nan)
    labels = np.array([[0, np.nan, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0]], np.float32)
    images = tf.constant(batch[0])
    result = adversarial.attacked(images, labels)
    weight = tf.constant([0.0, 1, 1, 1])
    expected = adversarial.attacked(images, np.nan_to_num(labels), weight)
    np.testing.assert_array_equal(result, expected)
    history = adversarial.fit(batch[0], labels, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_what_to_do_with_labels_that_are_no_class_is_said(batch):
    images, seg = tf.constant(batch[0]), batch[1]["seg"]
    adversarial = mtr_tf.AdversarialModel(make_model(), "seg", steps=1)
    adversarial.compile("sgd", loss={"seg": LOSSES["seg"]})
    with pytest.raises(mtr_tf.InputError, match=r"shape is \(4, 16, 16, 3\).* argmax"):
        adversarial.attacked(images, {"seg": np.eye(3, dtype=np.float32)[seg]})
    with pytest.raises(mtr_tf.InputError, match="got 255; .* by ignore_class of"):
        adversarial.attacked(images, {"seg": np.where(seg == 2, 255, seg)})


def test_a_model_that_casts_its_images_is_named(batch):
    image = keras.Input((16, 16, 3))
    cast = keras.ops.cast(keras.ops.cast(255 * image, "uint8"), "float32")
    model = keras.Model(image, {"seg": keras.layers.Conv2D(3, 1)(cast)})
    adversarial = mtr_tf.AdversarialModel(model, steps=1)
    adversarial.compile("sgd", loss=LOSSES["seg"])
    with pytest.raises(mtr_tf.InputError, match="if it is a model, .* cast to uint8"):
        adversarial.attacked(tf.constant(batch[0]), {"seg": batch[1]["seg"]})


def test_the_model_is_saved_as_itself(batch, tmp_path):
    images, _ = batch
    model = make_model()
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras")
    checkpoint.set_model(mtr_tf.AdversarialModel(model, steps=1))
    checkpoint.on_epoch_end(0, {})
    loaded = keras.saving.load_model(tmp_path / "best.keras")
    assert type(loaded) is type(model)
    np.testing.assert_array_equal(loaded(images)["seg"], model(images)["seg"])


def test_weights_of_zero_are_not_attacked(batch):
    images, targets = batch
    adversarial = mtr_tf.AdversarialModel(make_model(), "seg", steps=1, eps=8)
    adversarial.compile("sgd", loss=LOSSES)
    weight = np.zeros((4, 16, 16), np.float32)
    weight[:, :, :4] = 1
    result = adversarial.attacked(
        tf.constant(images), targets, {"seg": tf.constant(weight)}
    )
    array_result = adversarial.attacked(
        tf.constant(images), targets, tf.constant(weight)
    )
    np.testing.assert_array_equal(array_result, result)
    other_seg = np.where(weight > 0, targets["seg"], (targets["seg"] + 1) % 3)
    other_result = adversarial.attacked(
        tf.constant(images), targets | {"seg": other_seg}, tf.constant(weight)
    )
    np.testing.assert_array_equal(other_result, result)
    unweighted = adversarial.attacked(tf.constant(images), targets)
    assert not np.allclose(result[:, :, :4], images[:, :, :4])
    assert not np.allclose(unweighted[:, :, 8:], result[:, :, 8:])


def test_weights_of_images_weigh_no_task_more_than_others(batch):
    """Even where weights have axes of places, over which training broadcasts them."""
    images, targets = batch
    adversarial = mtr_tf.AdversarialModel(make_model(), TASKS, steps=1)
    adversarial.compile("sgd", loss=LOSSES)
    weights = {"seg": np.ones((4, 1, 1)), "depth": np.ones((4, 1))}
    result = adversarial.attacked(tf.constant(images), targets, weights)
    expected = adversarial.attacked(tf.constant(images), targets)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("form", ["dict", "list", "single"])
def test_classes_that_the_loss_ignores_are_not_attacked(batch, form):
    images, seg = tf.constant(batch[0]), batch[1]["seg"].copy()
    weight = np.zeros(seg.shape, np.float32)
    weight[:, :, :4] = 1
    image = keras.Input((16, 16, 3))
    output = keras.layers.Conv2D(3, 3, padding="same", name="seg")(image)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=9)
    forms = {"dict": {"seg": output}, "list": [output], "single": output}
    losses = {"dict": {"seg": loss}, "list": [loss], "single": loss}
    adversarial = mtr_tf.AdversarialModel(
        keras.Model(image, forms[form]), "seg", steps=1
    )
    adversarial.compile("sgd", loss=losses[form])
    expected = adversarial.attacked(images, seg, tf.constant(weight))
    result = adversarial.attacked(images, np.where(weight, seg, 9))
    np.testing.assert_array_equal(result, expected)
    assert (adversarial.attacked(images, seg) != expected).numpy().any()


@pytest.mark.slow
def test_the_optimizer_is_kept_with_the_weights(batch, tmp_path):
    """So that Keras's BackupAndRestore goes on where training has stopped."""
    images, targets = batch

    def make():
        model = mtr_tf.AdversarialModel(make_model(), "seg", steps=1)
        model.compile("adam", loss=LOSSES)
        return model

    first, file = make(), tmp_path / "all.weights.h5"
    assert first.built  # Or BackupAndRestore would refuse it.
    first.fit(images, targets, verbose=0)
    first.save_weights(file)
    first.inner.save_weights(old_file := tmp_path / "old.weights.h5")
    assert not hasattr(first.inner, "optimizer")
    second = make()
    second.optimizer.build(second.trainable_variables)
    second.load_weights(file)
    for result, expected in zip(
        second.optimizer.variables, first.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(result, expected)
    inner = make_model()
    inner.load_weights(file)  # A file without an optimizer, and a model without one:
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        second.load_weights(old_file)
    for model in (inner, second.inner):
        for result, expected in zip(
            model.get_weights(), first.inner.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(result, expected)


def test_images_of_another_range_are_refused_in_training_too(batch):
    adversarial = mtr_tf.AdversarialModel(make_model(), "seg", steps=1)
    adversarial.compile("sgd", loss=LOSSES)
    with pytest.raises(mtr_tf.InputError, match=r"input_range, \(0, 1\); got values"):
        adversarial.fit(255 * batch[0], batch[1], verbose=0)


def test_a_model_of_two_inputs_is_refused():
    inputs = [keras.Input((4, 4, 3), name=name) for name in ("image", "other")]
    model = keras.Model(inputs, keras.layers.Add()(inputs))
    with pytest.raises(mtr_tf.InputError, match="has 2: image, other; give"):
        mtr_tf.AdversarialModel(model, "image")


def test_a_weight_needs_a_target(batch):
    images, targets = batch
    adversarial = mtr_tf.AdversarialModel(make_model(), "seg", steps=1, eps=8)
    weights = {"seg": tf.ones((4, 16, 16)), "sag": tf.zeros((4, 16, 16))}
    with pytest.raises(mtr_tf.InputError, match="one is named 'sag'.*mean 'seg'"):
        adversarial.attacked(tf.constant(images), targets, weights)


def test_a_model_is_compiled_before_it_attacks(batch):
    adversarial = mtr_tf.AdversarialModel(make_model(), TASKS, steps=1)
    with pytest.raises(mtr_tf.InputError, match="must be compiled before it attacks"):
        adversarial.attacked(tf.constant(batch[0]), batch[1])


def test_sets_of_tasks_have_those_of_ones_own():
    image = keras.Input((4, 4, 3))
    flow = tasks_lib.Task("flow", kind="numbers", channels=2)
    model = keras.Model(image, keras.layers.Conv2D(2, 1)(image))
    adversarial = mtr_tf.AdversarialModel(model, tasks_lib.TaskSet([flow]))
    assert [*adversarial._tasks] == ["flow"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"share": 0}, "share must be above 0"),
        ({"batch_norm": "eval"}, "batch_norm must be inference or training"),
        ({"input_range": (255, 0)}, "the lower first"),
        ({"tasks": "segg"}, "Did you mean 'seg'"),
        ({"attack_tasks": "normal"}, "Unknown task 'normal'"),
    ],
)
def test_what_cannot_be_is_said(changes, says):
    with pytest.raises(mtr_tf.InputError, match=says):
        mtr_tf.AdversarialModel(make_model(), **{"tasks": TASKS, **changes})
