# SPDX-License-Identifier: Apache-2.0
"""A user's own data: batches and facts, and one sentence for each mistake."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import data
from mtr_tf import errors
from mtr_tf import tasks
from mtr_tf.config.train import TrainConfig
from mtr_tf.data import batching
from mtr_tf.data.custom import facts
from mtr_tf.data.custom import readers
from mtr_tf.data.custom import reading
from mtr_tf.errors import InputError
from mtr_tf.runs import directory

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "own_data.md"


def example(i=0, **changes):
    """An 8 x 6 example of seg (3 classes) and depth, another one for each `i`."""
    rng = np.random.default_rng(i)
    record = {
        "image": rng.integers(0, 256, (8, 6, 3), np.uint8),
        "targets": {
            "seg": rng.integers(0, 3, (8, 6)),
            "depth": rng.uniform(1, 5, (8, 6)),
        },
    }
    return record | changes


class Lazy:
    """A sequence that records which examples are read."""

    def __init__(self, n=5, wrong=None):
        self.n, self.wrong, self.asked = n, wrong, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.asked.append(i)
        return self.wrong if i == self.n - 1 and self.wrong else example(i)


@pytest.fixture
def open_it(monkeypatch):
    """Opens a data set that the function own_data:examples returns."""

    def open_it(contents, **options):
        module = types.ModuleType("own_data")
        module.examples = contents if callable(contents) else lambda: contents
        monkeypatch.setitem(sys.modules, "own_data", module)
        return data.open_source("own_data:examples", **options)

    return open_it


@pytest.fixture
def few(monkeypatch):
    """Facts are derived from the first example alone."""
    monkeypatch.setattr(facts, "_SAMPLE", 1)
    monkeypatch.setattr(facts, "_PAINTED", 1)


# Batches and facts.


def as_dataset(examples):
    return tf.data.Dataset.from_generator(
        lambda: iter(examples),
        output_signature=tf.nest.map_structure(
            lambda a: tf.TensorSpec(a.shape, a.dtype), examples[0]
        ),
    )


@pytest.mark.parametrize(
    "form",
    [list, tuple, iter, lambda seq: (e for e in seq), as_dataset, lambda _: Lazy()],
    ids=["list", "tuple", "iterator", "generator", "dataset", "lazy"],
)
def test_all_forms_give_the_same_batches(open_it, form):
    records = [example(i) for i in range(5)]
    source = open_it({"train": form(records), "classes": ["a", "b", "c"]})
    assert source.info.splits == {"train": 5}
    batch = batching.gather(source.columns("train"), ("seg", "depth"), [3, -1, 0])
    for row, i in ((0, 3), (2, 0)):
        np.testing.assert_allclose(
            batch["image"][row], records[i]["image"] / 255, atol=1e-7
        )
        targets = records[i]["targets"]
        np.testing.assert_array_equal(batch["targets"]["seg"][row], targets["seg"])
        np.testing.assert_allclose(
            batch["targets"]["depth"][row, ..., 0], targets["depth"], rtol=1e-6
        )
        assert batch["masks"]["seg"][row].all()
    assert not batch["masks"]["depth"][1].any()


def test_a_generator_may_fill_the_same_arrays_again(open_it):
    """As `fit` allows, which consumes each example before it asks for the next."""
    records = [example(i, inputs={"gain": np.float32([i])}) for i in range(3)]
    for record in records:
        record["targets"] |= {"autoencoder": record["image"]}
        record["masks"] = {"depth": np.uint8(record["image"][..., 0] > 99)}
    records = [tf.nest.map_structure(np.asarray, record) for record in records]

    def refill():
        arrays = tf.nest.map_structure(np.empty_like, records[0])
        for record in records:
            tf.nest.map_structure(np.copyto, arrays, record)
            yield arrays

    generator_columns = open_it({"train": refill()}).columns("train")
    list_columns = open_it({"train": records}).columns("train")
    for value, expected in (
        (generator_columns.images, list_columns.images),
        (generator_columns.targets, list_columns.targets),
        (generator_columns.masks, list_columns.masks),
        (generator_columns.inputs, list_columns.inputs),
    ):
        tf.nest.map_structure(np.testing.assert_array_equal, value, expected)


def test_pairs_as_for_fit(open_it):
    record = example()
    mask = np.zeros((8, 6), np.float32)
    mask[2:] = 1
    source = open_it(
        {
            "train": [(record["image"] / 255, record["targets"])],
            "test": [(record["image"], record["targets"], {"depth_zbuffer": mask})],
        }
    )
    np.testing.assert_array_equal(source.columns("train").images[0], record["image"])
    test = source.columns("test")
    np.testing.assert_array_equal(test.masks["depth"][0], mask > 0)
    assert not test.targets["depth"][0, :2].any()


def test_facts_are_found_out(open_it):
    records = [example(i, name=f"n{i}") for i in range(37)]
    source = open_it({"train": records, "validation": records[:1]})
    info = source.info
    images = np.stack([e["image"] for e in records]) / 255
    np.testing.assert_allclose(info.mean, images.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(info.std, images.std((0, 1, 2)), rtol=1e-6)
    assert info.name == "own_data:examples"
    assert info.image_shape == (8, 6, 3)
    assert info.classes == ("class_0", "class_1", "class_2")
    assert len(set(info.colors)) == 3
    assert tuple(info.tasks) == (
        "seg",
        "depth",
        "edge_texture",
        "keypoints2d",
        "autoencoder",
    )
    assert 1 <= info.ranges["depth"][0] < info.ranges["depth"][1] <= 5
    assert list(source.columns("train").names) == [f"n{i}" for i in range(37)]


def test_facts_can_be_given(open_it):
    given_facts = {
        "classes": ["a", "b", "c", "d"],
        "colors": [(i, 0, 0) for i in range(4)],
        "class_weights": [1, 2, 3, 0.5],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "ranges": {"depth": (0, 9)},
        "units": {"depth": "px"},
    }
    info = open_it({"train": [example()], **given_facts}).info
    assert info.num_classes == 4
    assert info.colors[3] == (3, 0, 0)
    assert info.class_weights == (1, 2, 3, 0.5)
    assert (info.mean, info.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert info.ranges["depth"] == (0, 9)
    assert info.units == {"depth": "px"}


def test_facts_may_be_arrays(open_it):
    given_facts = {
        "classes": ["a", "b", "c"],
        "colors": np.arange(9).reshape(3, 3),
        "class_weights": np.ones(3, np.float32),
        "mean": np.full(3, 0.5, np.float32),
        "std": np.full(3, 0.5),
        "ranges": {"depth": np.array([0, 9]), "autoencoder": (np.float32(0), 1)},
    }
    info = open_it({"train": [example()], **given_facts}).info
    assert info.colors == info.tasks["seg"].colors == ((0, 1, 2), (3, 4, 5), (6, 7, 8))
    assert json.loads(json.dumps(info.ranges["depth"])) == [
        0,
        9,
    ]  # As in a run's files.
    assert json.loads(json.dumps(info.ranges["autoencoder"])) == [0, 1]


def labelled(*labels, **changes):
    """An 8 x 6 example whose pixels repeat these labels."""
    seg = np.resize(labels, (8, 6))
    return example(targets={"seg": seg}) | changes


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("ignored", [255, -1, [255, -1], (254, np.uint8(255))])
def test_labels_that_mean_none_are_masked(open_it, ignored, lazy):
    values = ignored if isinstance(ignored, list | tuple) else [ignored]
    records = [labelled(0, 2, 1, *values) for _ in range(3)]
    contents = {"train": records, "ignore_label": ignored}
    if lazy:
        contents |= {"train": LazyList(records), "classes": ["a", "b", "c"]}
    source = open_it(contents)
    assert source.info.num_classes == 3
    columns = source.columns("train")
    rows = np.arange(3)
    valid = ~np.isin([e["targets"]["seg"] for e in records], values)
    np.testing.assert_array_equal(columns.masks["seg"][rows], valid)
    expected = np.where(valid, [e["targets"]["seg"] for e in records], 0)
    np.testing.assert_array_equal(columns.targets["seg"][rows], expected)


class LazyList(collections.UserList):
    """A list that is read like any other sequence."""


def test_tasks_know_the_classes_that_mean_none(open_it):
    names = ["void", "one", "two"]
    scene = tasks.Task("scene", kind="classes", classes=names)
    record = labelled(0, 1, 2)
    record["targets"]["scene"] = 1
    contents = {"train": [record], "classes": names, "tasks": [scene]}
    source_tasks = open_it({**contents, "ignore_label": [255, 2, 0, 0, -1]}).info.tasks
    assert source_tasks["seg"].ignored == (0, 2)
    assert source_tasks["scene"].ignored == ()  # A task without mean IoU.
    assert open_it({**contents, "ignore_label": 255}).info.tasks["seg"].ignored == ()


def test_labels_that_int32_cannot_hold_may_mean_none(open_it):
    label = np.uint32(2**32 - 1)
    record = example(targets={"seg": np.resize(np.uint32([0, 1, label]), (8, 6))})
    columns = open_it({"train": [record], "ignore_label": label}).columns("train")
    np.testing.assert_array_equal(columns.masks["seg"][0], record["targets"]["seg"] < 2)
    assert columns.targets["seg"].max() == 1


def test_numbers_may_be_of_numpy_and_names_of_any_bytes(open_it):
    record = example(name=b"caf\xe9")
    source = open_it({"train": [record], "readers": np.int64(2)})
    assert source.columns("train").names == ["caf\N{REPLACEMENT CHARACTER}"]


def test_masks_may_be_none(open_it):
    record = example()
    records = [record | {"masks": None}, (record["image"], record["targets"], None)]
    assert not open_it({"train": records}).columns("train").masks


def test_masked_labels_leave_no_gap(open_it):
    record = labelled(1, 0, 255)
    mask = record["targets"]["seg"] != 255
    source = open_it({"train": [record | {"masks": {"seg": mask}}]})
    assert source.info.classes == ("class_0", "class_1")
    source = open_it({"train": [labelled(0)], "test": [labelled(1, 2)]})
    assert source.info.num_classes == 3  # Of all splits together.
    source = open_it({"train": [labelled(0, 3)], "classes": list("abcd")})
    assert source.info.num_classes == 4  # Named classes may be absent.


@pytest.mark.parametrize("form", [list, LazyList])
def test_inputs_are_packed_in_one_order_in_all_splits(open_it, form):
    record = example(inputs={"gain": [2.0], "camera": np.eye(3)})
    reverse_record = example(inputs=dict(reversed(record["inputs"].items())))
    contents = {
        "train": form([record]),
        "test": form([reverse_record]),
        "classes": list("abc"),
    }
    source = open_it(contents)
    train, test = source.columns("train"), source.columns("test")
    assert (
        train.layout.shapes
        == test.layout.shapes
        == (("gain", (1,)), ("camera", (3, 3)))
    )
    rows = np.arange(1)
    np.testing.assert_array_equal(
        batching.images_of(train, rows), batching.images_of(test, rows)
    )
    partial_record = example(inputs={"gain": [2.0]})
    for splits in (
        {"train": [record], "test": [partial_record]},
        {"train": [partial_record], "test": [record]},
    ):
        with pytest.raises(InputError, match="must have the same inputs with the same"):
            open_it(splits)


def test_groups_are_handed_on(open_it):
    records = [example(i) for i in range(4)]
    contents = {
        "train": records,
        "test": records[:2],
        "groups": {"train": list("abba")},
    }
    source = open_it(contents)
    assert source.columns("test").groups is None
    groups = source.columns("train").groups
    assert (list(groups.of), groups.name, groups.frames) == (
        list("abba"),
        "groups",
        False,
    )
    assert open_it(contents | {"frames": True}).columns("train").groups.frames
    for values in (np.array(list("abba"), object), np.array([1, 2, 2, 1], object)):
        contents["groups"] = {"train": values}  # As from pandas.
        assert list(open_it(contents).columns("train").groups.of) == list(values)


@pytest.mark.parametrize("lazy", [False, True])
def test_tasks_without_any_target_are_known_where_masks_are(open_it, lazy):
    records = [example(i, masks={"depth": np.zeros((8, 6))}) for i in range(3)]
    form = LazyList if lazy else list
    contents = {
        "train": form(records),
        "test": [*records, example()],
        "classes": list("abc"),
    }
    assert open_it(contents).unknown == {"train": [] if lazy else ["depth"], "test": []}


def test_only_the_asked_tasks_are_kept(open_it):
    source = open_it({"train": [example()]}, tasks=["d"])
    assert set(source.columns("train").targets) == {"depth"}
    with pytest.raises(InputError, match="has no task 'normal'; it has seg, depth"):
        open_it({"train": [example()]}, tasks=["n"])


def test_lazy_examples_are_asked_for_when_needed(open_it, monkeypatch):
    monkeypatch.setattr(facts, "_SAMPLE", 2)
    monkeypatch.setattr(facts, "_PAINTED", 2)
    sequence = Lazy(100)
    source = open_it({"train": sequence, "classes": ["a", "b", "c"]})
    assert set(sequence.asked) <= {0, 50}
    sequence.asked.clear()
    columns = source.columns("train")
    assert len(columns) == 100
    batching.gather(columns, ("seg", "depth"), [7, 99, 7])
    assert sequence.asked == [7, 99, 7]  # Once for all columns.
    assert columns.targets["depth"][:2].shape == (2, 8, 6, 1)


class Guarded(Lazy):
    """A sequence that, while on guard, is read by `threads` threads at once."""

    def __init__(self, n, threads, number=0):
        super().__init__(n)
        self.number, self.inside = number, []
        self.barrier = threading.Barrier(threads, timeout=60)
        self.on_guard, self.broken = False, ()

    def __getitem__(self, i):
        if self.on_guard:
            self.barrier.wait()
        self.inside.append(i)
        if i in self.broken:
            raise OSError(f"no such file as {i}.png")
        time.sleep(0.001 * (i % 3))  # Reads end in another order than they start.
        exclusive = self.inside == [i]
        self.inside.remove(i)
        if self.barrier.parties == 1 and not exclusive:
            raise OSError("somebody else is reading")
        return example(i + self.number)


@pytest.mark.parametrize("readers", [1, 4])
def test_readers_change_neither_order_nor_bits(open_it, readers):
    """Four threads read at once, or one alone, whoever reads which split."""
    sequences = {s: Guarded(12, readers, n) for s, n in (("train", 0), ("test", 50))}
    if readers == 1:
        # The splits may share a file.
        sequences["test"].inside = sequences["train"].inside
    source = open_it(sequences | {"classes": ["a", "b", "c"], "readers": readers})
    rows = [4, 11, 3, 8, 0, 6, 2, 9]
    for sequence in sequences.values():
        sequence.on_guard = True
    for split, number in (("train", 0), ("test", 50)):
        columns = source.columns(split)
        result = batching.gather(columns, ("seg", "depth"), rows)
        records = [example(i + number) for i in rows]
        images = np.stack([e["image"] for e in records])
        np.testing.assert_array_equal(result["image"], images.astype("f4") / 255)
        depth = np.stack([e["targets"]["depth"] for e in records]).astype("f4")
        np.testing.assert_array_equal(result["targets"]["depth"][..., 0], depth)
    jobs = [source.columns(split) for split in sequences for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        result = list(pool.map(lambda c: c.images[np.array(rows)], jobs))
    assert all((f == result[0]).all() for f in result[:4])
    assert all((f == result[4]).all() for f in result[4:])


def test_what_a_reader_raises_names_the_first_example_that_was_asked_for(open_it):
    sequence = Guarded(12, 2)
    source = open_it({"train": sequence, "classes": ["a", "b", "c"], "readers": 2})
    sequence.broken = (5, 7)
    message = r"^Example 7 of train cannot be read: OSError: no such file as 7.png\.$"
    with pytest.raises(InputError, match=message):
        source.columns("train").images[np.array([1, 7, 2, 5, 11])]
    sequence.broken = ()
    np.testing.assert_array_equal(
        source.columns("train").images[np.array([5])][0], example(5)["image"]
    )


def test_slow_reading_by_one_is_told_once(monkeypatch):
    messages = []
    monkeypatch.setattr(readers.logging, "info", lambda *words: messages.append(words))
    monkeypatch.setattr(readers, "_SLOW_SECONDS", -1.0)
    for count, expected in ((1, 1), (2, 0)):
        messages.clear()
        pool = readers.Readers(count)
        for _ in range(4):
            assert pool.read(lambda row: -row, range(32)) == [-row for row in range(32)]
        assert len(messages) == expected
    readers.Readers(1).read(abs, range(63))
    assert not messages


def test_readers_end_with_the_data_set():
    # Threads of earlier tests may end meanwhile.
    old_threads = set(threading.enumerate())
    pool = readers.Readers(3)
    threads = [
        t for t in set(threading.enumerate()) - old_threads if t.name == "reader"
    ]
    assert len(threads) == 3
    assert pool.read(lambda row: row * row, [3, 1, 2]) == [9, 1, 4]
    assert all(thread.is_alive() for thread in threads)
    del pool
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_data_dir_is_handed_over(open_it):
    def examples(data_dir):
        return {"train": [example(name=data_dir)]}

    assert open_it(examples, data_dir="there").columns("train").names == ["there"]
    with pytest.raises(
        InputError, match="--data_dir is passed to own_data:examples as the"
    ):
        open_it({"train": [example()]}, data_dir="there")


def test_the_size_is_that_of_the_examples(open_it):
    open_it({"train": [example()]}, image_size=(8, 6))
    with pytest.raises(
        InputError, match="has images of 8x6, but --image_size or the model needs 16x6"
    ):
        open_it({"train": [example()]}, image_size=(16, 6))


def test_a_run_has_a_plain_name():
    config = TrainConfig(dataset="my.data:examples", tasks=("seg",), model="tiny")
    assert (
        str(directory.default_workdir(config)) == "runs/my-data-examples-tiny-seg-seed0"
    )


# Mistakes.


def changed(kind, task, value):
    record = example()
    record.setdefault(kind, {})[task] = value
    return record


def nan_at(i, j):
    value = np.ones((8, 6), np.float32)
    value[i, j] = np.nan
    return value


IMAGE = np.zeros((8, 6, 3), np.uint8)
WRONG_EXAMPLES = {
    "no image": ({"targets": {}}, "must have 'image', but example 1 of train has none"),
    "typo": (example(target={}), "has 'target'. Did you mean 'targets'?"),
    "a number": (3, "but example 1 of train is of type int"),
    "an array": (IMAGE, "is an array of shape [8, 6, 3]"),
    "batch": (
        example(image=IMAGE[None]),
        "one by one, not in batches, but the image of example 1 of train has shape",
    ),
    "grey": (
        example(image=IMAGE[..., :1]),
        "the same size, but example 1 of train is 8x6x1 and the first one 8x6;",
    ),
    "channels first": (
        example(image=np.moveaxis(IMAGE, -1, 0)),
        "[height, width, channels], but that of example 1 of train has [3, 8, 6], with "
        "its channels first",
    ),
    "levels": (
        example(image=IMAGE + np.float32(255)),
        "in [0, 1], but that of example 1 of train goes from 255 to 255; rescale it",
    ),
    "image with nan": (example(image=IMAGE * np.nan), "goes from nan to nan"),
    "int64 image": (example(image=IMAGE.astype(int)), "uint8, or float in [0, 1], but"),
    "targets as array": (example(targets=IMAGE), 'by task, such as {"seg": ...}'),
    "unknown task": (
        changed("targets", "sag", 1),
        "In the targets of example 1 of train: Unknown task 'sag'. Did you mean 'seg'",
    ),
    "same task twice": (changed("targets", "s", 1), "names 'seg' 2"),
    "float labels": (
        changed("targets", "seg", np.zeros((8, 6))),
        "whole numbers of shape [8, 6], the class of each pixel, but that of example 1 "
        "of train is float64",
    ),
    "one-hot": (
        changed("targets", "seg", np.zeros((8, 6, 3), int)),
        "is int64 of shape [8, 6, 3]; convert it (one-hot: argmax)",
    ),
    "negative label": (
        changed("targets", "seg", np.full((8, 6), -1)),
        "must not be negative, but example 1 of train has -1; where there is no label",
    ),
    "void label": (
        changed("targets", "seg", np.full((8, 6), 255)),
        "below the number of classes, 3, but example 1 of train has 255",
    ),
    "channels": (
        changed("targets", "depth", np.zeros((8, 6, 2))),
        "depth must be numbers of shape [8, 6, 1], but that of example 1 of train",
    ),
    "words": (
        changed("targets", "depth", np.full((8, 6), "x")),
        "depth must be numbers of shape [8, 6, 1], but",
    ),
    "nan": (
        changed("targets", "depth", nan_at(2, 5)),
        "depth must be finite where it is known, but example 1 of train has [nan] at "
        "row 2, column 5",
    ),
    "mask's shape": (
        changed("masks", "seg", np.ones((6, 8))),
        "A mask must have its image's height and width, [8, 6]",
    ),
    "mask with nan": (changed("masks", "seg", nan_at(0, 0)), "with NaN in it"),
    "mask of words": (
        changed("masks", "seg", np.full((8, 6), "x")),
        "but that for seg of example 1 of train has shape [8, 6] and type <U1.",
    ),
    "masked values": (
        changed("targets", "depth", np.ma.masked_less(nan_at(0, 0), 2)),
        "The target of depth must be a plain array, but that of example 1 of train has "
        'masked values; fill them in, and say where a target is not known by "masks".',
    ),
    "masks as array": (
        example(masks=np.ones((8, 6))),
        "but those of example 1 of train are an array of shape [8, 6]",
    ),
    "ragged": (
        changed("targets", "depth", [[1.0], [1.0, 2.0]]),
        "The target of depth must be an array, but that of example 1 of train cannot",
    ),
    "ragged input": (
        example(inputs={"camera": [[1.0], [1.0, 2.0]]}),
        "The input camera must be an array, but that of example 1 of train cannot",
    ),
    "a number as name": (
        changed("targets", 0, np.ones((8, 6))),
        "In the targets of example 1 of train: Unknown task '0'",
    ),
    "a long label": (
        changed("targets", "seg", np.full((8, 6), 2**32 + 1)),
        "below the number of classes, 3, but example 1 of train has 4294967297",
    ),
    "a long label without sign": (
        changed("targets", "seg", np.full((8, 6), 2**32 - 1, np.uint32)),
        "below the number of classes, 3, but example 1 of train has 4294967295",
    ),
    "mask alone": (
        changed("masks", "normal", np.ones((8, 6))),
        "example 1 of train has a mask for normal and no target",
    ),
    "other size": (
        (np.zeros((4, 6, 3), np.uint8), {"seg": np.zeros((4, 6), int)}),
        "same size, but example 1 of train is 4x6 and the first one 8x6",
    ),
    "other tasks": (
        (IMAGE, {"seg": np.zeros((8, 6), int)}),
        "the same tasks, but example 1 of train has seg and the first one depth, seg",
    ),
}


@pytest.mark.parametrize("mistake", WRONG_EXAMPLES)
def test_wrong_examples(open_it, few, mistake):
    value, message = WRONG_EXAMPLES[mistake]
    classes = ["a", "b", "c"]
    with pytest.raises(InputError, match=re.escape(message)) as error:
        open_it({"train": [example(), value], "classes": classes})
    assert "example 1 of train" in str(error.value)
    assert "\n" not in str(error.value)
    if not isinstance(value, np.ndarray | int):
        source = open_it({"train": Lazy(9, value), "classes": classes})
        with pytest.raises(InputError, match="example 8 of train"):
            source.columns("train").images[np.array([8])]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            None,
            "must return a dict such as {'train': ..., 'validation': ...}, but",
        ),
        ({"trian": []}, "but returned 'trian'. Did you mean 'train'?"),
        (
            {},
            "at least one split of train, validation, test, but returned an empty dict",
        ),
        (
            {"classes": ["a"]},
            "at least one split of train, validation, test, but returned",
        ),
        (
            {"train": []},
            "The split train must have at least one example, but it is empty",
        ),
        ({"train": Lazy(0)}, "must have at least one example, but it is empty"),
        (
            {"train": {"image": IMAGE}},
            "must be a sequence, a generator or a tf.data.Dat",
        ),
        ({"train": 3}, "of examples, but is of type int"),
        (
            {"train": Lazy()},
            'The classes must be named ("classes": [...]), because train',
        ),
        (
            {"train": tf.data.Dataset.range(3).repeat()},
            "The split train must end, but its tf.data.Dataset repeats forever",
        ),
        (
            {"train": [example()], "test": [(IMAGE, {"seg": IMAGE[..., 0]})]},
            "the same tasks, but test has seg and train depth, seg",
        ),
        (
            {"train": [(IMAGE, {})], "test": [(IMAGE[:4], {})]},
            "same size, but those of test are 4x6 and those of train 8x6",
        ),
        ({"train": [example()], "classes": "abc"}, '"classes" must be a list of names'),
        ({"train": [example()], "colors": [(0, 0, 0)]}, 'for each of the "classes"'),
        (
            {"train": [example()], "classes": ["a"]},
            "seg must have at least two classes, but there is one, a;",
        ),
        (
            {"train": [example()], "classes": ["a"], "class_weights": [-1]},
            '"class_weights" must be a finite number that is not negative',
        ),
        ({"train": [example()], "mean": 0.5}, '"mean" must be one number for each'),
        ({"train": [example()], "mean": [127.0] * 3}, "for images in [0, 1]; got"),
        (
            {"train": [example()], "mean": np.full((3, 1), 0.5)},
            "in [0, 1]; got array([[0.5], [0.5], [0.5]]).",
        ),
        ({"train": [example()], "std": [0, 1, 1]}, "one number above 0"),
        ({"train": [example()], "ranges": {"depth": 3}}, '"ranges" must be a dict of'),
        (
            {"train": [example()], "ranges": {"depth": (0, np.inf)}},
            "(low, high) by task, two finite numbers; got",
        ),
        (
            {"train": [example()], "classes": ["a", "b"], "class_weights": [1, np.inf]},
            '"class_weights" must be a finite number',
        ),
        ({"train": [example()], "units": {"dpeth": "m"}}, '"units" must be a dict of'),
        (
            {"train": [labelled(0, 1, 2, 255)]},
            "without gaps, but they are 0-2 and 255; name all classes "
            '("classes": [...], in the order of their labels, from 0 and with those of '
            'ignored labels), or, if 255 means "no label", say so ("ignore_label": '
            "255) or put zeros into masks.",
        ),
        (
            {"train": [labelled(1, 2)]},
            "without gaps, but they are 1-2; name all classes "
            '("classes": [...], in the order of their labels, from 0 and with those of '
            "ignored labels).",
        ),
        (
            {"train": [labelled(0, 2, 3, 5)]},
            'are 0, 2-3 and 5; name all classes ("classes": [...], in the order of '
            "their labels, from 0 and with those of ignored labels).",
        ),
        (
            {"train": [labelled(0, 1, 2**32 + 1)]},
            "classes, at most 2147483648, but example 0 of train has 4294967297",
        ),
        ({"train": [example()], "ignore_label": "x"}, '"ignore_label" must be a whole'),
        (
            {"train": [example()], "ignore_label": {"seg": 255, "depth": 0}},
            '"ignore_label" must be for tasks with classes; got depth. Give "masks"',
        ),
        ({"train": [example()], "groups": [0]}, '"groups" must be a dict by split'),
        (
            {"train": [example()], "groups": {"train": [0, 1]}},
            "each of the 1 examples of train; got int64 of shape [2]",
        ),
        (
            {"train": [example()], "groups": {"train": [0.5]}},
            "each of the 1 examples of train; got float64 of shape [1]",
        ),
        (
            {"train": [example()] * 2, "groups": {"train": [[1], [1, 2]]}},
            "each of the 2 examples of train; got lists of several lengths",
        ),
        (
            {"train": [example()], "groups": {"train": np.array([None])}},
            "each of the 1 examples of train; got object of shape [1]",
        ),
        ({"train": [example()], "frames": True}, '"frames" must be True or False, be'),
        ({"train": [example()], "readers": True}, '"readers" must be a whole number f'),
        ({"train": Lazy(), "readers": 0}, "how many threads may read examples at the"),
    ],
)
def test_wrong_data_sets(open_it, given, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        open_it(given)
    assert "\n" not in str(error.value)


def test_mistakes_met_in_the_pipeline_stay_one_sentence(open_it, few):
    record = changed("targets", "seg", np.full((8, 6), 7))
    source = open_it({"train": Lazy(9, record), "classes": ["a", "b", "c"]})
    batches = batching.eval_batches(source.columns("train"), ("seg",), batch_size=1)
    with pytest.raises(tf.errors.OpError) as error:
        list(batches.skip(8))
    message = errors.input_error_within(error.value)
    assert message.startswith(
        "The labels of seg must be below the number of classes, 3, "
    )
    assert "example 8 of train has 7" in message
    assert errors.input_error_within(ValueError("another")) is None


def test_examples_that_fail(open_it):
    class Broken(Lazy):
        def __getitem__(self, i):
            raise OSError("no such file")

    def generator():
        yield example()
        raise KeyError("x")

    with pytest.raises(InputError, match="Example 0 of train cannot be read: OSErr"):
        open_it({"train": Broken()})
    with pytest.raises(InputError, match="Example 1 of test cannot be read: KeyErr"):
        open_it({"test": generator()})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory; modules imported from it are removed afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("mine:", "", "must have the form package.module:function, such as my_data:ex"),
        (":examples", "", "must have the form package.module:function"),
        ("mine:a b", "", "got 'mine:a b'"),
        (
            "nowhere:f",
            "",
            "There is no module 'nowhere' for --dataset=nowhere:f; run the command",
        ),
        ("mine.x:f", "", "There is no module 'mine.x'"),
        ("mine:f", "import nowhere", "cannot be imported: ModuleNotFoundError: No mod"),
        ("mine:f", "1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("mine:f", "def f(:", "SyntaxError: invalid syntax (mine.py, line 1)."),
        ("mine:f", "f = 3", "must have a function 'f', but has a int of that name"),
        ("mine:gets", "def get(): pass", "but has none. Did you mean 'get'?"),
        (
            "mine:f",
            "def f():\n    return {}['x']",
            "mine:f must give a dict, but raised KeyError: 'x' (mine.py, line 2)",
        ),
        (
            "mine:f",
            "import numpy\ndef f():\n    numpy.load('x')",
            "No such file or directory: 'x' (mine.py, line 3).",
        ),
        (
            "mine:f",
            "def f(path): pass",
            "raised TypeError: f() missing 1 required positional argument: 'path'.",
        ),
    ],
)
def test_functions_that_cannot_be_called(folder, name, code, message):
    (folder / "mine.py").write_text(code)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        data.open_source(name)
    assert "\n" not in str(error.value)


def test_modules_of_the_current_directory_are_found(folder):
    (folder / "mine.py").write_text(
        "import numpy as np\n"
        "def f():\n"
        "    return {'test': [(np.zeros((4, 4, 3)), {'depth': np.ones((4, 4))})]}\n"
    )
    assert data.open_source("mine:f").info.splits == {"test": 1}


# The page.


def test_the_page_names_all_keys_and_tasks():
    page = PAGE.read_text()
    keys = set(re.findall(r'"(\w+)"', "".join(re.findall(r"^\| (.*?) \|", page, re.M))))
    assert keys == {"image", "targets", "masks", "name", "inputs", *reading.SPLITS,
                    *facts.KEYS}  # fmt: skip
    task_list = page.split("\nTasks are ")[1].split(", or Taskonomy")[0]
    assert re.findall(r"`(\w+)`", task_list) == list(tasks.TASKS)


def _run(folder, *command):
    process = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process


@pytest.mark.slow
def test_the_page_runs(tmp_path):
    """The page's example and its commands, shortened."""
    page = PAGE.read_text()
    (code,) = re.findall(r"```python\n(# my_data.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "my_data.py").write_text(code)
    assert len(code.splitlines()) <= 35
    commands = re.findall(r"^    (python -m mtr_tf\..*)$", page, re.MULTILINE)
    train, attack = (
        next(line.split()[1:] for line in commands if f"mtr_tf.{name} " in line)
        for name in ("train", "attack")
    )
    options = ("--epochs=1", "--model=tiny", "--train_examples=8", "--batch_size=4",
           "--eval_examples=4", "--eval_eps=0", "--workdir=run")  # fmt: skip
    _run(tmp_path, *train, *options)
    attack = [part for part in attack if not part.startswith("--ckpt=")]
    attack += [
        "--ckpt=run",
        "--steps=1",
        "--num_examples=4",
        "--batch_size=4",
        "--nochecks",
    ]
    _run(tmp_path, *attack)
    (results,) = (tmp_path / "run" / "attacks").glob("*/results.json")
    assert json.loads(results.read_text())
    model = [*attack[:2], "--ckpt=run/model.keras", "--dataset=my_data:examples",
             "--steps=1", "--num_examples=4", "--split=validation",
             "--batch_size=4", "--nochecks"]  # fmt: skip
    assert "seg" in _run(tmp_path, *model).stdout


@pytest.mark.slow
def test_the_pages_own_tasks_run(tmp_path):
    """The page's second example, with a map and a single value per image."""
    page = PAGE.read_text()
    (code,) = re.findall(r"```python\n(# my_tasks.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "my_tasks.py").write_text(code)
    (train,) = re.findall(r"^    python (-m .*my_tasks:.*)$", page, re.MULTILINE)
    options = ("--epochs=1", "--model=tiny", "--train_examples=8", "--batch_size=4",
           "--eval_examples=4", "--eval_steps=1", "--workdir=run")  # fmt: skip
    _run(tmp_path, *train.split(), *options)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [task["name"] for task in config["tasks"]] == config["train"]["tasks"]
