# SPDX-License-Identifier: Apache-2.0
"""`mtr_tf.evaluate`: what the command does, for models and examples in memory."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import mtr_tf
from mtr_tf import attack_job
from mtr_tf.api import evaluate
from mtr_tf.api import examples as examples_lib
from mtr_tf.config.attack import AttackConfig
from mtr_tf.errors import InputError
from mtr_tf.runs import loading
from mtr_tf.runs import model_files
from mtr_tf.tasks import Task

METRICS = ("delta1", "image_miou")
SETTINGS = {"attacks": "pgd", "eps": [4], "steps": 2, "checks": False}
SETTINGS |= {"metrics": METRICS, "attack_tasks": "all"}


def make_model():
    keras.utils.set_random_seed(1)
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    heads = {
        "seg": keras.layers.Conv2D(3, 1)(x),
        "depth": keras.layers.Conv2D(1, 1)(x),
    }
    return keras.Model(image, heads, name="two_heads")


def make_examples(count=6):
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (16, 16, 3), np.uint8),
            "targets": {
                "seg": rng.integers(0, 3, (16, 16)),
                "depth": rng.uniform(1, 3, (16, 16)).astype(np.float32),
            },
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def results(model):
    return mtr_tf.evaluate(model, make_examples(), **SETTINGS)


def numbers(results):
    return [
        (tuple(r["attacked"]), r["task"], r["metric"], r["clean"], r["attacked_value"])
        for r in results.records
    ]


def test_it_is_the_command(model, results, tmp_path, monkeypatch, unplotted):
    """The same numbers as of the command on a file and a data function."""
    monkeypatch.chdir(tmp_path)
    model.save("mine.keras")
    (tmp_path / "api_data.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from evaluate_test import make_examples\n"
        "def examples():\n"
        '    return {"validation": make_examples()}\n'
    )
    settings = {**SETTINGS, "attack": ("pgd",), "eps": (4.0,)}
    settings["attack_tasks"] = (settings["attack_tasks"],)
    del settings["attacks"]
    config = AttackConfig(ckpt="mine.keras", dataset="api_data:examples", **settings)
    attack_job.attack(config)
    (file,) = tmp_path.glob("runs/*/attacks/*/results.json")
    records = json.loads(file.read_text())
    assert [
        (tuple(r["attacked"]), r["task"], r["metric"], r["clean"], r["attacked_value"])
        for r in records
    ] == numbers(results)


def test_a_name_that_keras_has_made_says_nothing():
    image = keras.Input((4, 4, 3))
    assert evaluate._model_name(keras.Model(image, image)) == "the model"
    assert evaluate._model_name(keras.Sequential([image])) == "the model"
    assert evaluate._model_name(keras.Model(image, image, name="mine")) == "mine"
    assert evaluate._model_name(as_batches) == "as_batches"


def as_batches(examples):
    images = np.stack([e["image"] for e in examples])
    targets = {
        task: np.stack([e["targets"][task] for e in examples])
        for task in ("seg", "depth")
    }
    return images, targets


def forms():
    examples = make_examples()
    images, targets = as_batches(examples)
    floats = images.astype(np.float32) / 255
    dataset = tf.data.Dataset.from_tensor_slices((images, targets))

    class Sequence(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            part = slice(3 * i, 3 * i + 3)
            return images[part], {task: t[part] for task, t in targets.items()}

    return {
        "generator": (e for e in examples),
        "tuples": [(e["image"], e["targets"]) for e in examples],
        "one batch": {"image": images, "targets": targets},
        "arrays": (floats, targets),
        "dataset": dataset,
        "batches": dataset.batch(4),
        "endless": dataset.batch(4).repeat(),
        "PyDataset": Sequence(),
        "targets without names": [(images, [targets["seg"], targets["depth"]])],
        "masks": [(images, targets, {"seg": np.ones((6, 16, 16))})],
    }


@pytest.mark.parametrize("form", list(forms()))
def test_examples_of_any_form(form):
    iterator = examples_lib.one_by_one(forms()[form], ["seg", "depth"])
    examples = itertools.islice(iterator, 6)
    for example, expected in zip(examples, make_examples(), strict=True):
        image = np.asarray(example["image"])
        if image.dtype != np.uint8:
            image = image * 255
        np.testing.assert_allclose(image, expected["image"], atol=1e-3)
        assert list(example["targets"]) == ["seg", "depth"]
        for task, target in example["targets"].items():
            np.testing.assert_array_equal(target, expected["targets"][task])
    assert (next(iterator, None) is None) == (form != "endless")


@pytest.mark.slow
def test_batches_without_end_or_names(model, results):
    endless = forms()["endless"].map(lambda x, y: (x, (y["seg"], y["depth"])))
    endless_results = mtr_tf.evaluate(
        model, endless, tasks=["seg", "depth"], num_examples=6, **SETTINGS
    )
    assert numbers(endless_results) == numbers(results)


@pytest.mark.slow
def test_data_may_be_named_for_a_model_in_memory(model, results, monkeypatch):
    module = types.ModuleType("api_named_data")
    module.examples = lambda: {"validation": make_examples()}
    monkeypatch.setitem(sys.modules, "api_named_data", module)
    named_results = mtr_tf.evaluate(model, "api_named_data:examples", **SETTINGS)
    assert numbers(named_results) == numbers(results)


class Subclassed(keras.Model):
    """The same outputs as a list, of images from 0 to 255, and no graph of layers."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x, training=False):
        outputs = self.inner(x / 255, training=training)
        return [outputs["depth"], outputs["seg"]]


def other_models(inner):
    subclassed = Subclassed(inner)
    image = keras.Input((16, 16, 3))
    list_model = keras.Model(image, list(inner(image).values())[::-1])
    wide = {"input_range": (0, 255)}
    head_settings = {"heads": {0: "depth", 1: "seg"}}
    return {
        "subclassed": (subclassed, head_settings | wide),
        "function": (lambda x: subclassed(x), head_settings | wide),
        "list": (list_model, {"heads": ["0:depth", "1:seg"]}),
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", list(other_models(make_model())))
def test_models_of_any_form(model, results, form):
    variant, settings = other_models(model)[form]
    variant_results = mtr_tf.evaluate(variant, make_examples(), **SETTINGS, **settings)
    variant_numbers = {n[:3]: n[3:] for n in numbers(variant_results)}
    for (group, task, metric), values in variant_numbers.items():
        expected = next(
            n[3:]
            for n in numbers(results)
            if (set(n[0]), *n[1:3]) == (set(group), task, metric)
        )
        np.testing.assert_allclose(values, expected, rtol=2e-3, err_msg=metric)


@pytest.mark.slow
def test_classes_are_as_many_as_the_model_has(tmp_path):
    """Even where the examples show only some of them."""
    rng = np.random.default_rng(0)
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, {"seg": keras.layers.Conv2D(7, 1)(image)})
    images = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
    targets = {"seg": rng.integers(1, 3, (3, 8, 8))}
    settings = SETTINGS | {"metrics": "top5"}
    results = mtr_tf.evaluate(model, (images, targets), **settings)
    assert {r["task"] for r in results.records} == {"seg"}
    assert "top5" in {r["metric"] for r in results.records}
    model.save(tmp_path / "seven.keras")
    file_results = mtr_tf.evaluate(
        tmp_path / "seven.keras", (images, targets), **settings
    )
    assert numbers(file_results) == numbers(results)


def brighter(images):
    """How far each pixel is above the middle: above 0 it is of the second class."""
    return keras.ops.mean(images, axis=-1, keepdims=True) - 0.5


def one_logit(form):
    """A model that says with one number which of two classes a pixel has."""
    if form == "channels first":
        image = keras.Input((3, 8, 8))
        logit = keras.ops.mean(image, axis=1, keepdims=True) - 0.5
    else:
        image = keras.Input((8, 8, 3))
        logit = brighter(image)
    output = {"probability": keras.ops.sigmoid, "map": lambda z: z[..., 0]}
    return keras.Model(image, {"seg": output.get(form, lambda z: z)(logit)})


GREYS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
ONE = {"attacks": "fgsm", "eps": 8, "checks": False}
FORMS = ("logit", "probability", "map", "channels first")


def light(levels=0):
    """Where images are of the second class, with all values moved by some levels."""
    return np.clip(GREYS.astype(int) + levels, 0, 255).mean(-1) > 127.5


def accuracies(*args, **settings):
    records = mtr_tf.evaluate(*args, **(ONE | settings)).records
    (record,) = (r for r in records if r["metric"] == "pixel_accuracy")
    return record["clean"], record["attacked_value"]


@pytest.mark.parametrize("form", FORMS)
def test_one_logit_is_of_two_classes_though_the_examples_show_one(form):
    targets = {"seg": np.zeros((4, 8, 8), int)}
    clean, attacked = accuracies(one_logit(form), (GREYS, targets))
    assert clean == pytest.approx(1 - light().mean())
    assert attacked == pytest.approx(1 - light(8).mean())


@pytest.mark.parametrize(
    ("form", "heads"),
    [("logit", {})] + [(form, {"seg": "classes"}) for form in FORMS[1:3]],
)
def test_one_logit_is_of_two_classes_for_its_own_targets(form, heads):
    clean, attacked = accuracies(
        one_logit(form), {"image": GREYS}, heads=heads, targets="own"
    )
    assert clean == 1
    assert attacked == pytest.approx((light(8) == light(-8)).mean())


def test_tasks_of_the_paper_need_no_targets_but_the_models_own():
    def model(images):
        return {"depth": brighter(images)}

    image = keras.Input((8, 8, 3))
    for candidate, tasks in ((keras.Model(image, model(image)), ()), (model, "depth")):
        results = mtr_tf.evaluate(
            candidate, {"image": GREYS}, tasks=tasks, targets="own", **ONE | {"eps": 1}
        )
        (record,) = (r for r in results.records if r["metric"] == "mae")
        assert record["clean"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_of_a_function_nobody_knows_how_many_classes_it_has():
    def model(images):
        return {"seg": brighter(images)}

    targets = {"seg": np.zeros((4, 8, 8), int)}
    clean, _ = accuracies(model, (GREYS, targets))  # Of one class all would be right.
    assert clean == pytest.approx(1 - light().mean())
    clean, _ = accuracies(model, (GREYS, targets), facts={"classes": ["dark", "light"]})
    assert clean == pytest.approx(1 - light().mean())


class ThreeClasses(keras.Model):
    """A model without a graph of layers."""

    def __init__(self):
        super().__init__()
        self.layer = keras.layers.Conv2D(3, 1)

    def call(self, x, training=False):
        return {"parts": self.layer(x)}


def test_how_to_say_classes_that_examples_do_not_show(tmp_path):
    """A subclassed model does not tell its number of classes beforehand."""
    examples = {"image": GREYS, "targets": {"parts": GREYS[..., 0] // 128}}
    settings = {"attack": "pgd", "eps": 8}

    def classes(task, facts):
        job = evaluate.job_of(
            ThreeClasses(), examples, task, {}, facts, settings, tmp_path
        )
        return len(job.subject.tasks["parts"].classes)

    undeclared = Task("parts", kind="classes")
    cure = r"or declare Task\('parts', kind='classes', channels=3\), if these data"
    with pytest.raises(InputError, match=cure):
        classes(undeclared, {})
    assert classes(Task("parts", kind="classes", channels=3), {}) == 3
    assert classes(undeclared, {"classes": ["a", "b", "c"]}) == 3


def test_results_of_a_task_with_an_ignored_class_are_others(tmp_path):
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, {"seg": keras.layers.Conv2D(3, 1)(image)})
    targets = {"seg": GREYS[..., 0] // 128 + 1}
    targets["seg"][:, 0] = 0
    jobs = {
        label: evaluate.job_of(
            model,
            {"image": GREYS, "targets": targets},
            (),
            {},
            {"ignore_label": label},
            {"attack": "pgd", "eps": 8},
            tmp_path,
        )
        for label in (0, 255)
    }
    tasks = {label: job.subject.tasks["seg"] for label, job in jobs.items()}
    assert tasks[0].ignored == (0,)
    assert tasks[255].ignored == ()
    # Results finished before are not mistaken for those without the class.
    (entry,) = jobs[0].provenance.own_tasks
    assert entry["ignored"] == [0]
    assert jobs[255].provenance.own_tasks == ()


def three_heads():
    image = keras.Input((8, 8, 3))
    heads = {name: keras.layers.Conv2D(3, 1)(image) for name in ("flow", "parts")}
    return keras.Model(image, heads | {"depth": keras.layers.Conv2D(1, 1)(image)})


def test_facts_are_those_of_a_data_function():
    """They declare tasks, and name the classes of tasks that have none."""
    names = ["one", "two", "three"]
    facts = {"classes": names, "colors": [(0, 0, 9), (0, 9, 0), (9, 0, 0)]}
    facts["tasks"] = [Task("flow", channels=3), Task("parts", kind="classes")]
    settings = {"attack": "pgd", "eps": 8}
    targets = {
        "flow": np.zeros((4, 8, 8, 3), np.float32),
        "parts": GREYS[..., 0] // 128,
    }
    for tasks in ((), (Task("flow", channels=3), "parts"), ("parts", "flow")):
        job = evaluate.job_of(
            three_heads(),
            {"image": GREYS, "targets": targets},
            tasks,
            {},
            facts,
            settings,
            pathlib.Path(),
        )
        assert set(job.subject.tasks) == {"flow", "parts"}
        parts = job.subject.tasks["parts"]
        assert (list(parts.classes), list(parts.colors)) == (names, facts["colors"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"facts": {"classes": list("abcd")}}, r"parts must have shape \(8, 8, 4\)"),
        ({"facts": {"test": []}}, "besides its splits, but have test; give these"),
        ({"examples": "rooms", "facts": {"mean": 1}}, "only for examples in memory"),
    ],
)
def test_facts_that_cannot_be(given, says):
    examples = {"image": GREYS, "targets": {"parts": GREYS[..., 0] // 128}}
    given = {"examples": examples, "tasks": Task("parts", kind="classes")} | given
    with pytest.raises(mtr_tf.InputError, match=says):
        mtr_tf.evaluate(three_heads(), **(ONE | given))


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_one_number_for_an_image_may_have_no_axis_of_channels(kind):
    def model(images):
        return keras.ops.mean(brighter(images), axis=(1, 2, 3))

    results = mtr_tf.evaluate(
        model, {"image": GREYS}, heads={0: kind}, targets="own", **ONE
    )
    assert {r["metric"] for r in results.records} >= {
        "accuracy" if kind == "classes" else "mae"
    }


@pytest.mark.slow
def test_nothing_is_written_or_changed(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = [weight.copy() for weight in model.get_weights()]
    results = mtr_tf.evaluate(model, make_examples(2), **SETTINGS)
    assert not list(tmp_path.iterdir())
    assert {r["rows"] for r in results.records} == {""}
    for weight_after, weight_before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight_after, weight_before)


@pytest.mark.slow
def test_out_is_a_folder_of_the_command(model, results, tmp_path):
    out_results = mtr_tf.evaluate(
        model, make_examples(), out=tmp_path / "a", **SETTINGS
    )
    assert numbers(out_results) == numbers(results)
    records = json.loads((tmp_path / "a" / "results.json").read_text())
    assert records == list(out_results.records)
    assert (tmp_path / "a" / "curves.png").exists()
    assert (tmp_path / "a" / out_results.records[0]["rows"]).exists()


def test_results_can_be_looked_at(results, tmp_path):
    text = results.table()
    assert text.startswith("two_heads on 6 images of examples")
    assert "seg miou, higher is better" in text
    assert "results.json" not in text  # Nothing is written.
    assert "depth delta1" in text
    assert "seg image_miou" in text
    metrics = {
        r["task"]: r["metric"] for r in results.records if r["metric"] in METRICS
    }
    assert metrics == {"depth": "delta1", "seg": "image_miou"}
    assert repr(results) == text
    assert results._repr_html_().startswith("<pre>two_heads")
    assert results.table("markdown").count("|") > 10
    assert json.loads(results.table("json")) == list(results.records)
    frame = results.to_pandas()
    assert len(frame) == len(results.records) == len(results)
    assert set(frame.task) == {"seg", "depth"}
    minima = (
        frame.query("metric == 'miou'").groupby(["attack", "eps"]).attacked_value.min()
    )
    values = [r["attacked_value"] for r in results.records if r["metric"] == "miou"]
    assert minima.loc["pgd"].min() == min(values)
    figure = results.plot(tmp_path / "curves.png")
    assert figure._repr_png_()[:4] == b"\x89PNG"
    results.gallery(tmp_path / "gallery.png")
    for name in ("curves.png", "gallery.png"):
        assert (tmp_path / name).stat().st_size > 5000
    with pytest.raises(mtr_tf.InputError, match="format must be one of"):
        results.table("latex")


def test_measures_come_too(model):
    results = mtr_tf.evaluate(
        model, make_examples(4), attacks="none", measure="tasks", batch_size=2
    )
    assert not results.records
    assert results.measures
    assert "norm of the mean gradient" in results.table()
    assert results.table("markdown").startswith("```text\nnorm of the mean gradient")
    with pytest.raises(mtr_tf.InputError, match="nothing to plot"):
        results.plot()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"stepz": 3}, "no setting 'stepz'.* Did you mean 'steps'"),
        ({"eps": "four"}, "eps must be a number or a list of numbers; got 'four'"),
        ({"attacks": "pgdd"}, "Did you mean 'pgd'"),
        ({"dataset": "rooms"}, "dataset is only for named data sets"),
        ({"name": "x"}, "name is a flag of the command"),
        ({"examples": None}, "examples must be an iterable of examples or batches"),
        ({"examples": 3}, "must be an iterable"),
        ({"examples": {"images": []}}, "must be an iterable.*got a dict"),
        ({"examples": [3]}, "An example must be"),
        ({"examples": [{"image": 3}]}, "An image must have shape"),
        ({"examples": [{"targets": 3}]}, 'must have "image" and "targets"'),
        (
            {"tasks": "seg", "examples": [(np.zeros((4, 4, 3)), {"x": 1})]},
            "named after the tasks",
        ),
    ],
)
def test_what_cannot_be_is_said(model, given, says):
    arguments = {"examples": make_examples(2), **given}
    examples = arguments.pop("examples")
    with pytest.raises(mtr_tf.InputError, match=says):
        mtr_tf.evaluate(model, examples, **arguments)


@pytest.mark.slow
def test_the_surface_shows_without_tensorflow():
    code = (
        "import sys, mtr_tf\n"
        "names = dir(mtr_tf)\n"
        "assert {'evaluate', 'RobustnessCallback', 'AdversarialModel', 'attacks',\n"
        "        'data', 'models', 'tasks', 'train_model'} <= set(names), names\n"
        "assert 'tensorflow' not in sys.modules\n"
        "assert 'evaluate' in mtr_tf.__doc__\n"
        "mtr_tf.tasks, mtr_tf.attacks, mtr_tf.data, mtr_tf.InputError\n"
        "assert 'tensorflow' not in sys.modules\n"
        "import inspect\n"
        "assert 'steps' in inspect.signature(mtr_tf.evaluate).parameters\n"
        "assert 'Steps of pgd' in mtr_tf.evaluate.__doc__\n"
        "assert '**settings' not in mtr_tf.evaluate.__doc__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def heights(x):
    return tf.round(8 * x[..., :1]) / 8


def fingerprint_of(user_model, model, shape=None):
    file = model_files.of_object(user_model, "the model", "model")
    return loading._fingerprint_of(file, model, shape)


@tf.custom_gradient
def straight_through(x):
    return heights(x), lambda upstream: tf.concat(
        [upstream, 0 * upstream, 0 * upstream], -1
    )


def test_a_model_of_other_gradients_is_another_model():
    """An adaptive attack must not find the results of the masked gradient."""
    image = keras.Input((16, 16, 3))

    def model_of(function):
        def model(x):
            return {"depth": function(x)}

        return model

    def fingerprint(function):
        user_model = model_of(function)
        model = keras.Model(image, keras.layers.Lambda(user_model)(image))
        return fingerprint_of(user_model, model)

    assert fingerprint(heights) == fingerprint(heights)
    assert fingerprint(heights) != fingerprint(straight_through)


@keras.saving.register_keras_serializable("evaluate_test")
class Changed(keras.layers.Layer):
    function = staticmethod(tf.round)

    def call(self, x):
        return self.function(x)


def activation(x):
    return Changed.function(x)


class Operation(keras.Operation):
    def call(self, x):
        return Changed.function(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Net(keras.Model):
    """A functional model with a class of its own, whose config has no layers."""

    def __init__(self):
        image = keras.Input((16, 16, 3))
        layer = "linear" if Changed.function is tf.identity else "hard_sigmoid"
        super().__init__(image, {"depth": keras.layers.Activation(layer)(image)})


WITH_CODE = {
    "layer": Changed(name="own"),
    "activation": keras.layers.Activation(activation, name="own"),
    "operation": Operation(name="own"),
    "argument": lambda x: keras.ops.map(activation, x),
    "model": None,
}


@pytest.mark.parametrize("form", list(WITH_CODE))
def test_a_model_whose_code_has_changed_is_another_model(form, monkeypatch):
    def fingerprint():
        keras.backend.clear_session()  # So that layers get the same names again.
        image = keras.Input((16, 16, 3))
        if form == "model":
            model = Net()
        else:
            model = keras.Model(image, {"depth": WITH_CODE[form](image)}, name="mine")
        return fingerprint_of(model, model)

    original = fingerprint()
    assert fingerprint() == original
    monkeypatch.setattr(Changed, "function", staticmethod(tf.identity))
    assert fingerprint() != original


def ones(shape, dtype=None):
    return tf.ones(shape, dtype)


def test_a_model_without_code_of_its_own_is_known_by_its_layers():
    """What only its training uses does not count either."""
    image = keras.Input((16, 16, 3))
    layer = keras.layers.Conv2D(
        2,
        1,
        activation=tf.nn.gelu,
        kernel_initializer=ones,
        kernel_regularizer=tf.reduce_sum,
    )
    model = keras.Model(image, keras.ops.sin(layer(image)))
    model.compile("sgd", loss=lambda target, output: output)
    assert fingerprint_of(model, model) == loading.fingerprint(model)
    assert not loading._has_own_code(keras.Sequential([image, layer]))


def test_a_layer_may_have_operations_that_are_none_of_keras():
    class Layer(keras.layers.Layer):
        operations = 3

        def call(self, x):
            return 2 * x

    image = keras.Input((16, 16, 3))
    model = keras.Model(image, Layer(name="own")(image))
    assert loading._has_own_code(model)
    Layer.operations = [tf.round, None]
    assert loading._has_own_code(model)


def pooled(image):
    """Fails on images of 32 pixels."""
    return keras.layers.AveragePooling2D(64)(image)


def of_48_pixels(image):
    return keras.ops.reshape(image, (-1, 48, 48, 3))


@pytest.mark.parametrize(
    ("layers", "shape", "is_known"),
    [
        (pooled, None, True),
        (of_48_pixels, (48, 48, 3), True),
        (of_48_pixels, (None, None, 3), False),
        (of_48_pixels, None, False),
    ],
)
def test_code_is_known_by_images_of_a_size_that_fits(
    layers, shape, is_known, monkeypatch
):
    def fingerprint():
        keras.backend.clear_session()
        image = keras.Input((None, None, 3))
        output = keras.layers.Activation(activation, name="own")(layers(image))
        model = keras.Model(image, output, name="mine")
        return fingerprint_of(model, model, shape)

    original = fingerprint()
    assert fingerprint() == original
    monkeypatch.setattr(Changed, "function", staticmethod(tf.identity))
    assert (fingerprint() != original) == is_known


def test_outputs_of_no_size_are_asked_about():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, of_48_pixels(image))
    message = "fails on those of 32x32 and 256x256 .*; give the right --image_size"
    with pytest.raises(InputError, match=message):
        fingerprint_of(of_48_pixels, model)
    assert fingerprint_of(of_48_pixels, model, (48, 48, 3))


@pytest.mark.slow
def test_results_of_another_loss_are_not_taken_for_its_own(model, tmp_path):
    """For a task of one's own, and for one of the eleven with a loss of one's own."""

    def scaled_loss(scale):
        return lambda target, output, mask: (
            scale * tf.reduce_mean(tf.abs(target - output), [1, 2, 3])
        )

    def clean_loss(name, scale):
        results = mtr_tf.evaluate(
            model,
            [
                {"image": e["image"], "targets": {name: e["targets"]["depth"]}}
                for e in make_examples()
            ],
            tasks=[mtr_tf.Task(name, channels=1, loss=scaled_loss(scale))],
            heads={"depth": name},
            attacks="fgsm",
            eps=4,
            checks=False,
            out=tmp_path / name,
        )
        return next(r["clean"] for r in results.records if r["metric"] == "loss")

    for name in ("distance", "depth"):
        loss = clean_loss(name, 1.0)
        assert clean_loss(name, 100.0) == pytest.approx(100 * loss)
        assert clean_loss(name, 1.0) == loss


def test_of_a_metric_of_ones_own_where_higher_is_better_nobody_knows_the_harm():
    def psnr(target, output, mask):
        return 30 - tf.reduce_mean(tf.abs(target - output), [1, 2, 3])

    psnr.better = "higher"
    task = mtr_tf.Task("distance", channels=1, metrics=(psnr,))
    assert task.metrics[0].name == "psnr"
    assert task.harm.name == "loss"
