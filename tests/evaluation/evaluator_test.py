# SPDX-License-Identifier: Apache-2.0
"""The evaluator against a NumPy brute force, and against itself in other batches."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import workers_fixture
from tiers_fixture import slow

from mtr_tf import attacks
from mtr_tf.cli import stopping
from mtr_tf.data.source import Columns
from mtr_tf.errors import InputError
from mtr_tf.evaluation import evaluator as evaluator_lib
from mtr_tf.evaluation.evaluator import Evaluator
from mtr_tf.runs.workers import Workers
from mtr_tf.tasks import Task

CLASSES = 3
TASKS = ("seg", "depth")
PGD = attacks.PGD(epsilon=8 / 255, step_size=4 / 255, steps=2)


def make_columns(n: int = 7, size: int = 8) -> Columns:
    rng = np.random.default_rng(0)
    masks = rng.random((2, n, size, size)) > 0.2
    masks[0, 2] = False  # An image without any label.
    labels = rng.integers(0, CLASSES, (n, size, size)).astype(np.uint8)
    return Columns(
        images=rng.integers(0, 256, (n, size, size, 3)).astype(np.uint8),
        targets={
            "seg": np.where(masks[0], labels, 255).astype(np.uint8),
            "depth": rng.random((n, size, size, 1), np.float32) + 0.5,
        },
        masks={"seg": masks[0], "depth": masks[1]},
    )


def make_model() -> keras.Model:
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(6, 3, padding="same", activation="relu")(image)
    x = keras.layers.BatchNormalization(momentum=0.0)(x)  # Would show training=True.
    outputs = {
        "seg": keras.layers.Conv2D(CLASSES, 1, name="seg")(x),
        "depth": keras.layers.Conv2D(1, 1, name="depth")(x),
    }
    return keras.Model(image, outputs)


@pytest.fixture(scope="module")
def reference() -> evaluator_lib.Evaluation:
    evaluator = Evaluator(make_model(), TASKS, CLASSES, attack=PGD, seed=3)
    return evaluator.run(make_columns(), batch_size=8, keep_examples=7)


def brute_force(outputs: dict, columns: Columns) -> dict:
    """Metrics pixel by pixel, in plain loops that follow the definitions."""
    logits = outputs["seg"].astype(np.float64)
    valid, labels = columns.masks["seg"], columns.targets["seg"]
    predictions = logits.argmax(-1)
    ious = []
    for c in range(CLASSES):
        hit = ((predictions == c) & (labels == c) & valid).sum()
        union = (((predictions == c) | (labels == c)) & valid).sum()
        if union:
            ious.append(hit / union)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = [
        np.mean([-log_p[i, y, x, labels[i, y, x]] for y, x in np.argwhere(valid[i])])
        for i in range(len(labels))
        if valid[i].any()
    ]
    error = np.abs(outputs["depth"] - columns.targets["depth"])[..., 0]
    valid_depth = columns.masks["depth"]
    return {
        "seg": {
            "miou": np.mean(ious),
            "pixel_accuracy": (predictions == labels)[valid].mean(),
            "loss": np.mean(losses),
        },
        "depth": {
            "mae": error[valid_depth].mean(),
            "rmse": np.sqrt((error[valid_depth] ** 2).mean()),
            "rel": (error / columns.targets["depth"][..., 0])[valid_depth].mean(),
            "loss": np.mean(
                [e[t].mean() for e, t in zip(error, valid_depth, strict=True)]
            ),
        },
    }


def assert_close(result: dict, expected: dict, tolerance: float = 1e-5) -> None:
    assert result.keys() == expected.keys()
    for task in expected:
        assert result[task] == pytest.approx(expected[task], rel=tolerance)


def test_clean_and_attacked_values_are_the_brute_force_ones(reference):
    columns, examples = make_columns(), reference.examples
    model = make_model()
    clean = model.predict(columns.images / np.float32(255), verbose=0)
    attacked = model.predict(examples.adversarial, verbose=0)
    assert_close(evaluator_lib.values(reference.clean), brute_force(clean, columns))
    assert_close(
        evaluator_lib.values(reference.attacked), brute_force(attacked, columns)
    )


def test_outputs_in_half_precision_are_scored_and_kept_in_float32(reference):
    model = make_model()
    outputs = {task: keras.ops.cast(y, "bfloat16") for task, y in model.output.items()}
    model = keras.Model(model.inputs[0], outputs)
    evaluator = Evaluator(model, TASKS, CLASSES, attack=attacks.FGSM(8 / 255))
    result = evaluator.run(make_columns(), batch_size=8, keep_examples=7)
    clean, attacked = map(evaluator_lib.values, (result.clean, result.attacked))
    assert_close(clean, evaluator_lib.values(reference.clean), 0.02)
    for task in TASKS:
        assert result.examples.attacked[task].dtype == np.float32
        assert attacked[task]["loss"] > clean[task]["loss"]


@pytest.mark.parametrize("example", [0, 6])
def test_labels_that_are_no_class_are_refused(example):
    """The first example is read before the pipeline exists, the last one inside it."""
    columns = make_columns()
    columns.targets["seg"][example][columns.masks["seg"][example]] = CLASSES
    message = f"from 0 to 2 .* example {example} has 3; mask it"
    with pytest.raises(InputError, match=message):
        Evaluator(make_model(), TASKS, CLASSES).run(columns, batch_size=4)


@pytest.mark.parametrize("jit", [False, True])
def test_a_negative_loss_that_divides_is_refused_compiled_or_not(jit):
    """XLA drops the checks of graphs, so the first images are checked beforehand."""
    depth = Task(
        "depth", kind="numbers", channels=1, loss=lambda t, o, m: o[:, 0, 0, 0] * 0 - 1
    )
    evaluator = Evaluator(
        make_model(),
        ("seg", depth),
        CLASSES,
        attack=PGD,
        objective={"balance": "dgba"},
        jit=jit,
    )
    with pytest.raises(InputError, match="that of 'depth' is negative, -1; choose sum"):
        evaluator.run(make_columns(), batch_size=4)


@pytest.mark.parametrize("jit", [slow(False), True])
def test_a_negative_loss_of_a_later_image_is_refused_compiled_or_not(jit):
    """Under XLA it counted as 1e-12, and its task outweighed all others."""

    def loss(target, output, mask):
        del mask
        negative = tf.reduce_max(target, (1, 2, 3)) > 4
        return output[:, 0, 0, 0] * 0 + tf.where(negative, -1.0, 1.0)

    columns = make_columns()
    columns.targets["depth"][5] = 5
    evaluator = Evaluator(
        make_model(),
        ("seg", Task("depth", kind="numbers", channels=1, loss=loss)),
        CLASSES,
        attack=PGD,
        objective={"balance": "dgba"},
        jit=jit,
    )
    with pytest.raises(InputError, match="that of 'depth' is negative, -1; choose sum"):
        evaluator.run(columns, batch_size=4)


def test_a_signal_ends_it_after_a_batch_unless_the_caller_stops():
    class StoppedWorkers(Workers):
        def stop_if_asked(self):
            raise stopping.Stopped

    workers, columns = StoppedWorkers(tf.distribute.get_strategy()), make_columns()
    evaluator = Evaluator(make_model(), TASKS, CLASSES, workers)
    with pytest.raises(stopping.Stopped):
        evaluator.run(columns, batch_size=4)
    evaluator = Evaluator(make_model(), TASKS, CLASSES, workers, stops=False)
    assert len(evaluator.run(columns, batch_size=4).index) == 7


def test_every_image_is_counted_once_in_order(reference):
    columns = make_columns()
    np.testing.assert_array_equal(reference.index, np.arange(7))
    pixels = reference.clean["seg"]["pixel_accuracy"][:, 1]
    np.testing.assert_array_equal(pixels, columns.masks["seg"].sum(axis=(1, 2)))
    np.testing.assert_allclose(reference.examples.image, columns.images / 255, 1e-6)
    np.testing.assert_array_equal(
        reference.examples.targets["depth"], columns.targets["depth"]
    )


def test_the_attack_stays_in_its_ball_and_raises_the_losses(reference):
    change = reference.examples.adversarial - reference.examples.image
    assert 0.9 * 8 / 255 < np.abs(change).max() <= 8 / 255 + 1e-6
    clean, attacked = map(evaluator_lib.values, (reference.clean, reference.attacked))
    assert attacked["seg"]["loss"] > clean["seg"]["loss"]
    assert attacked["depth"]["loss"] > clean["depth"]["loss"]


@pytest.mark.parametrize(
    ("batch_size", "replicas"), [slow(1, 1), (3, 1), slow(2, 2), slow(8, 2)]
)
def test_batches_and_replicas_change_nothing(reference, mirrored, batch_size, replicas):
    strategy = mirrored if replicas == 2 else tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        model = make_model()
    evaluator = Evaluator(model, TASKS, CLASSES, Workers(strategy), attack=PGD, seed=3)
    counts = []
    result = evaluator.run(
        make_columns(), batch_size=batch_size, on_batch=counts.append, keep_examples=3
    )
    assert sum(counts) == 7
    np.testing.assert_array_equal(result.index, reference.index)
    for kind in ("clean", "attacked"):
        rows, expected = getattr(result, kind), getattr(reference, kind)
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            rows,
            expected,
        )
    np.testing.assert_allclose(
        result.examples.adversarial, reference.examples.adversarial[:3], atol=1e-6
    )
    for task in TASKS:
        np.testing.assert_allclose(
            result.examples.attacked[task],
            reference.examples.attacked[task][:3],
            atol=1e-5,
        )


@pytest.mark.parametrize("keep", [slow(1), 3, slow(6)])
def test_workers_send_no_more_pictures_than_are_kept(reference, keep):
    model, rows = make_model(), []

    def work(workers):
        def join(arrays):
            all_arrays = original(arrays)
            if "adversarial" in arrays[-1]:
                rows.append(len(all_arrays[0]["index"]))
            return all_arrays

        original, workers.joined = workers.joined, join
        evaluator = Evaluator(model, TASKS, CLASSES, workers, attack=PGD, seed=3)
        return evaluator.run(make_columns(), batch_size=4, keep_examples=keep)

    for result in workers_fixture.run(work):
        np.testing.assert_array_equal(result.index, reference.index)
        assert result.examples.image.shape[0] == keep
        np.testing.assert_array_equal(
            result.examples.image, reference.examples.image[:keep]
        )
        np.testing.assert_allclose(
            result.examples.adversarial,
            reference.examples.adversarial[:keep],
            atol=1e-6,
        )
    # Both workers send equally many; one has 0, 1, 4, 5, the other has 2, 3, 6.
    assert sum(rows) == 2 * {1: 2, 3: 4, 6: 8}[keep]


def test_a_new_seed_gives_new_starts_and_the_subset_is_a_prefix(reference):
    model = make_model()
    evaluator = Evaluator(model, TASKS, CLASSES, attack=PGD, seed=4)
    result = evaluator.run(
        make_columns(), batch_size=2, num_examples=3, keep_examples=9
    )
    assert result.index.tolist() == [0, 1, 2]
    for name, rows in result.clean["depth"].items():
        np.testing.assert_allclose(
            rows, reference.clean["depth"][name][:3], rtol=1e-5, atol=1e-6
        )
    difference = result.examples.adversarial - reference.examples.adversarial[:3]
    assert np.abs(difference).max() > 1 / 255


def test_later_calls_reuse_the_graph_and_see_new_weights():
    model = make_model()
    traces = []

    def attack(objective, x, seed):
        traces.append(1)
        return x

    evaluator = Evaluator(model, ("depth",), CLASSES, attack=attack)
    columns = make_columns()
    first = evaluator_lib.values(evaluator.run(columns, batch_size=4).clean)
    model.set_weights([w + 0.1 for w in model.get_weights()])
    second = evaluator_lib.values(evaluator.run(columns, batch_size=4).clean)
    assert len(traces) == 1, "compiled once"
    assert first["depth"]["mae"] != pytest.approx(second["depth"]["mae"], rel=1e-3)


def test_pixels_that_are_not_attacked_do_not_matter():
    tensors = {}

    def attack(objective, x, seed):
        with tf.GradientTape() as tape:
            tape.watch(x)
            ascend, _ = objective(x, 0.0)
        tensors["slope"] = tape.gradient(ascend, x)
        return x + 0.001 * tf.sign(tensors["slope"])

    pixels = np.zeros((8, 8), np.float32)
    pixels[2, 5] = 1
    evaluator = Evaluator(
        make_model(),
        ("depth",),
        CLASSES,
        attack=attack,
        objective={"pixels": pixels},
    )
    examples = evaluator.run(make_columns(), batch_size=7, keep_examples=7).examples
    moved = np.abs(examples.adversarial - examples.image).max(axis=(0, 3)) > 0
    expected = np.zeros((8, 8), bool)
    expected[1:4, 4:7] = True  # The pixel's 3x3 receptive field.
    np.testing.assert_array_equal(moved, expected)


def test_attacks_on_some_pixels_are_also_scored_on_these():
    columns = make_columns()
    corner = np.zeros((8, 8), np.float32)
    corner[:3, :2] = 1
    result = Evaluator(
        make_model(),
        TASKS,
        CLASSES,
        attack=PGD,
        objective={"tasks": ("depth",), "pixels": corner},
    ).run(columns, batch_size=4, keep_examples=7)
    assert list(result.aimed) == ["depth"]
    error = np.abs(result.examples.attacked["depth"] - columns.targets["depth"])[..., 0]
    valid = columns.masks["depth"] * corner
    expected = (error * valid).sum((1, 2)) / valid.sum((1, 2))
    np.testing.assert_allclose(result.aimed["depth"]["loss"][:, 0], expected, rtol=1e-5)


def test_without_clean_only_the_attacked_rows_come_back():
    evaluator = Evaluator(make_model(), TASKS, CLASSES, attack=PGD, clean=False)
    result = evaluator.run(make_columns(), batch_size=4, keep_examples=1)
    assert result.clean == {}
    assert result.examples.clean == {}
    assert set(result.attacked) == set(TASKS)


def test_a_batch_that_does_not_divide_is_refused(mirrored):
    evaluator = Evaluator(make_model(), TASKS, CLASSES, Workers(mirrored))
    with pytest.raises(InputError, match="3.*2"):
        evaluator.run(make_columns(), batch_size=3)
