# SPDX-License-Identifier: Apache-2.0
"""Pipes, devices, folders and links in place of files: an error, and no hang."""

from __future__ import annotations

import os
import pathlib
import signal

import cityscapes_fixture
import numpy as np
import pytest
import taskonomy_fixture

from mtr_tf import data
from mtr_tf import files
from mtr_tf.cli import flags as cli_flags
from mtr_tf.errors import InputError


def as_pipe(path):
    os.mkfifo(path)


def as_device(path):
    path.symlink_to("/dev/zero")


def as_terminal(path):
    path.symlink_to("/dev/tty")


def as_folder(path):
    path.mkdir()


def as_circle(path):
    path.symlink_to(path.name)


def as_broken_link(path):
    path.symlink_to("nothing")


ALL = [as_pipe, as_device, as_terminal, as_folder, as_circle, as_broken_link]


@pytest.fixture(autouse=True)
def no_hang(tmp_path, monkeypatch):
    """Stops a test that waits for a pipe."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    signal.alarm(60)
    yield
    signal.alarm(0)


def told(call) -> str:
    """The one line that a command prints for the error that `call` raises."""
    with pytest.raises((InputError, OSError)) as excinfo:
        call()
    error = excinfo.value
    message = str(error) if isinstance(error, InputError) else files.what_failed(error)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("odd", ALL)
@pytest.mark.parametrize("part", ["train", "valannot"])
def test_in_camvid(camvid_dir, tmp_path, odd, part):
    root = pathlib.Path(tmp_path / "camvid")
    for folder in camvid_dir.iterdir():
        (root / folder.name).mkdir(parents=True)
        for file in folder.iterdir():
            os.link(file, root / folder.name / file.name)
    path = root / part / "000.png"
    path.unlink()
    odd(path)
    source = data.open_source("camvid", image_size=(8, 8), data_dir=str(root))
    split = "validation" if part == "valannot" else "train"
    assert str(path) in told(lambda: source.columns(split))


@pytest.mark.parametrize("odd", ALL)
@pytest.mark.parametrize("kind", ["leftImg8bit", "gtFine"])
def test_in_cityscapes(tmp_path, odd, kind):
    root = cityscapes_fixture.write(tmp_path / "raw")
    name = cityscapes_fixture.TRAIN[0]
    path = cityscapes_fixture.path(root, kind, "train", name)
    path.unlink()
    odd(path)
    options = {"image_size": (8, 10), "data_dir": str(root), "tasks": ("seg",)}
    try:
        source = data.open_source("cityscapes", **options)
    except (InputError, OSError):
        assert path.name in told(lambda: data.open_source("cityscapes", **options))
    else:  # A folder of that name is no file of the data set.
        assert odd is as_folder
        # A picture is left out; one without labels stays, and all of it is masked.
        pictures = len(cityscapes_fixture.TRAIN) - (kind == "leftImg8bit")
        assert source.info.splits["train"] == pictures
        masks = source.columns("train").masks["seg"][np.arange(pictures)]
        labelled = masks.reshape(pictures, -1).any(axis=1)
        assert labelled.sum() == len(cityscapes_fixture.TRAIN) - 1


@pytest.mark.parametrize("odd", ALL)
def test_in_taskonomy(tmp_path, odd):
    taskonomy_fixture.write_building(tmp_path / "raw" / "a", range(3))
    path = tmp_path / "raw" / "train_val_test_tiny.csv"
    odd(path)
    options = {"image_size": (8, 8), "data_dir": str(tmp_path / "raw")}
    try:
        data.open_source("taskonomy", **options)
    except (InputError, OSError):
        assert str(path) in told(lambda: data.open_source("taskonomy", **options))
    else:
        assert odd is as_folder


def test_a_folder_that_holds_itself(tmp_path):
    root = tmp_path / "raw"
    taskonomy_fixture.write_building(root / "a", range(3))
    (root / "loop").symlink_to(root)
    message = told(lambda: data.open_source("taskonomy", data_dir=str(root)))
    assert str(root / "loop") in message


@pytest.mark.parametrize("odd", ALL)
@pytest.mark.parametrize("study", [True, False])
def test_a_study_or_its_state(tmp_path, odd, study):
    from mtr_tf.study import results
    from mtr_tf.study import toml_table

    path = tmp_path / "study.toml"
    odd(path)
    read = toml_table.read if study else results._json
    assert str(path) in told(lambda: read(path))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(36, "File name too long", "x" * 300), "File name too long"),
        (PermissionError(13, "Permission denied", b"runs/a"), "runs/a cannot be used"),
    ],
)
def test_the_systems_word_ends_a_command(monkeypatch, capsys, error, said):
    def main():
        raise error

    monkeypatch.setattr(cli_flags.app, "run", lambda function, **_: function(["name"]))
    monkeypatch.setattr(cli_flags.sys, "argv", ["name"])
    monkeypatch.setattr(cli_flags, "_set_up_logging", lambda: None)
    with pytest.raises(SystemExit) as system_exit:
        cli_flags.run("name", "doc", (), main, "")
    assert system_exit.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
