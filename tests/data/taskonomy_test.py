# SPDX-License-Identifier: Apache-2.0
"""Taskonomy from its folders to batches: finding, splitting, preparing, reading."""

from __future__ import annotations

import io
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import taskonomy_fixture
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from process_fixture import imported_by

from mtr_tf import data
from mtr_tf import tasks
from mtr_tf.data import batching
from mtr_tf.data import png
from mtr_tf.data import taskonomy
from mtr_tf.data.source import Columns
from mtr_tf.data.taskonomy import examples
from mtr_tf.data.taskonomy import finding
from mtr_tf.data.taskonomy import layout
from mtr_tf.data.taskonomy import reading
from mtr_tf.data.taskonomy import splitting
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
    """A folder of the test's own for prepared data."""
    folder = tmp_path_factory.mktemp("tfds")
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    return folder


def split_names(folder, **options):
    listing = finding.scan(str(folder))
    return {
        split: [view.name for view in views]
        for split, views in splitting.splits(listing, **options).items()
    }


def remove(folder, pattern):
    (path,) = folder.glob(pattern)
    path.unlink()


# Finding and splitting.


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_all_arrangements_are_understood(tmp_path, arrangement):
    taskonomy_fixture.write_building(tmp_path, [10, 9], folder=arrangement)
    pictures = list(tmp_path.rglob("*_domain_rgb.png"))
    for folder in ("rgb_large", "lost+found"):
        (tmp_path / folder).mkdir()
        for path in pictures:
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
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


def test_views_are_those_of_the_files(tmp_path):
    """Compares with a dict of the files; names may have leading zeros."""
    rng = np.random.default_rng(0)
    expected = {}
    for _ in range(200):
        building, point, view = rng.choice(["b", "a", "ü"]), *rng.integers(0, 15, 2)
        domain = str(rng.choice(["rgb", "normal", "depth_zbuffer"]))
        stem = (
            f"point_{point:03}_view_{view}"
            if point % 2
            else f"point_{point}_view_{view}"
        )
        path = tmp_path / building / domain / f"{stem}_domain_{domain}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * int(rng.integers(100, 300)))
        task = layout.TASK_OF_NAME[domain]
        places = expected.setdefault((str(building), int(point), int(view)), {})
        places[task] = path
    listing = finding.scan(str(tmp_path))
    rgb_views = {key: p for key, p in expected.items() if layout.RGB in p}
    assert listing.without_picture == len(expected) - len(rgb_views) > 0
    views = {(v.building, v.point, v.view): v for v in listing.views}
    assert list(views) == sorted(rgb_views)
    for key, places in rgb_views.items():
        assert {task: views[key].path(task) for task in views[key].places} == places
        for task, path in places.items():
            assert views[key].places[task].size == path.stat().st_size
        assert views[key].path("seg") is None
    selection = listing.views.select([3, 0])
    names = ["/".join(map(str, (k[0], views[k].stem))) for k in views]
    assert list(finding.Names(selection)) == [names[3], names[0]]
    assert list(finding.Names(listing.views)[1:4]) == names[1:4]


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
    released_names = split_names(tmp_path, as_released=True)
    assert released_names["train"] == [f"{name}/point_0_view_0" for name in "abcd"]


def test_a_fifth_of_the_buildings_is_validation(tmp_path):
    for i in range(17):
        file = tmp_path / f"b{i:02}" / "rgb" / "point_0_view_0_domain_rgb.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(100))
    names = split_names(tmp_path)["validation"]
    assert [name[:3] for name in names] == ["b14", "b15", "b16"]


LIST = "id, train, val, test\n"


def test_lists_say_the_split_of_buildings(tmp_path):
    # As in the lists, in another case, in a subfolder, and in no list.
    for name in ("a", "B", "more/c", "d"):
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
    assert finding.summary(listing, splitting.splits(listing)) == (
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
    label.write_bytes(b"")  # Such placeholders stand for missing labels.
    remove(tmp_path, "rgb/point_1301_*")
    listing = finding.scan(str(tmp_path))
    assert finding.summary(listing, splitting.splits(listing)) == (
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
        (
            two_splits,
            "in one split only, but the lists have 'x' in train and validation",
        ),
        (another_list, "must name a building of the folder, but name none of x;"),
        (twice, "one file per domain, but .* belong to the same view"),
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

    def decode(array):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        return png.decode(file.getvalue(), "x.png")

    for kind, shape in ((np.uint16, (4, 5)), (np.uint8, (4, 5)), (np.uint8, (4, 5, 3))):
        array = rng.integers(0, np.iinfo(kind).max + 1, shape).astype(kind)
        assert decode(array).dtype == kind
        np.testing.assert_array_equal(decode(array), array)
    rgba = np.dstack((array, np.zeros((4, 5), np.uint8)))
    np.testing.assert_array_equal(decode(rgba), array)


EIGHT_BITS = np.zeros((16, 16), np.uint8)


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("depth", EIGHT_BITS, "one channel of 16 bits, but .* one channel of 8 bits"),
        (
            "seg",
            EIGHT_BITS + 18,
            "with values from 1 to 17, or 0 for none, but .* the label 18",
        ),
        (
            "seg",
            np.dstack([EIGHT_BITS] * 3),
            "labels must be one channel .* colours of",
        ),
        ("normal", EIGHT_BITS, "three colours, but .* has one channel of 8 bits"),
        ("depth", b"\x89PNG not one", "complete PNG file, but cannot be read .*again"),
    ],
)
def test_files_of_another_kind(tmp_path, task, content, message):
    path = tmp_path / "file.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)
    with pytest.raises(InputError, match=message) as error:
        examples.read_file(task, str(path))
    assert str(path) in str(error.value)


def cut(folder, pattern):
    (path,) = folder.glob(pattern)
    path.write_bytes(path.read_bytes()[:200])
    return str(path)


def counting(monkeypatch):
    """The points of the examples that are made from now on."""
    make, points = examples.make, []

    def count(job):
        points.append(pathlib.Path(job["files"][layout.RGB]).name.split("_")[1])
        return make(job)

    monkeypatch.setattr(examples, "make", count)
    return points


def test_broken_files_are_all_listed_masked_and_counted(tmp_path, tfds_dir, caplog):
    taskonomy_fixture.write_building(tmp_path, [0, 1, 1300])
    paths = [
        cut(tmp_path, "reshading/point_1_*"),
        cut(tmp_path, "reshading/point_1300_*"),
        cut(tmp_path, "segment_semantic/point_0_*"),
        cut(tmp_path, "depth_euclidean/point_0_*"),
    ]
    options = {"data_dir": str(tmp_path), "image_size": (16, 16)}
    source = data.open_source("taskonomy", **options)
    (listing,) = (m for m in caplog.messages if m.startswith("4 broken files of Task"))
    assert all(path in listing for path in paths)
    train, validation = map(source.columns, ("train", "validation"))
    rows = np.arange(2)
    assert train.masks["reshading"][rows].any(axis=(1, 2)).tolist() == [True, False]
    assert not validation.masks["reshading"][rows[:1]].any()
    assert train.masks["seg"][rows].any(axis=(1, 2)).tolist() == [False, True]
    distances = train.masks["depth_euclidean"][rows]
    assert distances.any(axis=(1, 2)).tolist() == [False, True]
    hole = ~train.masks["reshading"][rows[:1]][0]  # From depth_zbuffer instead.
    assert (hole.sum(), hole[:5, :5].sum()) == (25, 25)
    assert train.masks["normal"][rows].any(axis=(1, 2)).all()
    caplog.clear()
    data.open_source("taskonomy", **options)
    prefix = "Taskonomy: masked because they are broken: "
    (message,) = (
        m.removeprefix(prefix) for m in caplog.messages if m.startswith(prefix)
    )
    counts, cure = message.split(" views. ")
    expected = ("segment_semantic 1", "depth_euclidean 1", "reshading 2")
    assert sorted(counts.split(", ")) == sorted(expected)
    (folder,) = tfds_dir.glob("taskonomy/16x16*/*")
    assert f"again, delete {folder} to have them read" in cure


def test_broken_pictures_are_refused_all_at_once(tmp_path, tfds_dir, monkeypatch):
    taskonomy_fixture.write_building(tmp_path, [0, 1, 2, 1300])
    patterns = ("rgb/point_1_*", "rgb/point_1300_*", "normal/point_0_*")
    paths = [cut(tmp_path, pattern) for pattern in patterns]
    options = {"data_dir": str(tmp_path), "image_size": (8, 8)}
    with pytest.raises(InputError, match="2 of Taskonomy's are") as error:
        data.open_source("taskonomy", **options)
    assert all(path in str(error.value) for path in paths)
    taskonomy_fixture.write_building(tmp_path, [1, 1300])
    points = counting(monkeypatch)
    source = data.open_source("taskonomy", **options)
    assert points == ["1", "1300"]
    assert source.info.splits == {"train": 3, "validation": 1}
    assert not list(tfds_dir.rglob("*parts*"))


def test_only_what_is_asked_for_is_opened(tmp_path, monkeypatch):
    taskonomy_fixture.write_building(tmp_path, [0, 1300])
    cut(tmp_path, "normal/point_0_*")
    read_file, opened_tasks = examples.read_file, []

    def listen(task, path):
        opened_tasks.append(task)
        return read_file(task, path)

    monkeypatch.setattr(examples, "read_file", listen)
    options = {"data_dir": str(tmp_path), "image_size": (8, 8)}
    for task_names, expected in (
        (["A"], {"rgb"}),
        (["s"], {"rgb", "seg"}),
        (["r", "k"], {"rgb", "reshading", "keypoints2d", "depth_euclidean"}),
        (["k"], set()),  # Already prepared.
        (["k", "s"], {"rgb", "seg", "keypoints2d"}),
    ):
        opened_tasks.clear()
        source = data.open_source("taskonomy", tasks=task_names, **options)
        assert set(opened_tasks) == expected
        assert len(opened_tasks) == 2 * len(expected)
        expected_tasks = set(tasks.resolve(task_names))
        assert set(source.columns("train").targets) == expected_tasks
        assert set(source.info.tasks) == set(tasks.TASKS)


def hole_of(folder, task="reshading", **options):
    """The unknown pixels of a view, bool [16, 16]."""
    options |= {"data_dir": str(folder), "image_size": (16, 16), "tasks": [task]}
    columns = data.open_source("taskonomy", **options).columns("train")
    return ~columns.masks[task][np.arange(1)][0]


def test_holes_are_known_without_depth_files(tmp_path, caplog):
    images = taskonomy_fixture.draw(0)
    images["normal"][:4, :3] = 128
    images["normal"][4, 4] = (128, 128, 127)
    images["principal_curvature"][2:6, :3] = 0
    images["principal_curvature"][7, 7] = (0, 0, 1)
    basic_domains = ("rgb", "reshading", "edge_texture")

    def folder(name, *domains):
        view = {domain: images[domain] for domain in (*basic_domains, *domains)}
        taskonomy_fixture.write_view(tmp_path / name, view, 0)
        return tmp_path / name

    def rectangle(rows, columns=slice(0, 3)):
        mask = np.zeros((16, 16), bool)
        mask[rows, columns] = True
        return mask

    both_dir = folder("both", "normal", "principal_curvature")
    np.testing.assert_array_equal(hole_of(both_dir), rectangle(slice(0, 6)))
    np.testing.assert_array_equal(hole_of(both_dir, "normal"), rectangle(slice(0, 6)))
    assert not hole_of(both_dir, "edge_texture").any()
    view_dir = folder("normals", "normal")
    np.testing.assert_array_equal(hole_of(view_dir), rectangle(slice(0, 4)))
    view_dir = folder("curvatures", "principal_curvature")
    np.testing.assert_array_equal(hole_of(view_dir), rectangle(slice(2, 6)))
    # The released code does not look for holes there.
    assert not hole_of(view_dir, as_released=True).any()
    # Omnidata's masks come first, under either name; depths before them.
    mask = np.full((16, 16), 255, np.uint8)
    mask[9:, 9:] = 0
    for name in ("mask_valid", "depth_zbuffer"):
        view_dir = folder(f"masks_{name}", "normal")
        path = view_dir / "mask_valid" / f"point_0_view_0_domain_{name}.png"
        path.parent.mkdir()
        Image.fromarray(np.kron(mask, np.ones((4, 4), np.uint8))).save(path)
        expected = rectangle(slice(9, 16), slice(9, 16))
        np.testing.assert_array_equal(hole_of(view_dir), expected)
        assert "depth" not in finding.scan(str(view_dir)).tasks
    view_dir = folder("masks_mask_valid", "depth_zbuffer")
    np.testing.assert_array_equal(
        hole_of(view_dir), rectangle(slice(0, 5), slice(0, 5))
    )
    caplog.clear()
    assert not hole_of(folder("blind")).any()
    message = "holes count as surfaces in 1 views without depth_euclidean, depth_zb"
    listing = finding.scan(str(tmp_path / "blind"))
    splits = splitting.splits(listing)
    assert message in finding.summary(listing, splits)
    assert "holes" not in finding.summary(listing, splits, ["edge_texture"])


# Shares of a folder.


def points_of(folder, **options):
    listing = finding.scan(str(folder))
    return {
        split: [f"{view.building}{view.point}" for view in views]
        for split, views in splitting.splits(listing, **options).items()
    }


def test_a_share_is_validation_where_that_is_asked_for(tmp_path):
    for point in (3, 7, 20, 31, 1250):
        taskonomy_fixture.write_view(tmp_path / "a", taskonomy_fixture.draw(0), point)
    taskonomy_fixture.write_view(tmp_path / "a", taskonomy_fixture.draw(0), 31, view=1)
    points = points_of(tmp_path / "a", validation_share=0.4)
    assert points == {"train": ["3", "7", "20"], "validation": ["31", "31", "1250"]}
    assert points_of(tmp_path / "a", validation_share=0.01)["validation"] == ["1250"]
    assert points_of(tmp_path / "a", validation_share=1.0)["train"] == ["3"]
    for building in "vwxyz":
        taskonomy_fixture.write_building(
            tmp_path / "b", [0, 1300], folder=f"{building}/{{domain}}"
        )
    (tmp_path / "b" / "train_val_test_tiny.csv").write_text(LIST + "v,0,1,0\n")
    points = points_of(tmp_path / "b", validation_share=0.4)
    assert points["validation"] == ["y0", "y1300", "z0", "z1300"]
    assert len(points["train"]) == 6


def test_a_share_that_cannot_be_had(tmp_path):
    taskonomy_fixture.write_building(tmp_path, [5])
    with pytest.raises(
        InputError, match="needs at least two points or buildings to divide"
    ):
        points_of(tmp_path, validation_share=0.5)
    for share in (20, -0.2, float("nan")):
        with pytest.raises(InputError, match="must be a share, from 0 to 1; got"):
            points_of(tmp_path, validation_share=share)
    with pytest.raises(InputError, match="leave out one of them"):
        points_of(tmp_path, validation_share=0.5, as_released=True)
    with pytest.raises(InputError, match="only for taskonomy, but got 0.5 for rooms"):
        data.open_source("rooms", validation_share=0.5)


@pytest.mark.parametrize(
    ("points", "absent", "why"),
    [
        (
            [0, 1, 2],
            "validation",
            "points from 1200 .* all points there are lie below; add",
        ),
        ([1200, 1300, 1301], "train", "points from 1200 .* lie from there on; add"),
    ],
)
def test_a_part_of_a_building_says_what_to_do(tmp_path, points, absent, why):
    taskonomy_fixture.write_building(tmp_path, points)
    options = {"data_dir": str(tmp_path), "image_size": (8, 8), "tasks": ["seg"]}
    with pytest.raises(InputError, match=f"not '{absent}': {why}") as error:
        data.open_source("taskonomy", **options).columns(absent)
    assert "--validation_share=0.2" in str(error.value)
    source = data.open_source("taskonomy", validation_share=0.2, **options)
    assert source.info.splits == {"train": 2, "validation": 1}
    assert len(source.columns(absent).images) == source.info.splits[absent]


def test_lists_without_the_buildings_say_what_to_do(tmp_path):
    taskonomy_fixture.write_building(tmp_path, [0], folder="x/{domain}")
    (tmp_path / "train_val_test_tiny.csv").write_text(LIST + "x,1,0,0\n")
    source = data.open_source(
        "taskonomy", data_dir=str(tmp_path), image_size=(8, 8), tasks=["seg"]
    )
    with pytest.raises(InputError, match="csv name no building of the folder for it"):
        source.columns("validation")


# Depths, edges, groups.


def test_depths_in_metres(tmp_path):
    taskonomy_fixture.write_building(tmp_path, [0])
    options = {"data_dir": str(tmp_path), "tasks": ["d", "D"]}
    source = data.open_source(
        "taskonomy", depth_target="metres", image_size=(16, 16), **options
    )
    columns = source.columns("train")
    for task, domain in (("depth", "depth_zbuffer"), ("depth_euclidean",) * 2):
        file = taskonomy_fixture.draw(0)[domain]
        valid = file < 65535
        depth = columns.targets[task][np.arange(1)][0, ..., 0]
        expected = np.where(valid, file / 512, 0)  # A step is 1/512 m.
        np.testing.assert_allclose(depth, expected, rtol=2e-4)
        np.testing.assert_array_equal(columns.masks[task][np.arange(1)][0], valid)
        assert source.info.ranges[task] == (0.0, 10.0)
        for metric in tasks.TASKS[task].metrics:
            unit = tasks.TASKS[task].unit_of(metric, source.info.units)
            assert unit == {"mae": "m", "rmse": "m", "rel": "", "loss": ""}[metric.name]
    assert source.info.units == {"curvature": ""}
    # Smaller maps have geometric means of 1 + steps.
    small_columns = data.open_source(
        "taskonomy", depth_target="metres", image_size=(1, 1), **options
    ).columns("train")
    file = taskonomy_fixture.draw(0)["depth_zbuffer"].astype(float)
    steps = np.exp(np.log1p(file[file < 65535]).mean()) - 1
    depth = small_columns.targets["depth"][np.arange(1)]
    np.testing.assert_allclose(depth, [[[[steps / 512]]]], rtol=2e-4)
    with pytest.raises(
        InputError, match="must be metres, or left out to use the files"
    ):
        data.open_source("taskonomy", depth_target="inverse_depth", **options)


def test_a_share_of_a_logarithm_is_said_to_be_one():
    depth = tasks.TASKS["depth"]
    (rel,) = (metric for metric in depth.metrics if metric.name == "rel")
    assert depth.unit_of(rel, layout.UNITS) == "share of log"
    assert depth.unit_of(rel, {"depth": "pixels"}) == "share of pixels"
    assert depth.unit_of(rel, {}) == depth.unit_of(rel, {"depth": "m"}) == ""


def test_occlusion_edges_are_painted_up_to_what_is_there(tmp_path):
    images = taskonomy_fixture.draw(0)
    images["edge_occlusion"][8:, 8:] += np.uint16(60000)
    taskonomy_fixture.write_view(tmp_path, images, 0)
    options = {"data_dir": str(tmp_path), "image_size": (16, 16)}
    source = data.open_source("taskonomy", **options)
    columns = source.columns("train")
    values = columns.targets["edge_occlusion"][np.arange(1)]
    values = values[columns.masks["edge_occlusion"][np.arange(1)]]
    assert values.max() > 10  # Such targets are not clipped.
    low, high = source.info.ranges["edge_occlusion"]
    assert low == -1
    assert high == pytest.approx(np.percentile(values, 99))
    targets = {"edge_occlusion": np.full((2, 4, 4, 1), -1.0)}
    masks = {"edge_occlusion": np.ones((2, 4, 4), bool)}
    columns = Columns(np.zeros((2, 4, 4, 3), np.uint8), targets, masks)
    assert reading.edges_painted(columns) == (-1, 1)


def test_views_of_a_building_depend_on_each_other(tmp_path):
    taskonomy_fixture.write_building(tmp_path, [0, 1])
    taskonomy_fixture.write_view(tmp_path, taskonomy_fixture.draw(5), 1, view=2)
    options = {"image_size": (8, 8), "tasks": ["seg"]}
    source = data.open_source("taskonomy", data_dir=str(tmp_path), **options)
    groups = source.columns("train").groups
    assert (groups.of, groups.name) == ([0, 1, 1], "points of one building")
    for building in "xyz":
        taskonomy_fixture.write_building(
            tmp_path / "b", [0, 3], folder=f"{building}/{{domain}}"
        )
    source = data.open_source("taskonomy", data_dir=str(tmp_path / "b"), **options)
    groups = source.columns("train").groups
    assert (groups.of, groups.name) == (["x", "x", "y", "y"], "buildings")


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
    assert tuple(info.tasks) == (*layout.DOMAINS, "autoencoder")
    assert set(info.tasks) == set(tasks.TASKS)
    assert info.num_classes == len(info.class_weights) == len(info.colors) == 17
    assert info.units["depth"] == "log"
    assert list(columns.names) == [f"point_{i}_view_0" for i in range(3)]
    batch = batching.gather(columns, info.tasks, [2, 0, -1])
    images = taskonomy_fixture.draw(2)
    image = images["rgb"].reshape(8, 2, 8, 2, 3).mean((1, 3))
    np.testing.assert_allclose(batch["image"][0] * 255, image, atol=0.501)
    np.testing.assert_allclose(
        batch["targets"]["autoencoder"][:2], batch["image"][:2] * 2 - 1, atol=1e-6
    )
    valid = transforms.depth_known(images["depth_euclidean"])
    for task, domain in layout.DOMAINS.items():
        file = images[domain.names[0]]
        task_valid = (
            valid if domain.masked_by_depth or task == "depth" else valid | True
        )
        target, mask = transforms.TRANSFORMS[task](file, task_valid, (8, 8))
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
    right_source = data.open_source("taskonomy", **options)
    released_source = data.open_source("taskonomy", as_released=True, **options)
    assert (
        released_source.info.num_classes
        == len(released_source.info.class_weights)
        == 18
    )
    a, b = (
        source.columns("train").targets["curvature"][np.array([2])]
        for source in (right_source, released_source)
    )
    assert np.ptp(a) > 2
    assert np.ptp(b[b != 0].reshape(-1, 2)[:, 0]) < 0.04
    assert len(list(tfds_dir.glob("taskonomy/8x8-*"))) == 2


def test_domains_that_are_not_there_are_no_tasks(tmp_path):
    images = taskonomy_fixture.draw(0)
    view = {domain: images[domain] for domain in ("rgb", "edge_texture")}
    taskonomy_fixture.write_view(tmp_path, view, 0)
    options = {"data_dir": str(tmp_path), "image_size": (8, 8)}
    source = data.open_source("taskonomy", **options)
    assert tuple(source.info.tasks) == ("edge_texture", "autoencoder")
    assert source.info.splits == {"train": 1}
    with pytest.raises(InputError, match="'taskonomy' has no task 'keypoints2d'"):
        data.open_source("taskonomy", tasks=["k"], **options)


def test_tasks_without_a_file_in_a_split_are_known(folder):
    assert data.open_source(
        "taskonomy", data_dir=str(folder), image_size=(8, 8), tasks=["n", "s"]
    ).unknown == {"train": [], "validation": []}
    remove(folder, "normal/point_1200_*")
    for point in range(3):
        remove(folder, f"segment_semantic/point_{point}_*")
    source = data.open_source(
        "taskonomy", data_dir=str(folder), image_size=(8, 8), tasks=["n", "s"]
    )
    assert source.unknown == {"train": ["seg"], "validation": ["normal"]}
    assert not source.columns("train").masks["seg"][np.arange(3)].any()


def test_it_is_prepared_once(folder, monkeypatch):
    options = {"data_dir": str(folder), "image_size": (8, 8)}
    data.open_source("taskonomy", **options)

    def fail(job):
        raise AssertionError(job)

    monkeypatch.setattr(examples, "make", fail)
    source = data.open_source("taskonomy", tasks=["s"], **options)
    assert set(source.columns("validation").targets) == {"seg"}


def test_workers_do_not_import_tensorflow():
    assert "tensorflow" not in imported_by("import mtr_tf.data.taskonomy.examples")


def test_the_package_registers_its_builder():
    assert tfds.builder_cls("taskonomy") is taskonomy.Taskonomy


OPEN = """
import sys
from mtr_tf import data
data.open_source("taskonomy", data_dir=sys.argv[1], image_size=(16, 16))
"""


def begin(folder, store):
    """Starts a process that prepares the data of `folder` in `store`."""
    path = os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, str(folder)],
        env={**os.environ, "PYTHONPATH": path, "TFDS_DATA_DIR": str(store)},
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_others_finish_what_a_killed_process_prepared_to_the_same_bits(
    tmp_path, monkeypatch
):
    source = tmp_path / "taskonomy"
    taskonomy_fixture.write_building(source, range(1150, 1300), size=64)
    assert begin(source, tmp_path / "alone").wait(timeout=300) == 0
    processes = [begin(source, tmp_path / "shared") for _ in range(3)]
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("shared/**/*.npz"))) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes[0].kill()
    codes = [process.wait(timeout=300) for process in processes]
    assert codes[1:] == [0, 0]
    options = {"data_dir": str(source), "image_size": (16, 16)}
    batches, counts = [], []
    for name in ("alone", "shared"):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / name))
        dataset = data.open_source("taskonomy", **options)
        for split in ("train", "validation"):
            columns = dataset.columns(split)
            places = np.arange(len(columns))
            batches.append(batching.gather(columns, dataset.info.tasks, places))
            counts.append(len(columns))
    assert counts == 2 * [50, 100]
    for alone_batch, shared_batch in zip(batches[:2], batches[2:], strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, alone_batch, shared_batch)
    names = {path.name for path in (tmp_path / "shared").rglob("*")}
    assert not [name for name in names if "parts" in name or "claim" in name]


@pytest.mark.slow
def test_train_and_attack(folder, tmp_path_factory):
    """Both commands, on labels, a masked map and the picture."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    commands = (
        ("mtr_tf.train", "--dataset=taskonomy", f"--data_dir={folder}", "--model=tiny",
         "--tasks=s,n,A", "--image_size=16", "--batch_size=2",
         "--epochs=1", "--eval_examples=1", "--eval_eps=0", f"--workdir={workdir}"),
        ("mtr_tf.attack", f"--ckpt={workdir}", "--attack_tasks=seg+normal", "--steps=1",
         "--nochecks"),
    )  # fmt: skip
    for command in commands:
        process = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stderr
    (results,) = workdir.glob("attacks/*/results.json")
    records = json.loads(results.read_text())
    assert {record["task"] for record in records} == {"seg", "normal", "autoencoder"}
