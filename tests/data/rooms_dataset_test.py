# SPDX-License-Identifier: Apache-2.0
"""The TFDS builder of rooms, and reading it back."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtr_tf.data import rooms
from mtr_tf.data.rooms import layout
from mtr_tf.data.rooms import reading
from mtr_tf.data.rooms import workers
from mtr_tf.errors import InputError

SPLITS = {"train": 12, "validation": 3, "test": 2}


def tiny(**changes) -> rooms.RoomsConfig:
    return rooms.RoomsConfig(name="tiny", size=32, **{"splits": SPLITS, **changes})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("data"))
    reading.prepare(tiny(), folder)
    return folder


def test_configs_and_splits():
    names = {config.name: config for config in rooms.Rooms.BUILDER_CONFIGS}
    assert {name: config.size for name, config in names.items()} == {
        "32": 32,
        "64": 64,
        "128": 128,
    }
    for config in names.values():
        assert config.splits == {"train": 2000, "validation": 300, "test": 300}
    assert rooms.Rooms.VERSION == "1.0.0"


def test_builder_is_registered(tmp_path):
    builder = tfds.builder("rooms/128", data_dir=tmp_path)
    assert builder.info.full_name == "rooms/128/1.0.0"
    assert builder.info.features["image"].shape == (128, 128, 3)


def test_read_back_equals_rendered_in_order(data_dir):
    source = rooms.open_source(config=tiny(), data_dir=data_dir)
    for number, (split, count) in enumerate(SPLITS.items()):
        columns = source.columns(split)
        assert len(columns) == count
        for index in range(count):
            expected = workers.example(0, number, index, 32)
            np.testing.assert_array_equal(columns.images[index], expected["image"])
            for name in layout.STORED:
                np.testing.assert_array_equal(
                    columns.targets[name][index], expected[name]
                )
                assert columns.masks[name][index].all()


def test_more_scenes_begin_with_the_same_and_are_validated_on_the_same(tmp_path):
    splits = {"train": 2, "validation": 2, "test": 1}
    options = {
        "config": tiny(splits=splits),
        "data_dir": str(tmp_path),
        "tasks": ["seg"],
    }
    small_source = rooms.open_source(**options)
    large_source = rooms.open_source(**options, rooms_scenes=5)
    assert dict(large_source.info.splits) == {**splits, "train": 5}
    for split, count in splits.items():
        large, small = large_source.columns(split), small_source.columns(split)
        np.testing.assert_array_equal(large.images[:count], small.images)
    expected = workers.example(0, 0, 4, 32)
    np.testing.assert_array_equal(
        large_source.columns("train").images[4], expected["image"]
    )
    config = tiny(splits=splits).with_scenes(2)
    assert config == tiny(splits=splits)


def test_plain_tfds_reads_it_too(data_dir):
    builder = rooms.Rooms(config=tiny(), data_dir=data_dir)
    examples = list(builder.as_dataset(split="validation").as_numpy_iterator())
    assert len(examples) == 3
    expected = workers.example(0, 1, 2, 32)
    for name, array in expected.items():
        np.testing.assert_array_equal(examples[2][name], array)


def test_tfds_load_takes_it(data_dir):
    config = {"config": tiny()}
    dataset = tfds.load("rooms", data_dir=data_dir, split="test", builder_kwargs=config)
    for index, example in enumerate(dataset.as_numpy_iterator()):
        expected = workers.example(0, 2, index, 32)
        np.testing.assert_array_equal(example["image"], expected["image"])
    assert index == 1


def test_configs_of_one_name_and_other_scenes_have_other_folders(tmp_path):
    splits = {"train": 1, "validation": 1, "test": 1}

    def first_image(**changes):
        config = tiny(**{"splits": splits, **changes})
        source = rooms.open_source(config=config, data_dir=str(tmp_path), tasks=["seg"])
        return source.columns("train").images[0]

    image, other_image = first_image(), first_image(seed=1)
    np.testing.assert_array_equal(image, workers.example(0, 0, 0, 32)["image"])
    np.testing.assert_array_equal(other_image, workers.example(1, 0, 0, 32)["image"])
    np.testing.assert_array_equal(first_image(), image)
    changes = [{}, {"seed": 1}, {"size": 64}, {"splits": SPLITS}]
    folders = {
        rooms.Rooms(
            config=rooms.RoomsConfig(**{**base, **change}), data_dir=tmp_path
        ).data_dir
        for change in changes
        for base in [{"name": "32", "size": 32}, {"name": "32-5", "size": 32}]
    }
    assert len(folders) == 8


def test_known_configs_keep_their_folders(tmp_path):
    for name in ("32", "64", "128"):
        builder = rooms.Rooms(config=name, data_dir=tmp_path)
        assert builder.info.full_name == f"rooms/{name}/1.0.0"
        config = builder.builder_config.with_scenes(24000)
        large_builder = rooms.Rooms(config=config, data_dir=tmp_path)
        assert large_builder.info.full_name == f"rooms/{name}-24000/1.0.0"
    tiny_builder = rooms.Rooms(config=tiny(), data_dir=tmp_path)
    assert tiny_builder.info.full_name.startswith("rooms/tiny-")
    copy = rooms.Rooms(config=tiny_builder.builder_config, data_dir=tmp_path)
    assert copy.info.full_name == tiny_builder.info.full_name


def test_only_the_asked_tasks_are_read(data_dir):
    source = rooms.open_source(
        config=tiny(), data_dir=data_dir, tasks=("depth", "autoencoder")
    )
    columns = source.columns("test")
    assert set(columns.targets) == set(columns.masks) == {"depth"}
    assert columns.targets["depth"].shape == (2, 32, 32, 1)
    assert columns.masks["depth"].shape == (2, 32, 32)


def test_info(data_dir):
    info = rooms.open_source(config=tiny(), data_dir=data_dir).info
    assert info.name == "rooms"
    assert info.image_shape == (32, 32, 3)
    assert info.num_classes == len(info.colors) == 8
    assert dict(info.splits) == SPLITS
    assert len(info.tasks) == 11
    assert set(layout.STORED) <= set(info.tasks)
    assert set(info.ranges) == set(info.tasks) - {"seg"}
    assert len(set(info.colors)) == 8


def test_bad_input_is_one_sentence(data_dir, tmp_path):
    for size in [(48, 48), (64, 32), (64, 64, 3)]:
        with pytest.raises(InputError, match="32 x 32, 64 x 64 or 128 x 128 pixels"):
            rooms.open_source(image_size=size, data_dir=data_dir)
    for count in (-3, 2.5):
        with pytest.raises(InputError, match="scenes to train on, or 0 for the usual"):
            rooms.open_source(config=tiny(), data_dir=data_dir, rooms_scenes=count)
    source = rooms.open_source(config=tiny(), data_dir=data_dir)
    with pytest.raises(InputError, match="train, validation, test, not 'val'"):
        source.columns("val")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="could not be written"):
        rooms.open_source(config=tiny(), data_dir=str(file / "below"))


def test_default_folder_comes_from_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    assert len(rooms.open_source(config=tiny()).columns("test")) == 2


SCRIPT = """
import sys
from mtr_tf.data import prepared
from mtr_tf.data import rooms
from mtr_tf.data.rooms import reading
splits = {"train": int(sys.argv[2]), "validation": 1, "test": 1}
config = rooms.RoomsConfig(name="race", size=32, splits=splits)
made = []
real = prepared._prepare_data
prepared._prepare_data = lambda builder: (made.append(1), real(builder))
reading.prepare(config, sys.argv[1])
print(len(made))
"""


def start(folder: pathlib.Path, count: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.slow
def test_killed_leaves_nothing_whole_and_two_at_once_make_one(tmp_path):
    splits = {"train": 1500, "validation": 1, "test": 1}
    config = rooms.RoomsConfig(name="race", size=32, splits=splits)
    process = start(tmp_path, 1500)
    folder = tmp_path / "rooms" / config.with_own_folder().name
    deadline = time.monotonic() + 60
    while not list(folder.glob("*incomplete*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [path.name[:10] for path in folder.iterdir()] == ["incomplete"]

    processes = [start(tmp_path, 1500), start(tmp_path, 1500)]
    counts = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(counts) == [0, 1]
    assert [path.name for path in folder.iterdir()] == ["1.0.0"]
    columns = rooms.open_source(config=config, data_dir=str(tmp_path)).columns("train")
    expected = workers.example(0, 0, 1499, 32)
    np.testing.assert_array_equal(columns.images[1499], expected["image"])
