# SPDX-License-Identifier: Apache-2.0
"""Opening data sets by name."""

from __future__ import annotations

import numpy as np
import pytest
from process_fixture import imported_by

from mtr_tf import data
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError

INFO = DatasetInfo(
    name="fake",
    image_shape=(4, 5, 3),
    classes=("a", "b", "c"),
    colors=((0, 0, 0),) * 3,
    tasks=("seg", "depth", "autoencoder"),
    splits={"train": 3, "validation": 2},
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    ranges={},
)


def columns(split: str, tasks: tuple[str, ...]) -> Columns:
    n = INFO.splits[split]
    number = np.arange(n, dtype=np.uint8)[:, None, None]
    targets = {
        "seg": np.broadcast_to(number, (n, 4, 5)),
        "depth": np.full((n, 4, 5, 1), 2.5, np.float32),
    }
    targets = {name: targets[name] for name in targets if name in tasks}
    images = np.broadcast_to(number[..., None], (n, 4, 5, 3))
    return Columns(images, targets, masks={})


@pytest.fixture(autouse=True)
def opened(monkeypatch) -> list[dict]:
    """Adds a data set "fake", and collects the options that it is opened with."""
    calls = []

    def open_source(**options):
        calls.append(options)
        tasks = options["tasks"] or INFO.tasks
        return Source(INFO, lambda split: columns(split, tasks))

    monkeypatch.setitem(data.DATASETS, "fake", open_source)
    return calls


def test_load_gives_examples_in_order():
    dataset = data.load("fake", "train")
    assert int(dataset.cardinality()) == 3
    for i, example in enumerate(dataset.as_numpy_iterator()):
        assert set(example["targets"]) == set(example["masks"]) == set(INFO.tasks)
        assert example["image"].shape == (4, 5, 3)
        np.testing.assert_allclose(example["image"], i / 255, rtol=1e-6)
        assert (example["targets"]["seg"] == i).all()
        assert example["targets"]["seg"].dtype == np.int32
        np.testing.assert_array_equal(
            example["targets"]["autoencoder"], example["image"]
        )
        assert example["masks"]["depth"].dtype == np.float32
        assert all(mask.all() for mask in example["masks"].values())


def test_load_some_tasks_by_letter():
    dataset = data.load("fake", split="validation", tasks=("d",))
    assert set(dataset.element_spec["targets"]) == {"depth"}
    assert int(dataset.cardinality()) == 2


def test_options_reach_the_data_set(opened):
    data.open_source("fake", image_size=(8, 9), data_dir="x", tasks=["d", "s"])
    data.open_source("fake")
    assert opened == [
        {"image_size": (8, 9), "data_dir": "x", "tasks": ("depth", "seg")},
        {"image_size": None, "data_dir": None, "tasks": None},
    ]


@pytest.mark.parametrize(
    ("name", "split", "tasks", "message"),
    [
        ("fakke", "train", None, r"data set 'fakke'.* mean 'fake'\?.*rooms, camvid"),
        ("xyz", "train", None, r"data set 'xyz'\. There are: rooms, camvid, .*fake;"),
        ("fake", "val", None, r"fake has the splits train, validation, not 'val'"),
        (
            "fake",
            "train",
            ["normal"],
            r"'fake' has no task 'normal'; .* seg, depth, autoencoder\.",
        ),
        ("fake", "train", ["sag"], r"'sag'.*'?seg"),
    ],
)
def test_input_errors(name, split, tasks, message):
    with pytest.raises(InputError, match=message):
        data.load(name, split, tasks=tasks)


def test_unknown_options_are_named():
    with pytest.raises(InputError, match=r"options depth_target, .* but got 'seed'"):
        data.load("rooms", "train", seed=3)
    with pytest.raises(InputError, match="Did you mean 'rooms_scenes'"):
        data.open_source("rooms", room_scenes=3)


def test_the_table_costs_no_tensorflow():
    names = [name for name in data.DATASETS if name != "fake"]
    code = f"from mtr_tf import data; assert list(data.DATASETS) == {names}"
    assert "tensorflow" not in imported_by(code)
