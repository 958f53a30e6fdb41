# SPDX-License-Identifier: Apache-2.0
"""Training on tasks of a user's own: two segmentations, values of the image, flow."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import pathlib
import random
import shutil
import sys
import threading
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import workers_fixture
from tensorboard.backend.event_processing import event_accumulator

from mtr_tf import data
from mtr_tf import models
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.runs import building
from mtr_tf.runs import directory
from mtr_tf.runs import loading
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.training import job as job_lib
from mtr_tf.training import loop as training
from mtr_tf.training import losses as training_losses
from mtr_tf.training import monitor

SIZE = (8, 12)
TASKS = ("parts", "front", "scene", "seen", "flow")


def example(seed, **extra_targets):
    """A bright block on dark ground; targets tell its place and colour, of three."""
    rng = np.random.default_rng(seed)
    scene = seed % 3
    inside = np.zeros(SIZE, int)
    row, column = rng.integers(0, 4), rng.integers(0, 6)
    inside[row : row + 4, column : column + 6] = 1
    image = rng.uniform(0, 0.2, (*SIZE, 3))
    image[..., scene] += 0.7 * inside
    return {
        "image": image,
        "targets": {
            "parts": inside * (1 + scene),  # Four classes,
            "front": inside,  # and two.
            "scene": scene,
            "seen": [scene == 0, scene > 0],
            "flow": np.stack([inside, -inside * (scene == 1)], -1),
            **extra_targets,
        },
    }


def declared(**changes):
    tasks = [
        Task("parts", kind="classes"),
        Task("front", classes=("ground", "block")),
        Task("scene", classes=("red", "green", "blue")),
        Task("seen", kind="labels", classes=("warm", "cold")),
        Task("flow", channels=2, unit="px", mirror=(-1, 1)),
    ]
    return {
        "train": [example(i) for i in range(24)],
        "validation": [example(i) for i in range(24, 30)],
        "tasks": tasks,
        **changes,
    }


@pytest.fixture
def module(monkeypatch):
    """The module own_blocks, whose function `examples` can be changed."""
    module = types.ModuleType("own_blocks")
    module.examples = declared
    monkeypatch.setitem(sys.modules, "own_blocks", module)
    return module


def config(**settings):
    values = {
        "dataset": "own_blocks:examples",
        "tasks": TASKS,
        "model": "tiny",
        "batch_size": 8,
        "epochs": 12,
        "learning_rate": 1e-2,
        "checkpoint_every": 6,
        "eval_every": 6,
        "summary_every": 3,
        **settings,
    }
    return directory.canonical(TrainConfig(**values))


SCENE = {"tasks": ("scene", "parts"), "epochs": 1}


class Stopped(Exception):
    """Stands for a kill."""


class Losses:
    """Replaces `Monitor`: keeps the losses, and stops training after `stop_after`."""

    stop_after = math.inf

    def __init__(self, config, source, workers, learner, tasks, best, *arguments):
        self.tasks, self.best, self.seen = tasks, best, []
        type(self).last = self

    def trained(self, step, losses, steps_per_second):
        """Keeps the losses."""
        self.seen.append(losses)
        if step >= self.stop_after:
            raise Stopped
        return float(losses.sum())

    def flush(self):
        """Nothing is written."""

    def evaluated(self, step):
        """A score that rises."""
        return float(step)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of `SCENE`: copy it to change it."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    module = types.ModuleType("own_blocks")
    module.examples = declared
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "own_blocks", module)
        patch.setattr(training, "Monitor", Losses)
        training.train(config(**SCENE), workdir)
    return workdir


@pytest.fixture
def finished(trained, module, watched, tmp_path):
    """A run of `SCENE` that has ended, in a folder of the test's own."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(training, "Monitor", Losses)
    monkeypatch.setattr(Losses, "stop_after", math.inf)
    return Losses


def weights(folder):
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    return {variable.path: variable.numpy() for variable in model.weights}


@pytest.mark.slow
def test_losses_fall_and_a_stopped_run_ends_with_the_same_bits(
    module, watched, monkeypatch, tmp_path
):
    train_config = config(task_weights="uncertainty", class_weights=True)
    training.train(train_config, tmp_path / "whole")
    losses = np.array(watched.last.seen)
    assert losses.shape == (12, len(TASKS))
    assert (losses[-3:].mean(0) < 0.8 * losses[:3].mean(0)).all(), losses
    expected = weights(tmp_path / "whole")
    assert expected["head_parts/kernel"].shape[-1] == 4
    assert expected["head_scene/kernel"].shape[-1] == 3

    monkeypatch.setattr(watched, "stop_after", 21)
    with pytest.raises(Stopped):
        training.train(train_config, tmp_path / "stopped")
    monkeypatch.setattr(watched, "stop_after", math.inf)
    training.train(train_config, tmp_path / "stopped")
    assert len(watched.last.seen) == 6  # From the checkpoint at step 18 on.
    result = weights(tmp_path / "stopped")
    assert result.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(result[path], value, err_msg=path)


@pytest.mark.slow
def test_a_run_is_attacked_and_seen_as_it_trains(module, tmp_path):
    train_config = config(
        epochs=2,
        adversarial_tasks="scene+parts",
        adversarial_steps=1,
        adversarial_share=0.5,
        eval_examples=4,
        eval_steps=1,
        best_metric="adversarial/seen/f1",
        random_targets=("flow",),
    )
    training.train(train_config, tmp_path / "run")
    events = event_accumulator.EventAccumulator(
        str(tmp_path / "run" / "train"), {"tensors": 0}
    )
    events.Reload()
    tags = set(events.Tags()["tensors"])
    names = {
        *(f"{task}/loss" for task in (*TASKS, "total")),
        *(f"{task}/miou" for task in ("parts", "front")),
        *("scene/accuracy", "seen/f1", "flow/mae", "flow/rmse"),
    }
    for kind in ("clean", "attacked"):
        assert {f"{name}, {kind}" for name in names} <= tags
    assert {f"{task}/pictures" for task in TASKS} <= tags
    assert {f"{task}/loss, training" for task in TASKS} <= tags
    assert (tmp_path / "run" / "checkpoints" / "best").is_dir()


def test_config_json_keeps_the_tasks_as_the_data_have_them(trained):
    content = json.loads((trained / "config.json").read_text())
    assert content["train"]["tasks"] == ["scene", "parts"]
    scene, parts = content["tasks"]
    assert scene == {
        "name": "scene",
        "kind": "classes",
        "channels": 3,
        "places": 0,
        "unit": "",
        "classes": ["red", "green", "blue"],
        "metrics": ["accuracy", "loss"],
    }
    assert (parts["places"], parts["channels"]) == (2, 4)
    assert directory.read_config(trained).tasks == ("scene", "parts")


def test_uncertainty_weighs_by_kind(module):
    train_config = config(task_weights="uncertainty")
    job = job_lib.resolve(train_config)
    assert job.learner.weighting.current() == {
        "parts": 1,
        "front": 1,
        "scene": 1,
        "seen": 1,
        "flow": 0.5,
    }
    assert tuple(job.tasks) == TASKS


def test_class_weights_and_losses_by_hand(module):
    module.examples = lambda: declared(class_weights={"scene": [1, 2, 5]})
    info = data.open_source("own_blocks:examples").info
    losses = training_losses.make(config(), info)
    logits = np.log(np.array([[1, 1, 2], [2, 1, 1]], np.float32))
    target, mask = np.array([2, 1], np.int32), np.array([1, 1], np.float32)
    # A weighted mean over one place: the weight drops out of it.
    expected = [math.log(2), math.log(4)]
    np.testing.assert_allclose(
        losses["scene"](target, logits, mask), expected, rtol=1e-6
    )
    over_all = training_losses.make(config(loss_norm="all"), info)["scene"]
    weighted = [5 * math.log(2), 2 * math.log(4)]
    np.testing.assert_allclose(over_all(target, logits, mask), weighted, rtol=1e-6)
    np.testing.assert_array_equal(over_all(target, logits, 0 * mask), [0, 0])
    labels = np.array([[1, 0]], np.float32)
    scores = np.array([[0.0, math.log(3)]], np.float32)
    by_hand = (math.log(2) + math.log(4)) / 2
    np.testing.assert_allclose(
        losses["seen"](labels, scores, mask[:1]), [by_hand], rtol=1e-6
    )
    l2 = training_losses.make(config(task_losses=("flow:l2",)), info)["flow"]
    flow = np.array([[[[1, 2]]]], np.float32)
    np.testing.assert_allclose(l2(flow, 0 * flow, np.ones((1, 1, 1))), [2.5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("flwo",)}, "no task 'flwo'; it has .*flow"),
        ({"main_tasks": ("depth",)}, "--main_tasks must be among --tasks"),
        ({"task_losses": ("seen:cross_entropy",)}, "binary_cross_entropy for labels"),
        (
            {"task_losses": ("flow:binary_cross_entropy",)},
            "l1 and l2 for everything else",
        ),
        ({"task_losses": ("flow:l1", "flow:l2")}, "once, but flow .* flow:l1,flow:l2"),
        ({"best_metric": "scene/miou"}, "scene/accuracy, scene/loss.*got 'scene/miou'"),
        ({"best_metric": "x/clean/flow/mae"}, "clean/ or adversarial/.*got 'x/clean/f"),
        ({"random_targets": ("depth",)}, "--random_targets must be among"),
        ({"adversarial_tasks": "depth"}, "--adversarial_tasks must be main, all, or"),
        ({"adversarial_eps": 4.0}, "--adversarial_eps needs --adversarial_tasks"),
        ({"aux_weight": 0.1}, "--aux_weight needs auxiliary tasks"),
    ],
)
def test_what_does_not_go_together(module, settings, message):
    with pytest.raises(InputError, match=message):
        job_lib.resolve(config(**settings))


def test_the_best_metric_is_the_first_tasks_headline(module):
    job = job_lib.resolve(config(tasks=("scene", "flow")))
    assert (job.best.task, job.best.metric.name) == ("scene", "accuracy")
    train_config = config(tasks=("scene", "flow"), best_metric="adversarial/flow/rmse")
    best = monitor.parse_best(train_config, job.tasks)
    assert (best.kind, best.task, best.metric.name) == ("adversarial", "flow", "rmse")
    tasks = TaskSet([Task("clean"), Task("adversarial")])
    for text, expected in {
        "clean/mae": ("clean", "clean"),
        "adversarial/mae": ("clean", "adversarial"),
        "adversarial/clean/mae": ("adversarial", "clean"),
        "clean/adversarial/mae": ("clean", "adversarial"),
    }.items():
        best = monitor.parse_best(config(tasks=tuple(tasks), best_metric=text), tasks)
        assert (best.kind, best.task) == expected


def joints_net(image_shape, tasks):
    """A model with a map for parts and five points for joints."""
    image = keras.Input(image_shape)
    x = keras.layers.Conv2D(4, 3, padding="same", name="encoder_conv")(image)
    x = keras.layers.BatchNormalization(name="encoder_norm")(x)
    outputs = {"parts": keras.layers.Conv2D(4, 1, name="head_parts")(x)}
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(10, name="head_joints")(x)
    outputs["joints"] = keras.layers.Reshape((5, 2))(x)
    return keras.Model(image, outputs)


def test_a_model_of_ones_own_from_weights_of_a_run(module, watched, tmp_path):
    def examples():
        tasks = [*declared()["tasks"], Task("joints", channels=2, mirror=(-1, 1))]
        splits = {
            split: [example(i, joints=np.full((5, 2), i / 24)) for i in range(16)]
            for split in ("train", "validation")
        }
        return {**splits, "tasks": tasks}

    module.examples, module.net = examples, joints_net
    settings = {"tasks": ("joints", "parts"), "model": "own_blocks:net", "epochs": 2}
    training.train(config(**settings), tmp_path / "first")
    first = weights(tmp_path / "first")
    assert first["head_joints/kernel"].shape == (8 * 12 * 4, 10)
    # With its encoder frozen.
    init_settings = {"init": str(tmp_path / "first"), "frozen": ("encoder",), "seed": 1}
    training.train(config(**settings, **init_settings), tmp_path / "second")
    second = weights(tmp_path / "second")
    changed_paths = {path for path in first if (first[path] != second[path]).any()}
    assert changed_paths == {
        f"head_{task}/{part}"
        for task in ("joints", "parts")
        for part in ("kernel", "bias")
    }
    with pytest.raises(InputError, match="never run unasked"):
        building.build_model(config(**settings), None)
    with pytest.raises(InputError, match="joints have 1 axes of places"):
        job_lib.resolve(config(tasks=("joints",)))


def test_a_model_of_ones_own_starts_the_same_whatever_data_drew(module):
    def start(draws):
        def examples():
            for _ in range(draws):  # As TFDS does where it prepares data.
                random.random()
            return declared()

        module.examples, module.net = examples, conv_net
        train_config = config(
            tasks=("flow",), model="own_blocks:net", strategy="one_device"
        )
        return job_lib.resolve(train_config).learner.model.get_weights()

    for expected, result in zip(start(0), start(2), strict=True):
        np.testing.assert_array_equal(expected, result)


def test_aliases_name_own_tasks_where_a_run_is_attacked(module):
    flow = Task("flow", channels=2, aliases=("Motion",))
    module.examples = lambda: declared(tasks=[flow, *declared()["tasks"][:4]])
    name, size = "own_blocks:examples", "x".join(map(str, SIZE))
    train_config = TrainConfig(dataset=name, tasks=TASKS, model="tiny", image_size=size)
    run = loading.Run(None, TASKS, train_config, pathlib.Path("run"), "")

    def tasks_of(*tasks):
        config = AttackConfig(ckpt="run", dataset=name, tasks=tasks)
        source, names = loading.open_data(config, run)
        assert set(source.columns("validation").targets) == set(names)
        return names

    assert tasks_of("motion", "scene") == tasks_of("scene", "flow") == ("scene", "flow")
    assert tasks_of() == TASKS
    with pytest.raises(InputError, match="Unknown task 'moton'. Did you mean 'flow'"):
        tasks_of("moton")
    with pytest.raises(InputError, match="names 'flow' 2 times"):
        tasks_of("motion", "flow")
    # Training keeps names as they are, and says which one is meant.
    with pytest.raises(InputError, match="Motion is another name of flow; give flow"):
        data.open_source(name, tasks=("Motion",))


def brighter(light):
    """The declared data with images times `light`, so that their mean differs."""
    content = declared()
    for split in ("train", "validation"):
        for item in content[split]:
            item["image"] = item["image"] * light
    return content


def first_layer(model):
    mean, std = models.normalization(model)
    return np.round([*mean, *std], 6).tolist()


def test_a_run_keeps_the_mean_of_the_data_that_it_was_trained_on(module, finished):
    workdir = finished
    (workdir / "model.keras").unlink()  # There are checkpoints.
    info = data.open_source("own_blocks:examples").info
    normalization = json.loads((workdir / "config.json").read_text())["normalization"]
    assert normalization == {"mean": list(info.mean), "std": list(info.std)}

    module.examples = lambda: brighter(0.5)  # As on other data that are attacked.
    other_info = data.open_source("own_blocks:examples").info
    assert abs(other_info.mean[0] - info.mean[0]) > 0.01
    run = loading.load_run(str(workdir), dataset="own_blocks:examples")
    expected = np.round([*info.mean, *info.std], 6).tolist()
    assert first_layer(run.model) == expected

    # Older runs lack the entry; a damaged one is refused, not guessed.
    path = workdir / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "normalization": {"mean": [0.5]}}))
    with pytest.raises(InputError, match="must have a mean and an std for each"):
        loading.load_run(str(workdir), dataset="own_blocks:examples")
    del content["normalization"]
    path.write_text(json.dumps(content))
    run = loading.load_run(str(workdir), dataset="own_blocks:examples")
    assert (
        first_layer(run.model)
        == np.round([*other_info.mean, *other_info.std], 6).tolist()
    )


@pytest.mark.slow
def test_a_run_goes_on_with_the_mean_that_it_began_with(
    module, watched, monkeypatch, tmp_path
):
    train_config, workdir = config(tasks=("scene",), epochs=4), tmp_path / "run"
    train_config = dataclasses.replace(train_config, schedule="constant")
    training.train(train_config, workdir)
    info = data.open_source("own_blocks:examples").info

    def changed_examples():  # All but the first and last, which are compared.
        content, bright = declared(), brighter(0.5)
        content["train"][1:-1] = bright["train"][1:-1]
        return content

    module.examples = changed_examples
    training.train(dataclasses.replace(train_config, epochs=5), workdir)
    expected = np.round([*info.mean, *info.std], 6).tolist()
    model = keras.saving.load_model(workdir / "model.keras", compile=False)
    assert first_layer(model) == expected
    normalization = json.loads((workdir / "config.json").read_text())["normalization"]
    assert normalization == {"mean": list(info.mean), "std": list(info.std)}


def longer():
    content = declared()
    return {**content, "train": content["train"] + [example(i) for i in range(40, 64)]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (longer, "train had 24 examples and has 48. Give the data that it was trained"),
        (
            lambda: brighter(0.5),
            "the first or last image of train is another one; "
            "the first or last image of validation is another one",
        ),
        (lambda: declared(train=declared()["train"][::-1]), "image of train is"),
    ],
)
def test_a_finished_run_is_not_trained_further_on_other_data(
    module, finished, changed, message
):
    train_config, workdir = config(**SCENE), finished
    old_weights = weights(workdir)
    module.examples = changed
    with pytest.raises(InputError, match=message):
        training.train(train_config, workdir)
    new_weights = weights(workdir)
    assert all(
        (new_weights[path] == value).all() for path, value in old_weights.items()
    )
    # Older runs do not say what they were trained on.
    path = workdir / "config.json"
    content = json.loads(path.read_text())
    del content["data"]
    path.write_text(json.dumps(content))
    training.train(train_config, workdir)


def test_data_that_are_others_at_each_look_go_on_by_their_number(module, finished):
    """As from a reader that varies pictures itself."""
    rng = np.random.default_rng(0)

    class Varied:
        def __init__(self, seeds):
            self.seeds = seeds

        def __len__(self):
            return len(self.seeds)

        def __getitem__(self, index):
            item = example(self.seeds[index])
            return {**item, "image": item["image"] * rng.uniform(0.5, 1)}

    def examples(count=24):
        splits = {"train": Varied(range(count)), "validation": Varied(range(50, 56))}
        parts, *tasks = declared()["tasks"]  # Its classes cannot be counted.
        return {**splits, "tasks": [parts.bound(channels=4), *tasks]}

    module.examples = examples
    facts = job_lib.data_facts(data.open_source("own_blocks:examples"), 24)
    assert facts["train"] == {"examples": 24, "means": None}
    path = finished / "config.json"  # As a run on these data writes it.
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": facts}))
    train_config = config(**SCENE)
    training.train(train_config, finished)
    module.examples = lambda: examples(32)
    with pytest.raises(InputError, match="train had 24 examples and has 32"):
        training.train(train_config, finished)


@pytest.mark.slow
def test_examples_that_cannot_be_used_end_training_in_a_sentence(
    module, watched, tmp_path
):
    """They are read one by one, so only training meets the wrong one."""

    class Lazy(collections.UserList):
        """No list, so its examples are not checked beforehand."""

    scenes = [3 if i == 12 else i % 3 for i in range(24)]
    examples = [
        {"image": example(i)["image"], "targets": {"scene": scene}}
        for i, scene in enumerate(scenes)
    ]
    statistics = {"mean": [0.5] * 3, "std": [0.2] * 3}  # Else examples would be read.
    module.examples = lambda: declared(
        train=Lazy(examples), validation=examples[:6], **statistics
    )
    train_config = config(tasks=("scene",), epochs=1)
    with pytest.raises(InputError, match="scene .* example 12 of train has 3"):
        training.train(train_config, tmp_path / "run")


def test_examples_that_are_not_trained_on_may_be_added(module, watched, tmp_path):
    train_config = config(tasks=("scene",), epochs=1, train_examples=16)
    training.train(train_config, tmp_path / "run")
    module.examples = longer
    training.train(train_config, tmp_path / "run")


def test_the_same_data_may_be_moved(module, finished):
    module.examples = lambda data_dir: declared()
    training.train(config(**SCENE, data_dir="/b"), finished)


def test_other_channels_than_in_training_are_refused(module, finished):
    def grey():
        content = declared()
        for split in ("train", "validation"):
            for item in content[split]:
                item["image"] = item["image"][..., :1]
        return content

    module.examples = grey
    (finished / "model.keras").unlink()
    message = "trained on images of 3 channels, but those of own_blocks:examples have 1"
    with pytest.raises(InputError, match=message):
        loading.load_run(str(finished), dataset="own_blocks:examples")


@pytest.mark.slow
def test_a_run_goes_on_when_what_it_started_from_is_gone(
    module, watched, monkeypatch, tmp_path
):
    training.train(config(tasks=("scene",), epochs=1), tmp_path / "first")
    init = tmp_path / "init.keras"
    (tmp_path / "first" / "model.keras").rename(init)
    train_config = config(tasks=("scene",), epochs=4, init=str(init))
    workdir = tmp_path / "run"
    monkeypatch.setattr(watched, "stop_after", 9)
    with pytest.raises(Stopped):
        training.train(train_config, workdir)
    monkeypatch.setattr(watched, "stop_after", math.inf)
    content = init.read_bytes()
    init.unlink()
    training.train(train_config, workdir)
    assert len(watched.last.seen) == 2  # From the checkpoint at step 6 on.
    training.train(train_config, workdir)  # It has ended.

    # Without a checkpoint it starts again, and needs the initial weights.
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(InputError, match="--init must be a .keras or .h5 file"):
        training.train(train_config, workdir)
    expected = weights(workdir)
    init.write_bytes(content)
    training.train(train_config, workdir)
    for path, value in weights(workdir).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def conv_net(image_shape, tasks, kernel=3):
    """A convolution for each task."""
    image = keras.Input(image_shape)
    return keras.Model(
        image,
        {
            name: keras.layers.Conv2D(task.channels, kernel, padding="same")(image)
            for name, task in tasks.items()
        },
    )


def with_loss(factor):
    """The data, with a loss of one's own for the flow."""

    def loss(target, output, mask):
        return factor * tf.reduce_mean(tf.abs(target - output), [1, 2, 3])

    flow = Task("flow", channels=2, mirror=(-1, 1), loss=loss)
    return lambda: declared(tasks=[*declared()["tasks"][:-1], flow])


def test_a_run_goes_on_with_the_code_that_it_began_with(module, watched, tmp_path):
    module.net, module.examples = conv_net, with_loss(2.0)
    train_config = config(tasks=("flow",), model="own_blocks:net", epochs=1)
    workdir = tmp_path / "run"
    training.train(train_config, workdir)
    module.examples = with_loss(2.0)  # Made anew, as in another process.
    training.train(train_config, workdir)

    module.net = functools.partial(conv_net, kernel=1)
    with pytest.raises(InputError, match="weights: the model is another one. Restore"):
        training.train(train_config, workdir)
    module.net, module.examples = conv_net, with_loss(3.0)
    with pytest.raises(InputError, match="weights: the loss of flow is another one."):
        training.train(train_config, workdir)
    module.examples = declared
    with pytest.raises(InputError, match="the loss of flow is another one."):
        training.train(train_config, workdir)

    # Hashes of other versions say nothing, and older runs have none.
    path = workdir / "config.json"
    content = json.loads(path.read_text())
    path.write_text(path.read_text().replace(keras.__version__, "3.0.0"))
    training.train(train_config, workdir)
    del content["code"]
    path.write_text(json.dumps(content))
    training.train(train_config, workdir)


@pytest.mark.parametrize(
    ("kernels", "factors", "said"),
    [
        ((3, 3), (2.0, 2.0), ""),
        (
            (3, 1),
            (2.0, 2.0),
            "worker 1 (host1:1) differs from the chief: the code of the model is ",
        ),
        ((3, 3), (2.0, 3.0), "differs from the chief: the code of the loss of flow is"),
        ((3, 3), (None, 2.0), "the code of the loss of flow is None there and "),
    ],
)
def test_several_workers_have_the_same_code_of_the_users(
    module, kernels, factors, said
):
    thread = threading.local()

    def work(workers):
        thread.kernel = kernels[not workers.chief]
        thread.factor = factors[not workers.chief]
        train_config = config(
            tasks=("flow",), model="own_blocks:net", strategy="one_device"
        )
        return job_lib.resolve(train_config, workers)

    def examples():
        return with_loss(thread.factor)() if thread.factor else declared()

    module.net = lambda *arguments: conv_net(*arguments, kernel=thread.kernel)
    module.examples = examples
    for result in workers_fixture.run(work):
        assert isinstance(result, InputError if said else job_lib.Job)
        assert said in str(result)


def test_a_run_goes_on_from_the_weights_that_it_began_with(module, watched, tmp_path):
    def net(image_shape, tasks, start="zeros"):
        image = keras.Input(image_shape)
        head = keras.layers.Conv2D(4, 1, kernel_initializer=start, name="head")
        return keras.Model(image, {"parts": head(image)})

    module.net, init, workdir = net, tmp_path / "init.keras", tmp_path / "run"
    net((*SIZE, 3), ()).save(init)
    train_config = config(
        tasks=("parts",), model="own_blocks:net", init=str(init), epochs=1
    )
    train_config = dataclasses.replace(train_config, schedule="constant")
    training.train(train_config, workdir)
    training.train(train_config, workdir)
    init_entry = json.loads((workdir / "config.json").read_text())["init"]
    content = init.read_bytes()
    net((*SIZE, 3), (), "ones").save(init)
    with pytest.raises(InputError, match="run of .* weights: --init has other weights"):
        training.train(train_config, workdir)

    # The run knows its initial weights even while their file is gone.
    init.unlink()
    training.train(dataclasses.replace(train_config, epochs=2), workdir)
    assert json.loads((workdir / "config.json").read_text())["init"] == init_entry
    init.write_bytes(content)
    training.train(dataclasses.replace(train_config, epochs=2), workdir)


def test_an_old_run_with_a_setting_that_nothing_uses_goes_on(finished, tmp_path):
    train_config, new_run = config(**SCENE, aux_weight=0.1), tmp_path / "new"
    with pytest.raises(InputError, match="--aux_weight needs auxiliary tasks"):
        training.train(train_config, new_run)
    assert not new_run.exists()
    directory.write_config(finished, train_config)
    training.train(train_config, finished)
    (finished / "model.keras").unlink()
    run = loading.load_run(str(finished), dataset="own_blocks:examples")
    assert run.config == train_config


def softmax_net(image_shape, tasks):
    """A model that gives probabilities."""
    image = keras.Input(image_shape)
    head = keras.layers.Conv2D(4, 1, activation="softmax")
    return keras.Model(image, {"parts": head(image)})


def test_new_runs_refuse_probabilities_and_older_ones_go_on(module, watched, tmp_path):
    module.net = softmax_net
    train_config = config(tasks=("parts",), model="own_blocks:net", epochs=1)
    with pytest.raises(InputError, match="for parts .* must be logits.*has a softmax"):
        training.train(train_config, tmp_path / "run")
    directory.write_config(tmp_path / "run", train_config)
    training.train(train_config, tmp_path / "run")
    run = loading.load_run(str(tmp_path / "run"), dataset="own_blocks:examples")
    assert run.tasks == ("parts",)


def dropout_net(image_shape, tasks):
    """A model with dropout, which is random in training."""
    image = keras.Input(image_shape)
    x = keras.layers.Conv2D(4, 3, padding="same", name="encoder_conv")(image)
    x = keras.layers.Dropout(0.5, name="encoder_dropout")(x)
    return keras.Model(image, {"parts": keras.layers.Conv2D(4, 1, name="head")(x)})


def test_a_model_with_noise_goes_on_with_the_same_bits(
    module, watched, monkeypatch, tmp_path
):
    module.net = dropout_net
    train_config = config(tasks=("parts",), model="own_blocks:net", epochs=4)
    training.train(train_config, tmp_path / "whole")
    monkeypatch.setattr(watched, "stop_after", 8)
    with pytest.raises(Stopped):
        training.train(train_config, tmp_path / "stopped")
    monkeypatch.setattr(watched, "stop_after", math.inf)
    training.train(train_config, tmp_path / "stopped")
    expected, result = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    for path, value in expected.items():
        np.testing.assert_array_equal(result[path], value, err_msg=path)
