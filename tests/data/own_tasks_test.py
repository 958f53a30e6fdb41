# SPDX-License-Identifier: Apache-2.0
"""A user's own tasks in a data function: values by hand, and refused input."""

from __future__ import annotations

import dataclasses
import re
import sys
import types

import numpy as np
import pytest

from mtr_tf import data
from mtr_tf import tasks as tasks_lib
from mtr_tf.data import batching
from mtr_tf.data import noise_targets
from mtr_tf.data import picture
from mtr_tf.data.augment import Augment
from mtr_tf.errors import InputError
from mtr_tf.tasks import Task
from mtr_tf.tasks import metrics

SIZE = (4, 6)
TASKS = [
    Task("parts", kind="classes"),
    Task("ground", kind="classes", classes=("low", "high")),
    Task("scene", kind="classes", classes=("indoor", "outdoor", "else")),
    Task("seen", kind="labels", classes=("chair", "table", "lamp", "door")),
    Task("flow", kind="numbers", channels=2, unit="px", mirror=(-1, 1)),
    Task("angle", mirror=(-1,)),
    Task("joints", channels=2, mirror=(-1, 1)),
]


def example(i=0, targets=None, **changes):
    """An example with targets of all shapes, another one for each `i`."""
    rng = np.random.default_rng(i)
    record = {
        "image": rng.integers(0, 256, (*SIZE, 3), np.uint8),
        "targets": {
            "seg": rng.integers(0, 3, SIZE),
            "parts": np.arange(24).reshape(SIZE) % 5,
            "ground": rng.integers(0, 2, SIZE),
            "scene": i % 3,
            "seen": np.array([i % 2, 1, 0, 1], bool),
            "flow": rng.normal(size=(*SIZE, 2)),
            "angle": 0.5 * i,
            "joints": rng.normal(size=(17, 2)),
        }
        | (targets or {}),
    }
    return record | changes


class Sequence:
    """A sequence, which is read only when needed."""

    def __init__(self, made):
        self.made = made

    def __len__(self):
        return len(self.made)

    def __getitem__(self, i):
        return self.made[i]


@pytest.fixture
def open_it(monkeypatch):
    """Opens a data set that the function own_tasks:examples returns."""

    def open_it(**contents):
        module = types.ModuleType("own_tasks")
        module.examples = lambda: contents
        monkeypatch.setitem(sys.modules, "own_tasks", module)
        return data.open_source("own_tasks:examples")

    return open_it


def opened(open_it, count=4, **facts):
    records = [example(i) for i in range(count)]
    return open_it(train=records, **{"tasks": TASKS, **facts}), records


def test_tasks_get_what_the_data_have(open_it):
    source, _ = opened(open_it)
    tasks = source.info.tasks
    assert tuple(tasks) == (
        "seg",
        "edge_texture",
        "keypoints2d",
        "autoencoder",
        *(task.name for task in TASKS),
    )
    places = {name: tasks[name].places for name in ("seg", "parts", "ground", "flow")}
    assert set(places.values()) == {2}
    assert [tasks[n].places for n in ("scene", "seen", "angle", "joints")] == [
        0
    ] * 3 + [1]
    channels = {name: task.channels for name, task in tasks.items()}
    assert (channels["seg"], channels["parts"], channels["ground"]) == (3, 5, 2)
    assert tasks["parts"].classes[4] == "class_4"
    assert len(set(tasks["parts"].colors)) == 5
    assert [m.name for m in tasks["scene"].metrics] == ["accuracy", "loss"]
    assert [m.name for m in tasks["parts"].metrics][0] == "miou"
    assert source.info.num_classes == 3  # Of seg.


@pytest.mark.parametrize("form", [list, Sequence])
def test_batches_have_them_by_hand(open_it, form):
    records = [example(i) for i in range(4)]
    source = open_it(
        train=form(records),
        classes=["a", "b", "c"],
        tasks=[Task("parts", kind="classes", channels=5), *TASKS[1:]],
    )
    batch = batching.gather(source.columns("train"), source.info.tasks, [3, -1, 2])
    targets, masks = batch["targets"], batch["masks"]
    for row, i in ((0, 3), (2, 2)):
        for name, target in records[i]["targets"].items():
            got = targets[name][row]
            expected = np.asarray(target).reshape(got.shape)
            np.testing.assert_allclose(got, expected, rtol=1e-6)
    for name, task in source.info.tasks.items():
        shape = targets[name].shape if task.discrete else targets[name].shape[:-1]
        assert masks[name].shape == shape
        assert masks[name][[0, 2]].all()
        assert not masks[name][1].any()
        assert targets[name].dtype == (np.int32 if task.discrete else np.float32)
    assert targets["scene"].shape == (3,)
    assert targets["angle"].shape == (3, 1)
    assert targets["joints"].shape == (3, 17, 2)
    assert targets["seen"].shape == (3, 4)


def test_masks_and_ignored_labels_are_of_each_task(open_it):
    record = example(
        targets={"scene": 9, "parts": np.full(SIZE, 1), "ground": np.full(SIZE, 7)},
        masks={"angle": 0, "joints": np.arange(17) % 2},
    )
    source = open_it(
        train=[record, example(1, {"parts": np.full(SIZE, 0)})],
        tasks=TASKS,
        ignore_label={"scene": 9, "ground": [7, 8]},
    )
    batch = batching.gather(source.columns("train"), source.info.tasks, [0, 1])
    masks = batch["masks"]
    assert masks["scene"].tolist() == [0, 1]
    assert masks["angle"].tolist() == [0, 1]
    assert masks["ground"].mean(axis=(1, 2)).tolist() == [0, 1]
    assert masks["joints"].sum(axis=1).tolist() == [8, 17]
    assert source.info.tasks["parts"].channels == 2  # 0 and 1, as counted.
    with pytest.raises(InputError, match="scene must be below the number of classes"):
        open_it(train=[record], tasks=TASKS, ignore_label={"ground": 7})


def test_facts_are_by_task(open_it):
    source, _ = opened(
        open_it,
        ranges={"flow": (-3, 3)},
        units={"angle": "degrees"},
        class_weights={"scene": [1, 2, 3], "ground": [1, 4]},
    )
    info = source.info
    assert info.ranges["flow"] == (-3, 3)
    assert info.units == {"angle": "degrees"}
    assert info.weights_of(info.tasks["scene"]) == (1, 2, 3)
    assert info.weights_of(info.tasks["ground"]) == (1, 4)
    assert info.weights_of(info.tasks["seg"]) == ()


def test_a_unit_may_be_among_the_facts_alone(open_it):
    tasks = [Task("way"), Task("far", unit="m"), Task("not_there")]
    target = {"way": np.zeros(SIZE), "far": np.zeros(SIZE)}
    record = {"image": np.zeros((*SIZE, 3), np.uint8), "targets": target}
    units = {"way": "px", "far": "km", "not_there": "s"}
    source = open_it(train=[record], tasks=tasks, units=units)
    task_units = {
        (task.name, metric.name): task.unit_of(metric, source.info.units)
        for task in source.all_tasks.values()
        for metric in (*task.metrics[:2], metrics.rel())
    }
    for name, unit in units.items():
        assert (task_units[name, "mae"], task_units[name, "rmse"]) == (unit, unit)
    assert task_units["way", "rel"] == ""


def test_one_of_the_eleven_may_be_replaced(open_it):
    seg = Task("seg", classes=("a", "b", "c", "d"))
    source, _ = opened(open_it, tasks=[*TASKS, seg])
    assert source.info.tasks["seg"].classes == ("a", "b", "c", "d")
    assert source.info.classes == ("a", "b", "c", "d")


def test_a_copy_of_one_of_the_eleven_may_have_another_name(open_it):
    copy = dataclasses.replace(tasks_lib.TASKS["depth"], name="distance")
    record = {"image": np.zeros((*SIZE, 3), np.uint8), "targets": {}}
    record["targets"]["distance"] = np.ones((*SIZE, 1), np.float32)
    assert "distance" in open_it(train=[record], tasks=[copy]).info.tasks


def test_a_dict_of_kinds_declares_too(open_it):
    record = {"image": np.zeros((*SIZE, 3), np.uint8), "targets": {"age": 3.5}}
    info = open_it(train=[record], tasks={"age": "numbers"}).info
    assert info.tasks["age"].places == 0
    assert info.tasks["age"].kind == "numbers"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": []}, 'declare it: "tasks": [Task(...)]'),
        ({"tasks": "flow"}, '"tasks" must be a list such as'),
        ({"tasks": {"flow": "number"}}, "to a kind, one of classes"),
        ({"tasks": {"flow": TASKS[0]}}, "must map each name to a Task of that name"),
        ({"tasks": [*TASKS, TASKS[0]]}, "two are named parts"),
        ({"tasks": [Task("Depth")]}, "must not be called Depth"),
        ({"tasks": [Task("flow", aliases=["d"])]}, "'d' of flow means depth too"),
        (
            {"tasks": [Task("flow", aliases=["Aim"]), Task("aim")]},
            "'Aim' of flow means aim too; choose another alias",
        ),
        ({"class_weights": {"flow": [1]}}, "must be for tasks with classes"),
        ({"ignore_label": {"seen": 0}}, "must be for tasks with classes; got seen"),
        ({"class_weights": {"scene": [1]}}, "each of the 3 classes of scene; got [1]"),
        ({"mean": [0.5]}, '"mean" must be one number for each of the 3 channels'),
    ],
)
def test_wrong_facts(open_it, given, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        opened(open_it, **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"flow": np.zeros((2, 3, 2))}, "flow must be numbers of shape [4, 6, 2]"),
        ({"scene": np.array([0, 1, 0])}, "give its argmax"),
        ({"scene": 3}, "scene must be below the number of classes, 3, but example 0"),
        ({"scene": 0.5}, "whole numbers of shape [], the class of the image"),
        ({"seen": np.array([0, 2, 0, 0])}, "1 or 0 for each of its"),
        ({"seen": np.array([0, 1])}, "seen must be numbers of shape [4]"),
        ({"angle": np.nan}, "angle must be finite where it is known, but example 0"),
        ({"parts": np.zeros((2, 2), int)}, "flatten another grid to one"),
        ({"angle": np.zeros((2, 2))}, "flatten another grid to one"),
        ({"seen": np.zeros((0, 4))}, "seen must have values, but that of example 0 of"),
        ({"scene": np.zeros(0, int)}, "scene must have values, but that of example 0"),
        ({"angle": np.zeros(0)}, "angle must have values, but that of example 0"),
    ],
)
def test_wrong_targets(open_it, targets, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        open_it(train=[example(targets=targets)], tasks=TASKS)
    assert "\n" not in str(error.value)


def test_many_channels_are_told_on_one_line(open_it):
    image, target = np.zeros((*SIZE, 3), np.uint8), np.full((*SIZE, 40), np.nan)
    message = r"example 0 of train has \[nan( nan){39}\] at row 0, column 0; put zeros"
    with pytest.raises(InputError, match=message):
        open_it(train=[(image, {"many": target})], tasks=[Task("many", channels=40)])


def test_all_targets_of_a_task_have_one_shape(open_it):
    record = example(1, {"joints": np.zeros((16, 2))})
    with pytest.raises(InputError, match=r"shape \[17, 2\], but that of example 1"):
        open_it(train=[example(), record], tasks=TASKS)
    with pytest.raises(
        InputError, match="joints must have the same shape, but those of val"
    ):
        open_it(train=[example()], validation=[record], tasks=TASKS)


@pytest.mark.parametrize("shape", [(4,), (*SIZE, 4)])
def test_classes_that_nobody_has_counted_are_no_one_hot_vectors(open_it, shape):
    rows = np.eye(4, dtype=int)
    targets = [np.broadcast_to(rows[i], shape) for i in range(4)]

    def open_targets(values, **settings):
        train = [{"image": example()["image"], "targets": {"what": t}} for t in values]
        return open_it(train=train, tasks=[Task("what", kind="classes", **settings)])

    message = f"shape {list(shape)} with a one for each class; give its argmax (or, if "
    message += f"these are 4 places, say places={len(shape)} of the task)."
    with pytest.raises(InputError, match=re.escape(message)):
        open_targets(targets)
    places = len(shape)
    assert open_targets(targets, places=places).info.tasks["what"].channels == 2
    more_targets = [*targets, np.ones(shape, int)]  # These cannot be one-hot.
    assert open_targets(more_targets).info.tasks["what"].places == places


@pytest.mark.parametrize("shape", [(4,), (*SIZE, 4)])
@pytest.mark.parametrize("first", [True, False])
def test_masked_vectors_are_passed_over_in_the_search_for_one_hot_ones(
    open_it, shape, first
):
    rows = np.eye(4, dtype=int)

    def open_pairs(pairs):
        train = [
            {
                "image": example()["image"],
                "targets": {"what": target},
                "masks": {"what": np.broadcast_to(mask, shape)},
            }
            for target, mask in pairs
        ]
        train = train if first else train[::-1]
        return open_it(train=train, tasks=[Task("what", kind="classes", channels=None)])

    zeros = np.zeros(shape, int)
    vectors = [np.broadcast_to(row, shape) for row in rows]
    with pytest.raises(InputError, match="with a one for each class; give its argmax"):
        open_pairs([(zeros, 0), *[(vector, 1) for vector in vectors]])
    assert open_pairs([(zeros, 1), *[(vector, 1) for vector in vectors]])
    partial_vector = vectors[1].copy()
    mask = np.ones(shape, int)
    if len(shape) > 1:  # One pixel of a map is not labelled.
        partial_vector[0, 0], mask[0, 0] = 0, 0
    with pytest.raises(InputError, match="with a one for each class; give its argmax"):
        open_pairs([(partial_vector, mask), *[(vector, 1) for vector in vectors]])


def test_lazy_classes_must_be_named(open_it):
    with pytest.raises(InputError, match="the number of classes of seg"):
        open_it(train=Sequence([example()]), tasks=TASKS)
    facts = {"classes": ["a", "b", "c", "d", "e"], "tasks": TASKS}
    source = open_it(train=Sequence([example()]), **facts)
    assert source.info.tasks["parts"].classes == ("a", "b", "c", "d", "e")


# Equal values for equal meanings.


@pytest.mark.parametrize("name", ["autoencoder", "clean"])
def test_pictures_as_bytes_are_those_as_floats(open_it, name):
    levels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    records = [
        {"image": levels, "targets": {name: target}}
        for target in (levels, levels / 255)
    ]
    source = open_it(train=records, tasks=[Task("clean", kind="image")])
    target = source.columns("train").targets[name]
    np.testing.assert_array_equal(target[0], np.float32(levels) / np.float32(255))
    np.testing.assert_allclose(target[0], target[1], rtol=1e-6)
    records[0]["targets"] = {name: levels.astype(int)}
    with pytest.raises(InputError, match=f"{name} must be uint8 or floats of shape"):
        open_it(train=records[:1], tasks=[Task("clean", kind="image")])


def test_bytes_of_other_kinds_are_numbers(open_it):
    record = {"image": np.zeros((*SIZE, 3), np.uint8)}
    record["targets"] = {"depth": np.full(SIZE, 200, np.uint8)}
    assert (open_it(train=[record]).columns("train").targets["depth"] == 200).all()


def test_directions_have_length_one(open_it):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(*SIZE, 3))
    vectors[0, 0], vectors[0, 1] = 0, np.nan
    mask = np.ones(SIZE)
    mask[0, 1] = 0
    unit = np.zeros((*SIZE, 2), np.float32)
    unit[..., 1] = np.float32(1 - 1e-6)
    record = {
        "image": np.zeros((*SIZE, 3), np.uint8),
        "targets": {"normal": vectors, "way": unit, "heading": [3.0, -4.0]},
        "masks": {"normal": mask},
    }
    tasks = [Task(n, kind="directions", channels=2) for n in ("way", "heading")]
    targets = open_it(train=[record], tasks=tasks).columns("train").targets
    lengths = np.sqrt((vectors**2).sum(-1, keepdims=True))
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(vectors / lengths)
    np.testing.assert_allclose(targets["normal"][0], expected, atol=1e-6)
    np.testing.assert_allclose(targets["heading"][0], [0.6, -0.8], rtol=1e-6)
    # Lengths that differ from 1 by rounding stay to the bit.
    np.testing.assert_array_equal(targets["way"][0], unit)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_pictures_of_directions_are_no_vectors(open_it, kind):
    image = np.zeros((*SIZE, 3), np.uint8)
    targets = {"normal": np.full((*SIZE, 3), 128, kind)}
    with pytest.raises(
        InputError, match=r"normal must be vectors.*as 2 \* v / 255 - 1"
    ):
        open_it(train=[(image, targets)])
    masks = {"normal": np.zeros(SIZE)}
    source = open_it(train=[(image, targets, masks)])
    assert (source.columns("train").targets["normal"] == 0).all()


# Pictures of other channels.


@pytest.mark.parametrize("channels", [1, 4])
def test_autoencoder_targets_have_the_channels_of_the_image(open_it, channels):
    image = np.random.default_rng(0).random((*SIZE, channels), np.float32)
    source = open_it(train=[(image, {"autoencoder": 1 - image})])
    assert source.info.tasks["autoencoder"].channels == channels
    batch = batching.gather(source.columns("train"), source.info.tasks, [0])
    np.testing.assert_array_equal(batch["targets"]["autoencoder"][0], 1 - image)
    grey = [Task("autoencoder", kind="image", channels=2)]  # Declared channels count.
    with pytest.raises(InputError, match=r"of shape \[4, 6, 2\], but"):
        open_it(train=[(image, {"autoencoder": image})], tasks=grey)


@pytest.mark.parametrize("shape", [SIZE, (*SIZE, 1)])
def test_grey_images(open_it, shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, *shape), np.uint8)
    source = open_it(train=[(image, {}) for image in images])
    info = source.info
    assert info.image_shape == (*SIZE, 1)
    np.testing.assert_allclose(info.mean, [images.mean() / 255], rtol=1e-6)
    np.testing.assert_allclose(info.std, [images.std() / 255], rtol=1e-6)
    assert tuple(info.tasks) == ("edge_texture", "keypoints2d", "autoencoder")
    assert info.tasks["autoencoder"].channels == 1
    batch = batching.gather(source.columns("train"), info.tasks, [1])
    grey = images[1].reshape(1, *SIZE, 1) / 255
    np.testing.assert_allclose(batch["image"], grey, atol=1e-6)
    np.testing.assert_allclose(batch["targets"]["autoencoder"], grey, atol=1e-6)
    # Grey as colour has the same edges: 0.299 + 0.587 + 0.114 = 1.
    colour = picture.compute("edge_texture", np.repeat(grey, 3, -1))
    np.testing.assert_allclose(batch["targets"]["edge_texture"], colour, atol=1e-5)


def test_colour_with_depth_stays_floats(open_it):
    images = np.random.default_rng(0).random((5, *SIZE, 4))
    source = open_it(train=[(image, {"scene": 0}) for image in images],
                     tasks=[Task("scene", kind="classes", channels=2)])  # fmt: skip
    info = source.info
    assert source.columns("train").images.dtype == np.float32
    np.testing.assert_allclose(info.mean, images.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(info.std, images.std((0, 1, 2)), rtol=1e-5)
    assert tuple(info.tasks) == ("autoencoder", "scene")
    batch = batching.gather(source.columns("train"), info.tasks, [2, -1])
    np.testing.assert_allclose(batch["image"][0], images[2], rtol=1e-6)
    np.testing.assert_array_equal(batch["targets"]["autoencoder"], batch["image"])
    np.testing.assert_allclose(
        batching.first_images(source.columns("train"), 1)[0], images[0], rtol=1e-6
    )


# Mirrors and crops.


def test_maps_are_mirrored_and_cropped_and_all_else_as_the_task_says(open_it):
    source, records = opened(open_it)
    tasks = source.info.tasks.select(
        ("seg", "scene", "seen", "flow", "angle", "joints")
    )
    (batch,) = batching.train_batches(
        source.columns("train"),
        tasks,
        batch_size=4,
        seed=2,
        first_step=0,
        last_step=1,
        augment=Augment(flip=True, crop=(3, 6)),
    )
    flips = 0
    for row, i in enumerate(batch["index"].numpy()):
        expected = records[i]["targets"]
        got = {name: batch["targets"][name][row].numpy() for name in tasks}
        assert got["scene"] == expected["scene"]
        np.testing.assert_array_equal(got["seen"], expected["seen"])
        flip = got["joints"][0, 0] != np.float32(expected["joints"][0, 0])
        flips += flip
        sign = np.array([-1 if flip else 1, 1], np.float32)
        np.testing.assert_allclose(got["joints"], expected["joints"] * sign, rtol=1e-6)
        np.testing.assert_allclose(
            got["angle"], [expected["angle"] * sign[0]], rtol=1e-6
        )
        assert got["flow"].shape == (3, 6, 2)
        flow = expected["flow"][:, :: int(sign[0])] * sign
        rows = [flow[top : top + 3] for top in (0, 1)]
        assert any(np.allclose(got["flow"], window, rtol=1e-6) for window in rows)
    assert 0 < flips < 4


def test_a_mirror_must_be_known():
    task = Task("joints", channels=2, places=1)
    with pytest.raises(InputError, match=r"joints must say .* neither .*--noflip"):
        Augment().check(8, 8, [task])
    Augment(flip=False).check(8, 8, [task])
    words = Task("words", classes=("a", "b"), places=1)
    with pytest.raises(InputError, match=r"words, .* neither .*; train with --noflip"):
        Augment().check(8, 8, [words])
    heading = Task("heading", kind="directions", channels=2)
    with pytest.raises(InputError, match="heading must say .* directions point"):
        Augment().check(8, 8, [heading])
    Augment().check(8, 8, [heading.bound(mirror=(-1, 1))])


def test_noise_has_the_shape_of_the_targets(open_it):
    source, _ = opened(open_it, count=200)
    names = ("scene", "seen", "flow", "angle", "joints", "parts")
    columns = noise_targets.replace(source.columns("train"), names, source.info, 0)
    rows = np.arange(200)
    for name in names:
        target = source.columns("train").targets[name]
        assert columns.targets[name][rows].shape == target.shape
    scene = columns.targets["scene"][rows]
    assert set(scene) == {0, 1, 2}
    assert abs((scene == 0).mean() - 1 / 3) < 0.15
    seen = columns.targets["seen"][rows]
    assert set(np.unique(seen)) == {0, 1}
    assert abs(seen.mean() - 0.5) < 0.08
    assert columns.targets["parts"][rows].max() == 4


def test_the_names_of_a_data_set_that_is_not_open():
    assert data.canonical_tasks("my:data", "s,flow") == ("seg", "flow")
    with pytest.raises(InputError, match="Unknown task 'flow'"):
        data.canonical_tasks("rooms", "s,flow")


def test_a_data_set_put_into_the_table_brings_tasks_too(open_it, monkeypatch):
    source, _ = opened(open_it)
    monkeypatch.setitem(data.DATASETS, "mine", lambda **settings: source)
    assert data.open_source("mine", tasks=("flow",)).info.tasks["flow"].channels == 2
    assert tuple(next(iter(data.load("mine", "train", tasks="flow")))["targets"]) == (
        "flow",
    )


def test_an_unknown_name_is_said_with_those_that_there_are(open_it):
    opened(open_it)
    with pytest.raises(InputError, match=r"no task 'flwo'; it has seg.*flow"):
        data.open_source("own_tasks:examples", tasks=("flwo",))
    examples = data.load("own_tasks:examples", "train", tasks=("scene", "s"))
    first_example = next(iter(examples))
    assert tasks_lib.TASKS["seg"].name in first_example["targets"]
    assert first_example["targets"]["scene"].shape == ()
