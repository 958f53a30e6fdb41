# SPDX-License-Identifier: Apache-2.0
"""Cityscapes as a data set: finding files, preparing once, reading back."""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import signal
import subprocess
import sys
import time
import zipfile

import cityscapes_fixture as fixture
import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging
from process_fixture import imported_by
from tensorflow_datasets.core import shuffle

from mtr_tf import data
from mtr_tf import tasks
from mtr_tf.data import batching
from mtr_tf.data import parts
from mtr_tf.data import prepared
from mtr_tf.data.cityscapes import examples
from mtr_tf.data.cityscapes import layout
from mtr_tf.data.cityscapes.files import File
from mtr_tf.errors import InputError

SIZE = (8, 10)


@pytest.fixture(autouse=True)
def prepared_here(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    return fixture.write(tmp_path / "raw")


def open_at(root, **options):
    settings = {"image_size": SIZE, "data_dir": str(root), **options}
    return data.open_source("cityscapes", **settings)


def expected(root, split, name, **job):
    """The result of `examples.make`, which has its own tests, for one picture."""
    files = {}
    for kind in fixture.KINDS:
        path = fixture.path(root, kind, split, name)
        file = File("", str(path), 0)
        files[kind] = dataclasses.astuple(file) if path.exists() else None
    return examples.make({"size": SIZE, "depth_target": "disparity", **files, **job})


def check(source, root, split, folder, names, **job):
    columns = source.columns(split)
    assert columns.names == tuple(sorted(names))
    assert columns.groups.of == [name.split("_")[0] for name in sorted(names)]
    assert columns.groups.name == "cities"
    rows = np.arange(len(names))
    for row, name in enumerate(sorted(names)):
        example = expected(root, folder, name, **job)
        index = np.array([row])
        np.testing.assert_array_equal(columns.images[index][0], example["image"])
        for task in ("seg", "depth"):
            np.testing.assert_array_equal(
                columns.targets[task][index][0], example[task]
            )
            np.testing.assert_array_equal(
                columns.masks[task][index][0], example[f"{task}_known"]
            )
    np.testing.assert_array_equal(columns.original_sizes[rows], [[24, 32]] * len(names))


def test_read_back_equals_what_is_made_of_the_files(root):
    source = open_at(root)
    check(source, root, "train", "train", fixture.TRAIN)
    check(source, root, "validation", "val", fixture.VAL)


def test_plain_tfds_reads_it_with_city_and_name(root, tmp_path):
    open_at(root)
    (folder,) = (tmp_path / "tfds" / "mtr_cityscapes").glob("*/1.0.0")
    records = tfds.builder_from_directory(folder).as_data_source("train")
    assert [example["name"].decode() for example in records] == list(fixture.TRAIN)
    assert {example["city"] for example in records} == {b"aachen", b"bochum"}
    example = expected(root, "train", fixture.TRAIN[3])
    for name, array in example.items():
        np.testing.assert_array_equal(records[3][name], array)


def test_tfds_load_takes_it(root, tmp_path, monkeypatch):
    builders, prepare = [], prepared.prepare

    def keep_builder(*arguments):
        builders.append(prepare(*arguments))
        return builders[-1]

    monkeypatch.setattr(prepared, "prepare", keep_builder)
    open_at(root)
    config, data_dir = builders[-1].builder_config, tmp_path / "tfds"
    dataset = tfds.load(
        "mtr_cityscapes",
        split="train[1:]",
        data_dir=data_dir,
        builder_kwargs={"config": config},
    )
    examples = list(dataset.as_numpy_iterator())
    assert [e["name"].decode() for e in examples] == list(fixture.TRAIN)[1:]
    for name, array in expected(root, "train", fixture.TRAIN[3]).items():
        np.testing.assert_array_equal(examples[2][name], array)
    builder_name = f"mtr_cityscapes/{config.name}"
    records = tfds.data_source(builder_name, split="validation", data_dir=data_dir)
    assert [e["name"].decode() for e in records] == list(fixture.VAL)


def test_info(root):
    info = open_at(root, depth_target="inverse_depth").info
    assert info.name == "cityscapes"
    assert info.image_shape == (*SIZE, 3)
    assert info.num_classes == 19
    assert info.splits == {"train": 4, "validation": 3}
    assert tuple(info.tasks) == (
        "seg", "depth", "edge_texture", "keypoints2d", "autoencoder"
    )  # fmt: skip
    assert tasks.resolve("s,d,e,k,A") == tuple(info.tasks)
    assert info.mean == (0.290101, 0.328081, 0.286964)
    assert info.std == (0.182954, 0.186566, 0.184475)
    assert info.units == {"depth": "1/m"}
    for target, unit in (("disparity", "px"), ("metres", "m"), ("released", "p/1000")):
        assert layout.DEPTHS[target][0] == unit


def test_the_default_size_is_the_papers(root):
    assert data.open_source("cityscapes", data_dir=str(root)).info.image_shape == (
        (336, 680, 3)
    )


@pytest.mark.parametrize("kinds", [fixture.KINDS, ("leftImg8bit", "disparity")])
def test_archives_are_read_like_folders(root, tmp_path, kinds):
    zip_root = fixture.zip_up(fixture.write(tmp_path / "zipped"), kinds)
    assert not (zip_root / "leftImg8bit").exists()
    source = open_at(zip_root, depth_target="metres")
    check(source, root, "train", "train", fixture.TRAIN, depth_target="metres")
    check(source, root, "validation", "val", fixture.VAL, depth_target="metres")
    # The same files, so nothing is prepared again.
    folders = list((tmp_path / "tfds" / "mtr_cityscapes").iterdir())
    open_at(root, depth_target="metres")
    assert list((tmp_path / "tfds" / "mtr_cityscapes").iterdir()) == folders


def test_archives_extracted_each_into_its_own_folder(root):
    for kind in fixture.KINDS:
        inner = root / f"{kind}_trainvaltest"
        inner.mkdir()
        (root / kind).rename(inner / kind)
    assert open_at(root).info.splits == {"train": 4, "validation": 3}


def test_settings_and_files_never_mix(root, tmp_path):
    columns = open_at(root).columns("train")
    metre_columns = open_at(root, depth_target="metres").columns("train")
    small_columns = open_at(root, image_size=(4, 5)).columns("train")
    assert small_columns.images.shape == (4, 4, 5, 3)
    assert not np.array_equal(
        columns.targets["depth"][:], metre_columns.targets["depth"][:]
    )
    fixture.path(root, "gtFine", "train", fixture.TRAIN[0]).unlink()
    unlabelled_columns = open_at(root).columns("train")
    assert columns.masks["seg"][:1].any()
    assert not unlabelled_columns.masks["seg"][:1].any()
    assert len(list((tmp_path / "tfds" / "mtr_cityscapes").iterdir())) == 4


def test_missing_labels_and_disparities_are_unknown_and_counted(root, monkeypatch):
    lines = []

    def note(text, *arguments):
        if text.startswith("Cityscapes"):  # TFDS warns too; `prepared.quiet` mutes it.
            lines.append(text % arguments)

    monkeypatch.setattr(logging, "warning", note)
    open_at(root)
    assert not lines
    fixture.path(root, "gtFine", "train", fixture.TRAIN[1]).unlink()
    for name in fixture.VAL[:2]:
        fixture.path(root, "disparity", "val", name).unlink()
    fixture.path(root, "camera", "val", fixture.VAL[0]).unlink()
    source = open_at(root)
    (line,) = lines
    assert "1 of 4 in train have no gtFine" in line
    assert "2 of 3 in validation have no disparity" in line
    check(source, root, "train", "train", fixture.TRAIN)
    check(source, root, "validation", "val", fixture.VAL)
    assert source.info.splits == {"train": 4, "validation": 3}
    masks = source.columns("train").masks["seg"][:]
    assert masks.any((1, 2)).tolist() == [True, False, True, True]
    masks = source.columns("validation").masks["depth"][:]
    assert masks.any((1, 2)).tolist() == [False, False, True]

    lines.clear()
    source = open_at(root, depth_target="metres", tasks=("depth",))
    (line,) = lines
    assert "gtFine" not in line
    assert "1 of 3 in validation have no camera" in line
    masks = source.columns("validation").masks["depth"][:]
    assert masks.any((1, 2)).tolist() == [False, False, True]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_task_without_a_file_in_a_whole_split_is_refused(root, split):
    fixture.shutil.rmtree(root / "gtFine" / split)
    name = "train" if split == "train" else "validation"
    with pytest.raises(InputError, match=f"seg needs gtFine for pictures of {name}, b"):
        open_at(root, tasks=("seg",))
    assert open_at(root, tasks=("depth",)).info.splits["train"] == 4
    fixture.shutil.rmtree(root / "camera" / split)
    with pytest.raises(InputError, match=r"depth needs disparity and camera for pict"):
        open_at(root, tasks=("depth",), depth_target="metres")


def test_a_folder_without_a_file_of_the_kind_is_passed_over(root, tmp_path):
    (root / "gtFine").rename(tmp_path / "inner")
    (root / "gtFine").mkdir()
    (tmp_path / "inner").rename(root / "gtFine" / "gtFine")  # unzip -d gtFine
    assert "seg" not in open_at(root).info.tasks
    with pytest.raises(
        InputError, match=r"gtFine' has no train/CITY/.*labelIds.png in"
    ):
        open_at(root, tasks=("seg",))
    zip_root = fixture.zip_up(fixture.write(tmp_path / "zipped"))
    (zip_root / "gtFine" / "train" / "aachen").mkdir(parents=True)  # A stopped unzip.
    (zip_root / "disparity_trainvaltest" / "disparity").mkdir(parents=True)
    columns = open_at(zip_root).columns("train")
    for task in ("seg", "depth"):
        assert columns.masks[task][:].any((1, 2)).all()


def test_only_the_asked_tasks_are_read(root):
    columns = open_at(root, tasks=("depth", "autoencoder")).columns("train")
    assert set(columns.targets) == set(columns.masks) == {"depth"}
    batch = batching.gather(columns, ("depth", "autoencoder"), np.array([2, -1]))
    example = expected(root, "train", fixture.TRAIN[2])
    np.testing.assert_array_equal(batch["targets"]["depth"][0], example["depth"])
    np.testing.assert_array_equal(batch["masks"]["depth"][0], example["depth_known"])
    np.testing.assert_array_equal(batch["image"][0] * 255, example["image"])


def test_with_released_targets_the_autoencoder_makes_the_standardised_picture(root):
    source = open_at(root, tasks=("autoencoder",), depth_target="released")
    columns = source.columns("train")
    assert columns.targets["autoencoder"].shape == (4, *SIZE, 3)
    batch = batching.gather(columns, ("autoencoder",), np.array([3, 1, -1]))
    mean, std = (0.290101, 0.328081, 0.286964), (0.182954, 0.186566, 0.184475)
    expected = (columns.images[np.array([3, 1])] / 255 - mean) / std
    target = batch["targets"]["autoencoder"]
    np.testing.assert_allclose(target[:2], expected, rtol=1e-5, atol=1e-6)
    assert (target[2] == 0).all()
    assert batch["masks"]["autoencoder"][:2].all()
    low, high = source.info.ranges["autoencoder"]
    ends = (np.array([[0.0], [1.0]]) - mean) / std
    np.testing.assert_allclose([low, high], [ends.min(), ends.max()])
    assert (
        "autoencoder" in open_at(root, depth_target="released").columns("train").targets
    )
    for options in ({"depth_target": "disparity"}, {"tasks": ("depth",)}):
        settings = {"depth_target": "released", **options}
        assert "autoencoder" not in open_at(root, **settings).columns("train").targets


def test_broken_files_of_other_tasks_do_not_matter(root, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: lines.append(text % args)
    )
    path = fixture.path(root, "disparity", "val", fixture.VAL[1])
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    source = open_at(root, tasks=("seg",))
    warnings = [line for line in lines if line.startswith("Cityscapes")]
    assert len(warnings) == 1
    assert str(path) in warnings[0]
    assert source.columns("validation").masks["seg"][:].any((1, 2)).all()
    with pytest.raises(InputError, match=f"'{path}' must be a complete PNG file"):
        open_at(root, tasks=("depth",))
    path.write_bytes(content)
    check(open_at(root), root, "validation", "val", fixture.VAL)
    fixture.path(root, "leftImg8bit", "val", fixture.VAL[2]).write_bytes(b"")
    with pytest.raises(InputError, match="leftImg8bit.png' must be a complete PNG"):
        open_at(root, tasks=("seg",))


def test_prepared_data_serve_runs_of_fewer_tasks(root, tmp_path):
    open_at(root)
    path = fixture.path(root, "disparity", "val", fixture.VAL[1])
    path.write_bytes(bytes(path.stat().st_size))  # Not looked at again.
    open_at(root, tasks=("seg",))
    assert len(list((tmp_path / "tfds" / "mtr_cityscapes").iterdir())) == 1


def test_a_damaged_archive_of_another_task_is_left_out(root):
    fixture.zip_up(root)
    (root / "disparity_trainvaltest.zip").write_bytes(b"PK, and no more of it")
    source = open_at(root, tasks=("seg",))
    assert "depth" not in source.info.tasks
    masks = source.columns("train").masks["seg"][:]
    assert masks.any((1, 2)).all()
    with pytest.raises(InputError, match="must be one of Cityscapes' archives"):
        open_at(root, tasks=("depth",))


def test_what_is_not_asked_for_need_not_be_there(root):
    fixture.shutil.rmtree(root / "gtFine")
    assert "seg" not in open_at(root).info.tasks
    open_at(root, tasks=("depth",))
    with pytest.raises(InputError, match="seg needs gtFine_trainvaltest.zip or the fo"):
        open_at(root, tasks=("seg",))
    fixture.shutil.rmtree(root / "camera")
    with pytest.raises(InputError, match="=metres needs camera_trainvaltest.zip"):
        open_at(root, tasks=("depth",), depth_target="metres")
    assert "depth" not in open_at(root, depth_target="inverse_depth").info.tasks
    fixture.shutil.rmtree(root / "disparity")
    with pytest.raises(InputError, match="needs disparity_trainvaltest.zip"):
        open_at(root, tasks=("depth",))
    assert tuple(open_at(root, tasks=("autoencoder",)).info.tasks) == (
        "edge_texture", "keypoints2d", "autoencoder"
    )  # fmt: skip


def test_the_test_split_is_there_if_its_labels_are(tmp_path):
    names = ("berlin_000000_000019",)
    root = fixture.write(tmp_path / "more", test=names)
    source = open_at(root)
    assert source.info.splits == {"train": 4, "validation": 3, "test": 1}
    check(source, root, "test", "test", names)
    fixture.shutil.rmtree(root / "gtFine" / "test")
    assert "test" not in open_at(root).info.splits


def test_train_ids_come_before_label_ids(root):
    path = fixture.path(root, "trainIds", "train", fixture.TRAIN[0])
    fixture.save(path, np.full((24, 32), 5, np.uint8))
    columns = open_at(root).columns("train")
    assert (columns.targets["seg"][:1] == 5).all()
    assert columns.masks["seg"][:1].all()


def test_other_files_are_left_alone(root):
    (root / "leftImg8bit" / "train" / "aachen" / "._x_leftImg8bit.png").write_text("")
    (root / "gtFine" / "train" / "aachen" / "a_gtFine_color.png").write_text("")
    (root / "leftImg8bit" / "train_extra").mkdir()
    (root / "leftImg8bit" / "train" / "list.txt").write_text("")
    assert open_at(root).info.splits == {"train": 4, "validation": 3}


def test_broken_files_are_named_whatever_process_meets_them(root, monkeypatch):
    path = fixture.path(root, "gtFine", "val", fixture.VAL[1])
    fixture.save(path, np.full((24, 32), 77, np.uint8))
    for minimum in (1000, 1):
        monkeypatch.setattr(parts, "_MIN_SHARED", minimum)
        with pytest.raises(InputError, match=rf"^The labels of '{path}' .* one is 77"):
            open_at(root)


def test_after_a_broken_file_only_that_is_read_again(root, monkeypatch, tmp_path):
    path = fixture.path(root, "leftImg8bit", "val", fixture.VAL[2])
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(InputError, match="must be a complete PNG file"):
        open_at(root)
    path.write_bytes(content)
    paths = []
    make = examples.make
    monkeypatch.setattr(
        examples,
        "make",
        lambda job: (paths.append(job["leftImg8bit"][1]), make(job))[1],
    )
    source = open_at(root)
    assert paths == [str(path)]
    check(source, root, "validation", "val", fixture.VAL)
    check(source, root, "train", "train", fixture.TRAIN)


def test_examples_are_in_order_where_tfds_sorts_them_on_disk(root, monkeypatch):
    buffer_size = shuffle.MAX_MEM_BUFFER_SIZE
    monkeypatch.setattr(prepared, "_IN_MEMORY", 0)
    counts = []
    read_values = shuffle._Bucket.read_values

    def read(bucket):
        values = list(read_values(bucket))
        counts.append(len(values))
        return iter(values)

    monkeypatch.setattr(shuffle._Bucket, "read_values", read)
    check(open_at(root), root, "train", "train", fixture.TRAIN)
    assert max(counts) == 1  # Never more than one in memory.
    assert buffer_size == shuffle.MAX_MEM_BUFFER_SIZE


def test_few_open_files_are_allowed(tmp_path, monkeypatch):
    """TFDS sorts with a thousand files and raises the limit if it is lower."""
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    monkeypatch.setattr(parts, "_MIN_SHARED", 1000)
    names = tuple(f"aachen_000000_{i:06}" for i in range(80))
    root = fixture.write(tmp_path / "many", train=names, size=(4, 4), block=2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft_limit = len(list(pathlib.Path("/dev/fd").iterdir())) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft_limit, limits[1]))
    try:
        columns = open_at(root, image_size=(4, 4)).columns("train")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    last_image = fixture.load(fixture.path(root, "leftImg8bit", "train", names[-1]))
    np.testing.assert_array_equal(columns.images[np.array([79])][0], last_image)


def test_a_picture_that_is_missing_or_cut(root):
    path = fixture.path(root, "leftImg8bit", "train", fixture.TRAIN[0])
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with pytest.raises(InputError, match=f"'{path}' must be a complete PNG file"):
        open_at(root)
    path.unlink()
    with pytest.raises(
        InputError, match=rf"needs a picture, but {path.name} is not in"
    ):
        open_at(root)


def test_what_a_user_can_get_wrong(root, tmp_path):
    with pytest.raises(InputError, match="give --data_dir: the folder with leftImg8b"):
        data.open_source("cityscapes")
    with pytest.raises(InputError, match="--data_dir must be the folder.*nowhere'"):
        open_at(tmp_path / "nowhere")
    with pytest.raises(InputError, match="needs leftImg8bit_trainvaltest.zip or the"):
        open_at(tmp_path)
    with pytest.raises(InputError, match="positive height and width"):
        open_at(root, image_size=(0, 8))
    with pytest.raises(InputError, match="--depth_target must be one of disparity"):
        open_at(root, depth_target="feet")
    with pytest.raises(InputError, match="no task 'normal'"):
        open_at(root, tasks=("normal",))
    with pytest.raises(InputError, match="train, validation, not 'val'"):
        open_at(root).columns("val")
    for split in ("train", "val"):
        fixture.shutil.rmtree(root / "leftImg8bit" / split)
    with pytest.raises(
        InputError, match="leftImg8bit' has no train/CITY/CITY_SEQUENCE_"
    ):
        open_at(root)
    fixture.save(fixture.path(root, "leftImg8bit", "test", "berlin_0_1"), np.eye(3) > 0)
    with pytest.raises(InputError, match="must hold pictures of train or val"):
        open_at(root)
    fixture.shutil.rmtree(root / "leftImg8bit")
    (root / "leftImg8bit_trainvaltest.zip").write_bytes(b"PK but no archive")
    with pytest.raises(InputError, match="must be one of Cityscapes' archives"):
        open_at(root)


def test_a_damaged_archive_is_named(root):
    fixture.zip_up(root)
    path = root / "disparity_trainvaltest.zip"
    with zipfile.ZipFile(path) as archive:
        info = archive.infolist()[-1]
    content = bytearray(path.read_bytes())
    content[info.header_offset + 120] ^= 1  # Inside the stored file.
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}: {info.filename}' cannot be read"):
        open_at(root)


def test_a_folder_that_cannot_be_written(root, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match="another folder with the variable TFDS_DATA"):
        open_at(root)


def test_what_workers_import_is_without_tensorflow():
    code = "import mtr_tf.data.cityscapes.examples, mtr_tf.data.parts"
    assert not any(name.startswith("tensorflow") for name in imported_by(code))


SCRIPT = """
import sys
from mtr_tf.data.cityscapes import reading
reading.open_source(data_dir=sys.argv[1], image_size=(40, 60))
"""


def start(root) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_killed_it_goes_on_and_of_two_one_waits(tmp_path):
    names = tuple(f"aachen_000000_{i:06}" for i in range(150))
    root = fixture.write(tmp_path / "raw", train=names, size=(200, 300), block=40)
    process = start(root)
    folder = tmp_path / "tfds" / "mtr_cityscapes"
    deadline = time.monotonic() + 60
    while len(list(folder.glob(".parts*/train/aach*"))) < 9:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # Its workers write too, until they end.
    part_paths = sorted(folder.glob(".parts*/train/aach*"))
    assert 9 <= len(part_paths) < 150
    (config,) = folder.glob("[!.]*")
    assert not list(config.glob("1.0.0"))

    # Finished parts are not made again: a mark in one of them stays.
    marked_row = names.index(part_paths[5].name[: len(names[0])])
    with np.load(part_paths[5]) as part:
        np.savez(part_paths[5], **{**part, "image": np.full((40, 60, 3), 7, np.uint8)})
    processes = [start(root), start(root)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert [path.name for path in config.iterdir()] == ["1.0.0"]
    assert not list(folder.glob(".parts*"))
    source = open_at(root, image_size=(40, 60))
    columns = source.columns("train")
    assert (columns.images[np.array([marked_row])] == 7).all()
    for row in {0, 77, 149} - {marked_row}:
        example = expected(root, "train", names[row], size=(40, 60))
        index = np.array([row])
        np.testing.assert_array_equal(columns.images[index][0], example["image"])
        np.testing.assert_array_equal(
            columns.targets["depth"][index][0], example["depth"]
        )
