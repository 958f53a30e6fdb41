# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from mtr_tf import tasks
from mtr_tf.data import camvid
from mtr_tf.errors import InputError


def write(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8), mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """2 + 1 pictures of 8 x 12 (height x width) whose labels are 0-11."""
    rng = np.random.default_rng(0)
    for split, names in (("train", "ab"), ("val", "c")):
        for name in names:
            file = f"{name}.png"
            write(tmp_path / split / file, rng.integers(0, 256, (8, 12, 3)))
            write(tmp_path / f"{split}annot" / file, rng.integers(0, 12, (8, 12)))
    return tmp_path


def read_all(folder, **kwargs):
    source = camvid.open_source(data_dir=str(folder), image_size=(4, 6), **kwargs)
    return {split: source.columns(split) for split in source.info.splits}


def test_pictures_are_averaged_and_labels_are_picked(folder):
    columns = read_all(folder)["train"]
    image = np.asarray(Image.open(folder / "train" / "b.png")).astype(np.float64)
    blocks = image.reshape(4, 2, 6, 2, 3)
    assert columns.images.dtype == np.uint8
    np.testing.assert_allclose(columns.images[1], blocks.mean((1, 3)), atol=1)
    assert abs(columns.images[1] - blocks.mean((1, 3))).mean() < 0.5
    label = np.asarray(Image.open(folder / "trainannot" / "b.png"))
    mask = columns.masks["seg"][1]
    # Halving by nearest neighbour: each block's pixel at its far corner.
    small_label = label[1::2, 1::2]
    np.testing.assert_array_equal(mask, small_label != 11)
    np.testing.assert_array_equal(columns.targets["seg"][1][mask], small_label[mask])
    assert columns.targets["seg"].max() < len(camvid.CLASSES)
    assert mask.dtype == bool


def test_videos_are_in_the_names_of_files(folder):
    for split, names in (("train", "ab"), ("val", "c")):
        for number, name in enumerate(names):
            for part in (split, f"{split}annot"):
                path = folder / part / f"{name}.png"
                path.rename(path.with_stem(f"0016E5_{number:05}"))
    for task_names in (None, ("autoencoder",)):
        columns = read_all(folder, tasks=task_names)["train"]
        assert columns.names == ["0016E5_00000", "0016E5_00001"]
        assert columns.groups.of == ["0016E5", "0016E5"]
        assert columns.groups.frames


def test_size_is_kept_where_it_is_asked_for(folder):
    source = camvid.open_source(data_dir=str(folder), image_size=(8, 12))
    columns = source.columns("validation")
    image = np.asarray(Image.open(folder / "val" / "c.png"))
    label = np.asarray(Image.open(folder / "valannot" / "c.png"))
    np.testing.assert_array_equal(columns.images[0], image)
    np.testing.assert_array_equal(
        columns.targets["seg"][0], np.where(label < 11, label, 0)
    )
    np.testing.assert_array_equal(columns.masks["seg"][0], label < 11)


def test_info(folder):
    info = camvid.open_source(data_dir=str(folder)).info
    assert info.name == "camvid"
    assert info.image_shape == (96, 128, 3)
    assert info.splits == {"train": 2, "validation": 1}
    assert tuple(info.tasks) == ("seg", "edge_texture", "keypoints2d", "autoencoder")
    assert tasks.resolve(info.tasks) == tuple(info.tasks)
    assert len(info.classes) == len(info.colors) == 11
    assert info.classes[3] == "road"
    assert info.colors[3] == (128, 64, 128)


def test_test_split_is_read_where_there_is_one(folder):
    write(folder / "test" / "t.png", np.zeros((8, 12, 3)))
    with pytest.raises(InputError, match="testannot' must exist"):
        camvid.open_source(data_dir=str(folder))
    write(folder / "testannot" / "t.png", np.zeros((8, 12)))
    assert camvid.open_source(data_dir=str(folder)).info.splits["test"] == 1


def test_sizes_may_differ_and_labels_may_have_a_palette(folder):
    write(folder / "train" / "a.png", np.full((30, 20, 3), 7))
    label = Image.fromarray(np.full((30, 20), 5, np.uint8), "P")
    label.putpalette(list(range(256)) * 3)
    label.save(folder / "trainannot" / "a.png")
    columns = read_all(folder)["train"]
    assert (columns.images[0] == 7).all()
    assert (columns.targets["seg"][0] == 5).all()


def test_decoded_once_and_lazily(folder):
    source = camvid.open_source(data_dir=str(folder))
    assert source.columns("train") is source.columns("train")
    (folder / "val" / "c.png").write_bytes(b"")  # Not read above, hence no error.
    with pytest.raises(InputError, match=r"c\.png"):
        source.columns("validation")


def test_labels_are_not_read_where_seg_is_not_asked_for(folder):
    (folder / "trainannot" / "a.png").write_bytes(b"junk")
    columns = read_all(folder, tasks=("autoencoder",))["train"]
    assert columns.targets == {}
    assert len(columns.images) == 2


def test_other_files_are_left_alone(folder):
    (folder / "train" / "README.txt").write_text("hello")
    (folder / "train" / "._a.png").write_bytes(b"Finder was here")
    assert camvid.open_source(data_dir=str(folder)).info.splits["train"] == 2


# What a user can get wrong.


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="give --data_dir.*trainannot.*SegNet"):
        camvid.open_source()
    with pytest.raises(InputError, match="got '.*nowhere'"):
        camvid.open_source(data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="train' must exist"):
        camvid.open_source(data_dir=str(tmp_path))


@pytest.mark.parametrize("missing", ["train", "trainannot", "val", "valannot"])
def test_a_missing_or_empty_folder(folder, missing):
    for file in (folder / missing).iterdir():
        file.unlink()
    with pytest.raises(InputError, match=f"{missing}' must hold PNG files"):
        camvid.open_source(data_dir=str(folder))
    (folder / missing).rmdir()
    with pytest.raises(InputError, match=f"{missing}' must exist"):
        camvid.open_source(data_dir=str(folder))


def test_picture_without_label_and_label_without_picture(folder):
    (folder / "trainannot" / "b.png").unlink()
    with pytest.raises(InputError, match=r"picture needs a label.*train/b\.png' has"):
        camvid.open_source(data_dir=str(folder))
    (folder / "train" / "b.png").unlink()
    write(folder / "trainannot" / "z.png", np.zeros((8, 12)))
    with pytest.raises(InputError, match=r"label needs a picture.*annot/z\.png' has"):
        camvid.open_source(data_dir=str(folder))


def bad_label(array):
    return lambda folder: write(folder / "trainannot" / "a.png", array)


def damage(file, change):
    def rewrite(folder):
        path = folder / file
        path.write_bytes(change(path.read_bytes()))

    return rewrite


def other_format(file):
    return lambda folder: Image.new("RGB", (12, 8)).save(folder / file, "JPEG")


BROKEN = r"must be a complete PNG file"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (bad_label(np.zeros((8, 13))), r"12 x 8, but '.*annot/a\.png' is 13 x 8"),
        (bad_label(np.full((8, 12), 12)), r"annot/a\.png' contains 12"),
        (bad_label(np.full((8, 12), 255)), r"annot/a\.png' contains 255"),
        (bad_label(np.zeros((8, 12, 3))), r"annot/a\.png' has Pillow's mode RGB"),
        (
            lambda folder: write(folder / "train" / "a.png", np.zeros((8, 12))),
            r"8-bit RGB, but '.*train/a\.png' has Pillow's mode L",
        ),
        (other_format("train/a.png"), rf"train/a\.png' {BROKEN}"),
        (
            damage("val/c.png", lambda data: data[: len(data) // 2]),
            rf"c\.png' {BROKEN}",
        ),
        (damage("val/c.png", lambda data: data[:-12]), rf"c\.png' {BROKEN}"),
        (damage("val/c.png", lambda data: data[:20]), rf"c\.png' {BROKEN}"),
        (damage("val/c.png", lambda data: b""), rf"c\.png' {BROKEN}"),
        (
            damage("val/c.png", lambda d: d[:100] + bytes([d[100] ^ 1]) + d[101:]),
            rf"c\.png' {BROKEN}",
        ),
        (damage("valannot/c.png", lambda data: data[:-30]), rf"c\.png' {BROKEN}"),
    ],
)
def test_broken_files_are_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message):
        read_all(folder)


@pytest.mark.parametrize("size", [(0, 8), (8,), (8, -1)])
def test_image_size(folder, size):
    with pytest.raises(InputError, match="positive height and width"):
        camvid.open_source(data_dir=str(folder), image_size=size)


def test_the_real_data():
    default = pathlib.Path(__file__).parents[3] / "shared" / "camvid"
    folder = pathlib.Path(os.environ.get("MTR_CAMVID", default))
    if not folder.is_dir():
        pytest.skip(f"no CamVid in {folder}; set MTR_CAMVID to its folder")
    source = camvid.open_source(data_dir=str(folder))
    columns = source.columns("train")
    assert columns.images.shape == (source.info.splits["train"], 96, 128, 3)
    levels = columns.images / 255
    np.testing.assert_allclose(levels.mean((0, 1, 2)), source.info.mean, atol=5e-4)
    np.testing.assert_allclose(levels.std((0, 1, 2)), source.info.std, atol=5e-4)
    labels = columns.targets["seg"][columns.masks["seg"]]
    share = np.bincount(labels, minlength=11) / labels.size
    assert source.info.classes[share.argmax()] == "road"
    assert share.min() > 0.001
