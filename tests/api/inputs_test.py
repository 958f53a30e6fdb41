# SPDX-License-Identifier: Apache-2.0
"""Models of several inputs: each image keeps its own other inputs, unchanged."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import mtr_tf
from mtr_tf import data
from mtr_tf.data import batching
from mtr_tf.data.custom import columns as columns_lib
from mtr_tf.data.custom import reading
from mtr_tf.data.custom.examples import Rules
from mtr_tf.data.layout import Layout
from mtr_tf.errors import InputError
from mtr_tf.runs import packing
from mtr_tf.tasks import TASKS

SIDE, COUNT = 8, 5
SETTINGS = {"eps": 8, "steps": 2, "step_size": 8, "random_start": False}
SETTINGS |= {"checks": False, "batch_size": 2}


def make_model(weights=1.0):
    """Depth per pixel: the image's mean times gain, plus second's sum, plus number."""
    image = keras.Input((SIDE, SIDE, 3), name="image")
    gain = keras.Input((2, 1), name="gain")
    second = keras.Input((SIDE, SIDE, 2), name="second")
    number = keras.Input((), dtype="int32", name="number")
    mean = keras.ops.mean(image, axis=-1, keepdims=True)
    factor = keras.ops.reshape(gain[:, 0], (-1, 1, 1, 1))
    depth = mean * factor * weights + keras.ops.sum(second, axis=-1, keepdims=True)
    depth += keras.ops.reshape(keras.ops.cast(number, "float32"), (-1, 1, 1, 1))
    inputs = [gain, image, number, second]
    return keras.Model(inputs, {"depth": depth})


def make_examples(count=COUNT):
    """Targets are far below the outputs, so an attack raises the whole image."""
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(60, 190, (SIDE, SIDE, 3), np.uint8),
            "targets": {"depth": np.full((SIDE, SIDE), -20.0, np.float32)},
            "inputs": {
                "gain": np.array([[i + 1.0], [0.0]]),
                "second": rng.normal(size=(SIDE, SIDE, 2)),
                "number": np.int64(i),
                "not_used": np.float32(i),
            },
        }
        for i in range(count)
    ]


def depth_of(example, image):
    """The model by hand."""
    inputs = example["inputs"]
    depth = image.mean(-1) * inputs["gain"][0, 0] + inputs["second"].sum(-1)
    return depth + inputs["number"]


def expected(examples, shift=0.0):
    """The mean absolute error, with all values of the images raised by `shift`."""
    errors = [
        np.abs(depth_of(e, e["image"] / 255 + shift) - e["targets"]["depth"]).mean()
        for e in examples
    ]
    return np.mean(errors)


@pytest.fixture(scope="module")
def results():
    return mtr_tf.evaluate(make_model(), make_examples(), **SETTINGS)


def test_each_image_is_attacked_with_its_own_inputs(results):
    """The loss rises with the image alone: PGD ends at its corner, 8 levels higher."""
    (record,) = (r for r in results.records if r["metric"] == "mae")
    examples = make_examples()
    assert record["clean"] == pytest.approx(expected(examples), rel=1e-6)
    attacked = expected(examples, 8 / 255)
    assert record["attacked_value"] - record["clean"] == pytest.approx(
        attacked - expected(examples), rel=1e-3
    )
    (attacked,) = results.attacked
    assert attacked.pictures["adversarial"].shape == (3, SIDE, SIDE, 3)


def test_batches_and_dicts_of_inputs_are_the_same(results):
    examples = make_examples()
    batch = {
        "image": np.stack([e["image"] for e in examples]),
        "targets": {"depth": np.stack([e["targets"]["depth"] for e in examples])},
        "inputs": {
            name: np.stack([e["inputs"][name] for e in examples])
            for name in ("gain", "second", "number")
        },
    }
    inner = make_model()
    inputs = {
        "gain": keras.Input((2, 1), name="gain"),
        "picture": keras.Input((SIDE, SIDE, 3), name="picture"),
        "number": keras.Input((), dtype="int32", name="number"),
        "second": keras.Input((SIDE, SIDE, 2), name="second"),
    }
    model = keras.Model(inputs, inner(list(inputs.values())))
    batch_results = mtr_tf.evaluate(model, batch, **SETTINGS)
    values = [
        [(r["clean"], r["attacked_value"]) for r in records if r["metric"] == "mae"]
        for records in (results.records, batch_results.records)
    ]
    np.testing.assert_allclose(*values, rtol=1e-6)


@pytest.mark.slow
def test_measures_and_own_targets_and_ranges_take_them():
    """The gradient of |depth - target| is the image's gain / (3 H W), by hand."""
    measure_results = mtr_tf.evaluate(
        make_model(), make_examples(), attacks="none", measure="first_order", **SETTINGS
    )
    rises = [r for r in measure_results.measures if r["quantity"] == "rise"]
    gains = np.mean([e["inputs"]["gain"][0, 0] for e in make_examples()])
    for record in rises:
        assert record["predicted"] == pytest.approx(
            record["eps"] / 255 * gains, rel=1e-4
        )
        assert record["ratio"] == pytest.approx(1, rel=1e-2)
    attack_results = mtr_tf.evaluate(
        make_model(),
        make_examples(),
        targets="own",
        input_range=(0, 255),
        attack_channels=(0, 1),
        **(SETTINGS | {"random_start": True}),  # At the image the loss has no slope.
    )
    (record,) = (r for r in attack_results.records if r["metric"] == "mae")
    assert record["clean"] == pytest.approx(0, abs=1e-2)
    # Two of the three colours, in levels of 0-255.
    assert record["attacked_value"] == pytest.approx(8 * gains * 2 / 3, rel=1e-3)


def test_the_callback_takes_them(results):
    settings = {name: SETTINGS[name] for name in SETTINGS if name != "checks"}
    callback = mtr_tf.RobustnessCallback(make_examples(), metrics="delta1", **settings)
    callback.set_model(make_model())
    logs = {}
    callback.on_epoch_end(0, logs)
    (record,) = (r for r in results.records if r["metric"] == "mae")
    assert logs["val_adv_depth_mae"] == pytest.approx(record["attacked_value"], 1e-6)
    assert "val_clean_depth_delta1" in logs


# What lies behind the image.


def test_what_is_packed_comes_out_again():
    layout = Layout((3, 4, 1), (("a", (5,)), ("b", (2, 4)), ("c", ())))
    assert layout.packed == (3, 4, 1 + 2)
    rng = np.random.default_rng(0)
    images = rng.random((2, 3, 4, 1))
    inputs = {n: rng.normal(size=(2, *shape)).astype("f") for n, shape in layout.shapes}
    inputs["c"] = np.array([3, 2**24], "f")
    parts = packing.Unpack(layout, {"c": "int32"})(layout.pack(images, inputs))
    np.testing.assert_array_equal(parts["image"], images.astype("f"))
    for name, value in inputs.items():
        np.testing.assert_array_equal(parts[name], value)
    assert parts["c"].dtype == tf.int32


@pytest.mark.parametrize("lazy", [False, True])
def test_batches_have_them_behind_their_own_image(lazy):
    class LazyExamples:
        def __len__(self):
            return COUNT

        def __getitem__(self, i):
            return make_examples()[i]

    examples = LazyExamples() if lazy else make_examples()
    columns = columns_lib.open_split("test", examples, Rules(TASKS))
    batch = batching.gather(columns, ("depth",), np.array([3, -1, 0]))
    parts = packing.Unpack(columns.layout, {})(batch["image"])
    # Padding has inputs that a model can take: those of the first in the batch.
    np.testing.assert_array_equal(parts["number"], [3, 3, 0])
    np.testing.assert_array_equal(parts["gain"][:, 0, 0], [4, 4, 1])
    image_batch = batching.gather(
        columns.without_inputs(), ("depth",), np.array([3, -1, 0])
    )
    np.testing.assert_array_equal(parts["image"], image_batch["image"])


def test_loaded_examples_have_them_beside_the_image(monkeypatch):
    examples = make_examples()
    source = reading.open_given("mine", {"train": examples})
    monkeypatch.setitem(data.DATASETS, "mine", lambda **settings: source)
    items = list(data.load("mine", "train", tasks=("depth",)).as_numpy_iterator())
    assert len(items) == COUNT
    for example, item in zip(examples, items, strict=True):
        assert set(item) == {"image", "targets", "masks", "inputs"}
        np.testing.assert_allclose(item["image"], example["image"] / 255, rtol=1e-6)
        assert set(item["inputs"]) == set(example["inputs"])
        for name, value in example["inputs"].items():
            np.testing.assert_array_equal(item["inputs"][name], np.float32(value))


# What cannot be.


def changed(**inputs):
    examples = make_examples(3)
    for example in examples:
        example["inputs"] |= inputs
        example["inputs"] = {
            n: v for n, v in example["inputs"].items() if v is not None
        }
    return examples


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        (
            changed(gain=None),
            r"takes the input gain of shape \(2, 1\) besides the image",
        ),
        (
            changed(gain=np.ones(2)),
            r"gain of the model must have shape \(2, 1\), .* has \(2,\); reshape",
        ),
        (changed(number=2**24 + 1), "input number must be finite numbers"),
        (changed(number=np.int64(2**53 + 1)), "input number must be finite numbers"),
        (changed(number=np.iinfo(np.int64).min), "input number must be finite"),
        (changed(number=2.0**24 + 1), "input number must be finite numbers"),
        (changed(second="x"), "input second must be finite numbers"),
        (changed(image=np.ones(3)), "without the image"),
        (make_examples(1) + changed(gain=np.ones((1, 1))), "must have the same inputs"),
        ([e | {"inputs": {}} for e in make_examples(2)], "the inputs none"),
    ],
)
def test_mistakes(examples, words):
    with pytest.raises(InputError, match=words):
        mtr_tf.evaluate(make_model(), examples, **SETTINGS)


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((16, 16, 3), "float32", r"input image .* must have shape \(16, 16, 3\)"),
        ((SIDE, SIDE, 3), "uint8", "must take float images"),
    ],
)
def test_the_image_is_as_the_examples_are(shape, dtype, words):
    image = keras.Input(shape, dtype=dtype, name="image")
    gain = keras.Input((2, 1), name="gain")
    depth = keras.ops.cast(image, "float32")[..., :1] * gain[:, None, :1]
    model = keras.Model([image, gain], {"depth": depth})
    with pytest.raises(InputError, match=words):
        mtr_tf.evaluate(model, make_examples(2), **SETTINGS)


def test_a_number_is_taken_for_one_number():
    """Both by `Input((1,))` and by `Input(())`."""
    layout = Layout((2, 2, 3), (("before", (2,)), ("number", ())))
    images, numbers = np.ones((3, 2, 2, 3), np.float32), np.array([1.5, 2.5, -1])
    batch = layout.pack(images, {"before": np.zeros((3, 2)), "number": numbers})
    for shape in ((), (1,)):
        inputs = [
            keras.Input((2, 2, 3), name="image"),
            keras.Input((2,), name="before"),
        ]
        number = keras.Input(shape, name="number")
        output = (
            keras.ops.reshape(number, (-1, 1)) + keras.ops.sum(inputs[1], 1)[:, None]
        )
        model = keras.Model([*inputs, number], {"sum": output})
        result = packing.packed(model, layout, "the model")(batch)["sum"]
        np.testing.assert_array_equal(result[:, 0], numbers)


def test_models_of_images_alone_leave_them_alone():
    image = keras.Input((SIDE, SIDE, 3))
    model = keras.Model(image, {"depth": keras.layers.Conv2D(1, 1)(image)})
    items, settings = make_examples(2), {"attacks": "fgsm", "eps": 8, "checks": False}
    results = mtr_tf.evaluate(model, items, **settings)
    image_items = [{name: e[name] for name in ("image", "targets")} for e in items]
    image_results = mtr_tf.evaluate(model, image_items, **settings)
    assert [r["attacked_value"] for r in results.records] == [
        r["attacked_value"] for r in image_results.records
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("numbers", 1), ("classes", 5)])
def test_the_image_is_found_among_the_inputs_whatever_their_order(kind, count):
    """An output as long as another input is still of the whole image."""
    inputs = {
        "age": keras.Input((count,), name="age"),
        "image": keras.Input((SIDE, SIDE, 3), name="image"),
    }
    mean = keras.layers.GlobalAveragePooling2D()(inputs["image"])
    features = keras.layers.Concatenate()([mean, inputs["age"]])
    model = keras.Model(inputs, {"score": keras.layers.Dense(count)(features)})
    target = 1 if kind == "classes" else np.zeros(1, np.float32)
    examples = [
        {
            "image": np.full((SIDE, SIDE, 3), 100 + i, np.uint8),
            "targets": {"score": target},
            "inputs": {"age": np.ones(count, np.float32)},
        }
        for i in range(3)
    ]
    head_settings = SETTINGS | {"heads": {0: kind}}
    for settings in (head_settings, head_settings | {"targets": "own"}):
        results = mtr_tf.evaluate(model, examples, **settings)
        assert {record["task"] for record in results.records} == {"score"}
    task = mtr_tf.Task("score", kind=kind, channels=count, places=0)
    assert mtr_tf.evaluate(model, examples, tasks=[task], **SETTINGS).records
