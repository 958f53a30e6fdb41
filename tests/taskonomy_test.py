# SPDX-License-Identifier: Apache-2.0
"""Taskonomy from its folders to batches: finding, splitting, preparing, reading."""

from __future__ import annotations

import io
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import taskonomy_fixture
from PIL import Image

from mtr_tf import data
from mtr_tf import tasks
from mtr_tf.data import batching
from mtr_tf.data import png
from mtr_tf.data import taskonomy
from mtr_tf.data.taskonomy import examples
from mtr_tf.data.taskonomy import finding
from mtr_tf.data.taskonomy import layout
from mtr_tf.data.taskonomy import transforms
from mtr_tf.errors import InputError

ARRANGEMENTS = (
    "{domain}",
    "Cauthron/{domain}",
    "{domain}/Cauthron",
    "{domain}/taskonomy/Cauthron",
    "Cauthron_{domain}/{domain}",
    "Cauthron_{domain}",
)


@pytest.fixture(autouse=True)
def tfds_dir(tmp_path_factory, monkeypatch) -> pathlib.Path:
    """Prepared data go to a folder of the test."""
    folder = tmp_path_factory.mktemp("tfds")
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    return folder


def split_names(folder, **options):
    listing = finding.scan(str(folder))
    return {
        split: [view.name for view in views]
        for split, views in finding.splits(listing, **options).items()
    }


def remove(folder, pattern):
    (path,) = folder.glob(pattern)
    path.unlink()


# Finding and splitting.


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_all_arrangements_are_understood(tmp_path, arrangement):
    taskonomy_fixture.write_building(tmp_path, [10, 9], folder=arrangement)
    (tmp_path / "rgb_large").mkdir()
    for path in list(tmp_path.rglob("*_domain_rgb.png")):
        (tmp_path / "rgb_large" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "point_9_view_0_domain_fixatedpose.json").write_text("{}")
    listing = finding.scan(str(tmp_path))
    building = "" if arrangement == "{domain}" else "Cauthron"
    assert [(v.building, v.point, v.view) for v in listing.views] == [
        (building, 9, 0),
        (building, 10, 0),
    ]
    assert listing.tasks == tuple(layout.DOMAINS)
    path = listing.views[0].path("seg")
    assert path.name == "point_9_view_0_domain_segmentsemantic.png"
    assert all(listing.views[1].path(task).exists() for task in layout.DOMAINS)


def test_one_building_is_split_by_points(tmp_path):
    taskonomy_fixture.write_building(tmp_path, [0, 1199, 1200, 3000])
    expected = {
        "train": ["point_0_view_0", "point_1199_view_0"],
        "validation": ["point_1200_view_0", "point_3000_view_0"],
    }
    assert split_names(tmp_path) == expected
    assert split_names(tmp_path, as_released=True) == expected


def test_several_buildings_are_split_by_name(tmp_path):
    for name in "cdab":
        taskonomy_fixture.write_building(
            tmp_path, [0, 1300], folder=f"{name}/{{domain}}"
        )
    names = split_names(tmp_path)
    assert {name[0] for name in names["train"]} == set("abc")
    assert {name[0] for name in names["validation"]} == {"d"}
    released = split_names(tmp_path, as_released=True)
    assert released["train"] == [f"{name}/point_0_view_0" for name in "abcd"]


def test_a_fifth_of_the_buildings_is_validation():
    views = [finding.View(f"b{i:02}", 0, 0, "", {}) for i in range(17)]
    found = finding.splits(finding.Listing(views, 0, None, ""))
    assert [v.building for v in found["validation"]] == ["b14", "b15", "b16"]


LIST = "id, train, val, test\n"


def test_lists_say_the_split_of_buildings(tmp_path):
    for name in ("a", "B", "more/c", "d"):  # As lists have them, and not.
        taskonomy_fixture.write_building(tmp_path, [0], folder=f"{name}/{{domain}}")
    lists = tmp_path / "splits_taskonomy"
    lists.mkdir()
    (lists / "train_val_test_tiny.csv").write_text(LIST + "a,0,1,0\nb,1,0,0\n")
    (lists / "train_val_test_full.csv").write_text(
        LIST + "a,0,1,0\nb,1,0,0\nc,0,0,1\nelsewhere,1,0,0\n"
    )
    assert split_names(tmp_path) == {
        "train": ["B/point_0_view_0"],
        "validation": ["a/point_0_view_0"],
        "test": ["more/c/point_0_view_0"],
    }
    listing = finding.scan(str(tmp_path))
    assert finding.summary(listing, finding.splits(listing)) == (
        "Taskonomy: 1 train and 1 validation and 1 test views of 3 buildings; 1 views "
        "of buildings outside the split lists are not used."
    )


def test_lists_say_nothing_of_a_building_without_a_name(tmp_path):
    taskonomy_fixture.write_building(tmp_path, [0, 1200])
    (tmp_path / "train_val_test_tiny.csv").write_text(LIST + "a,0,1,0\n")
    assert set(split_names(tmp_path)) == {"train", "validation"}


def test_what_is_missing_is_counted(tmp_path):
    taskonomy_fixture.write_building(tmp_path, [0, 1, 1300, 1301])
    remove(tmp_path, "normal/point_0_*")
    remove(tmp_path, "segment_semantic/point_1_*")
    (label,) = (tmp_path / "segment_semantic").glob("point_0_*")
    label.write_bytes(b"")  # Such place-holders stand for missing labels.
    remove(tmp_path, "rgb/point_1301_*")
    listing = finding.scan(str(tmp_path))
    assert finding.summary(listing, finding.splits(listing)) == (
        "Taskonomy: 2 train and 1 validation views of 1 building; masked where a file "
        "is missing: segment_semantic 2, normal 1 views; 1 views without rgb are not "
        "used."
    )


def test_fingerprints_follow_names_and_sizes(tmp_path):
    taskonomy_fixture.write_building(tmp_path / "a", [0, 1])
    first = finding.scan(str(tmp_path / "a")).fingerprint
    (tmp_path / "a").rename(tmp_path / "b")
    assert finding.scan(str(tmp_path / "b")).fingerprint == first
    (path,) = tmp_path.glob("b/normal/point_0_*")
    path.write_bytes(path.read_bytes() + b"\0")
    second = finding.scan(str(tmp_path / "b")).fingerprint
    path.unlink()
    third = finding.scan(str(tmp_path / "b")).fingerprint
    (tmp_path / "b" / "train_val_test_x.csv").write_text(LIST + ",1,0,0\n")
    fourth = finding.scan(str(tmp_path / "b")).fingerprint
    assert len({first, second, third, fourth}) == 4


def broken_list(folder):
    (folder / "train_val_test_tiny.csv").write_text("building,train\nx,1\n")


def two_splits(folder):
    (folder / "train_val_test_tiny.csv").write_text(LIST + "x,1,0,0\nx,0,1,0\n")


def another_list(folder):
    (folder / "train_val_test_tiny.csv").write_text(LIST + "y,0,1,0\nx,0,0,0\n")


def twice(folder):
    taskonomy_fixture.write_building(folder, [0], folder="again_{domain}/x/{domain}")
    taskonomy_fixture.write_building(folder, [0], folder="again/{domain}/x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_list, "must have the columns id, train, val and test, but .* building"),
        (two_splits, "in one split, but the lists have 'x' in train and validation"),
        (another_list, "must name a building of the folder, but name none of x;"),
        (twice, "one file per domain, but .* are the same view's"),
    ],
)
def test_folders_that_cannot_be_split(tmp_path, spoil, message):
    taskonomy_fixture.write_building(tmp_path, [0], folder="x/{domain}")
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        split_names(tmp_path)


@pytest.mark.parametrize(
    ("data_dir", "message"),
    [
        (None, "give --data_dir: a folder of Taskonomy with files such as rgb/point_0"),
        ("nowhere", "must be an existing folder, got 'nowhere'"),
        (".", r"'\.' must be a folder of Taskonomy .* none was found there"),
    ],
)
def test_no_folder(tmp_path, monkeypatch, data_dir, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        data.open_source("taskonomy", data_dir=data_dir)


# Files.


def test_files_are_decoded_as_they_are():
    rng = np.random.default_rng(0)

    def decoded(array):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        return png.decode(file.getvalue(), "x.png")

    for kind, shape in ((np.uint16, (4, 5)), (np.uint8, (4, 5)), (np.uint8, (4, 5, 3))):
        array = rng.integers(0, np.iinfo(kind).max + 1, shape).astype(kind)
        assert decoded(array).dtype == kind
        np.testing.assert_array_equal(decoded(array), array)
    with_alpha = np.dstack((array, np.zeros((4, 5), np.uint8)))
    np.testing.assert_array_equal(decoded(with_alpha), array)


EIGHT_BITS = np.zeros((16, 16), np.uint8)


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("depth", EIGHT_BITS, "one channel of 16 bits, but .* one channel of 8 bits"),
        ("seg", EIGHT_BITS + 18, "with 1 to 17, or 0 for none, but .* the label 18"),
        (
            "seg",
            np.dstack([EIGHT_BITS] * 3),
            "labels must be one channel .* colours of",
        ),
        ("normal", EIGHT_BITS, "three colours, but .* has one channel of 8 bits"),
        ("depth", b"\x89PNG not one", "whole PNG file, but cannot be read .*again"),
    ],
)
def test_files_of_another_kind(tmp_path, task, content, message):
    path = tmp_path / "file.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)
    with pytest.raises(InputError, match=message) as raised:
        examples.read_file(task, str(path))
    assert str(path) in str(raised.value)


def test_a_broken_file_is_named_and_the_rest_is_kept(tmp_path, tfds_dir, monkeypatch):
    taskonomy_fixture.write_building(tmp_path, [0, 1, 1300])
    (path,) = tmp_path.glob("reshading/point_1_*")
    path.write_bytes(path.read_bytes()[:200])
    options = {"data_dir": str(tmp_path), "image_size": (8, 8)}
    with pytest.raises(InputError, match=re.escape(str(path))):
        data.open_source("taskonomy", **options)
    taskonomy_fixture.write_building(tmp_path, [1])
    make, made = examples.make, []

    def count(job):
        made.append(pathlib.Path(job["files"]["depth"]).name.split("_")[1])
        return make(job)

    monkeypatch.setattr(examples, "make", count)
    source = data.open_source("taskonomy", **options)
    assert made == ["1", "1300"]
    assert source.info.splits == {"train": 2, "validation": 1}
    assert not list(tfds_dir.rglob("*parts*"))


# From the folder to batches.


@pytest.fixture
def folder(tmp_path):
    """Three views to train on and one to validate on; the first has no normals."""
    taskonomy_fixture.write_building(tmp_path, [0, 1, 2, 1200])
    remove(tmp_path, "normal/point_0_*")
    remove(tmp_path, "depth_euclidean/point_1_*")
    return tmp_path


def test_batches_hold_what_the_files_hold(folder):
    source = data.open_source("taskonomy", data_dir=str(folder), image_size=(8, 8))
    info, columns = source.info, source.columns("train")
    assert info.tasks == (*layout.DOMAINS, "autoencoder")
    assert set(info.tasks) == set(tasks.TASKS)
    assert info.num_classes == len(info.class_weights) == len(info.colors) == 17
    assert info.units["depth"] == "log"
    assert list(columns.names) == [f"point_{i}_view_0" for i in range(3)]
    batch = batching.gather(columns, info.tasks, [2, 0, -1])
    drawn = taskonomy_fixture.draw(2)
    image = drawn["rgb"].reshape(8, 2, 8, 2, 3).mean((1, 3))
    np.testing.assert_allclose(batch["image"][0] * 255, image, atol=0.501)
    np.testing.assert_allclose(
        batch["targets"]["autoencoder"][:2], batch["image"][:2] * 2 - 1, atol=1e-6
    )
    known = transforms.depth_known(drawn["depth_euclidean"])
    for task, domain in layout.DOMAINS.items():
        file = drawn[domain.names[0]]
        everywhere = (
            known if domain.masked_by_depth or task == "depth" else known | True
        )
        target, mask = transforms.TRANSFORMS[task](file, everywhere, (8, 8))
        np.testing.assert_array_equal(batch["masks"][task][0], mask, task)
        np.testing.assert_allclose(
            batch["targets"][task][0], target, atol=2e-4, err_msg=task
        )
        assert not batch["masks"][task][2].any()
    assert batch["targets"]["seg"].dtype == np.int32
    # The view without normals has none anywhere; its other targets are there.
    assert not batch["masks"]["normal"][1].any()
    assert batch["masks"]["reshading"][1].any()


def test_without_distances_depth_says_what_is_known(folder):
    source = data.open_source("taskonomy", data_dir=str(folder), image_size=(16, 16))
    columns = source.columns("train")
    assert not columns.masks["depth_euclidean"][np.array([1])].any()
    hole = ~columns.masks["reshading"][np.array([1])][0]
    assert hole[:5, :5].all()
    assert hole.sum() == 25


def test_released_and_right_are_kept_apart(folder, tfds_dir):
    options = {"data_dir": str(folder), "image_size": (8, 8)}
    right = data.open_source("taskonomy", **options)
    released = data.open_source("taskonomy", as_released=True, **options)
    assert released.info.num_classes == len(released.info.class_weights) == 18
    a, b = (
        source.columns("train").targets["curvature"][np.array([2])]
        for source in (right, released)
    )
    assert np.ptp(a) > 2
    assert np.ptp(b[b != 0].reshape(-1, 2)[:, 0]) < 0.04
    assert len(list(tfds_dir.glob("taskonomy/8x8-*"))) == 2


def test_domains_that_are_not_there_are_no_tasks(tmp_path):
    drawn = taskonomy_fixture.draw(0)
    few = {domain: drawn[domain] for domain in ("rgb", "edge_texture")}
    taskonomy_fixture.write_view(tmp_path, few, 0)
    options = {"data_dir": str(tmp_path), "image_size": (8, 8)}
    source = data.open_source("taskonomy", **options)
    assert source.info.tasks == ("edge_texture", "autoencoder")
    assert source.info.splits == {"train": 1}
    with pytest.raises(InputError, match="'taskonomy' has no task 'keypoints2d'"):
        data.open_source("taskonomy", tasks=["k"], **options)


def test_it_is_prepared_once(folder, monkeypatch):
    options = {"data_dir": str(folder), "image_size": (8, 8)}
    data.open_source("taskonomy", **options)

    def fail(job):
        raise AssertionError(job)

    monkeypatch.setattr(examples, "make", fail)
    source = data.open_source("taskonomy", tasks=["s"], **options)
    assert set(source.columns("validation").targets) == {"seg"}


def test_workers_do_not_import_tensorflow():
    code = (
        "import sys, mtr_tf.data.taskonomy.examples; print('tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split() == ["False"]


def test_the_package_has_its_builder():
    assert taskonomy.Taskonomy.name == "taskonomy"


@pytest.mark.slow
def test_train_and_attack(folder, tmp_path_factory):
    """Labels, a masked map and the picture through the two binaries."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    commands = (
        ("mtr_tf.train", "--dataset=taskonomy", f"--data_dir={folder}", "--model=tiny",
         "--tasks=s,n,A", "--image_size=16", "--batch_size=2",
         "--epochs=1", "--eval_examples=1", "--eval_steps=1", f"--workdir={workdir}"),
        ("mtr_tf.attack", f"--ckpt={workdir}", "--attack_tasks=seg+normal", "--steps=1",
         "--nochecks"),
    )  # fmt: skip
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    (results,) = workdir.glob("attacks/*/results.json")
    records = json.loads(results.read_text())
    assert {record["task"] for record in records} == {"seg", "normal", "autoencoder"}
