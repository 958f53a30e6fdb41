# SPDX-License-Identifier: Apache-2.0
"""Names that read as patterns, checkpoints after a power cut, odd file systems."""

import errno
import fcntl
import functools
import os
import shutil
import subprocess
import sys

import keras
import pytest
import tensorflow as tf
from absl import logging

from mtr_tf import compare
from mtr_tf import files
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.runs import directory
from mtr_tf.runs import loading
from mtr_tf.training.keeper import Keeper

NAMES = [
    "v*", "v?Y", "v[XY]", "[", "a]b", "back\\slash", "\\", "**", "a b ", "{a,b}",
    "$HOME", "100%s", "x,y", "'\"", "ü", "-run", "#", "~", "x" * 255,
]  # fmt: skip


@functools.cache
def learner(units):
    """A model with this number of units, and its optimizer."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def keeper(workdir, keep=2, units=1):
    return Keeper(workdir, *learner(units), keep)


def kept(workdir):
    return sorted(p.name for p in workdir.rglob("ckpt-*") if p.suffix == ".index")


def saved(workdir, *steps, **options):
    run_keeper = keeper(workdir, **options)
    for step in steps:
        run_keeper.save(step)
    return workdir / "checkpoints"


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def told(monkeypatch):
    """Lines of our log."""
    lines = []

    def warning(line, *values):
        lines.append(line % values)

    monkeypatch.setattr(logging, "warning", warning)
    return lines


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory):
    """A folder of runs, in which tests make further runs."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("vXY", "vX", "a", "x"):
        saved(folder / name, 7)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_pattern(neighbours, name, told):
    """A run deletes only its own oldest checkpoints and goes on from its own newest."""
    neighbour_files = contents(neighbours)
    workdir = neighbours / name
    run_keeper = keeper(workdir)
    for step in (1, 2, 3):
        run_keeper.save(step)
        run_keeper.save_if_best(step, step, "higher")
    assert kept(workdir) == ["ckpt-2.index", "ckpt-3.index", "ckpt-3.index"]
    data = [p.name for p in (workdir / "checkpoints").glob("*.data-*")]
    assert len(data) == 2
    assert keeper(workdir).restore(3) == 3
    shutil.rmtree(workdir)
    assert contents(neighbours) == neighbour_files
    assert not told


def test_other_readers_find_the_newest(tmp_path):
    folder = saved(tmp_path, 1, 2, 3)
    assert tf.train.latest_checkpoint(folder) == str(folder / "ckpt-3")
    state = tf.train.get_checkpoint_state(str(folder))
    assert [os.path.basename(p) for p in state.all_model_checkpoint_paths] == [
        "ckpt-2",
        "ckpt-3",
    ]


def test_checkpoints_of_tensorflows_own_manager_are_read(tmp_path):
    """As earlier versions wrote them."""
    run_keeper = keeper(tmp_path)
    manager = tf.train.CheckpointManager(
        run_keeper._checkpoint, str(tmp_path / "checkpoints"), max_to_keep=2
    )
    run_keeper._step.assign(4)
    manager.save(checkpoint_number=4)
    new_keeper = keeper(tmp_path)
    assert new_keeper.restore() == 4
    new_keeper.save(8)
    assert kept(tmp_path) == ["ckpt-4.index", "ckpt-8.index"]


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 64, b"\xff\xfe garbage {"])
def test_without_a_sound_list_the_checkpoints_themselves_count(tmp_path, content, told):
    folder = saved(tmp_path, 4, 8)
    if content is None:
        (folder / "checkpoint").unlink()
    else:
        (folder / "checkpoint").write_bytes(content)
    assert keeper(tmp_path).restore() == 8
    assert "missing or damaged" in told[0]
    assert "ckpt-4, ckpt-8" in told[0]


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("left", [0, 50])
def test_what_a_power_cut_leaves_is_skipped_and_told(tmp_path, part, left, told):
    folder = saved(tmp_path, 4, 8)
    file = folder / f"ckpt-8.{part}"
    file.write_bytes(file.read_bytes()[:left])
    assert keeper(tmp_path).restore() == 4
    assert f"{folder / 'ckpt-8'} is damaged" in told[0]


def test_a_checkpoint_that_is_gone_is_told(tmp_path, told):
    folder = saved(tmp_path, 4, 8)
    (folder / "ckpt-8.index").unlink()
    assert keeper(tmp_path).restore() == 4
    assert told == [f"ckpt-8 is missing in {folder}"]


def test_checkpoints_of_others_are_skipped_told_and_kept(tmp_path, told):
    longer_run, wider_run = (
        saved(tmp_path / "longer", 99),
        saved(tmp_path / "o", 12, units=9),
    )
    folder = saved(tmp_path / "run", 4)
    for file in (*longer_run.glob("ckpt-*"), *wider_run.glob("ckpt-*")):
        shutil.copy(file, folder)
    for file in longer_run.glob("ckpt-99*"):  # Under a wrong name.
        shutil.copy(file, folder / file.name.replace("99", "10"))
    foreign_names = [
        "ckpt-99.index",
        "ckpt-12.index",
        "notes.txt",
        "ckpt-new.index",
        "a_temp",
    ]
    for name in foreign_names[2:]:
        (folder / name).write_text("mine")
    new_keeper = keeper(tmp_path / "run")
    assert new_keeper.restore(16) == 4
    assert [line.split(" is damaged")[0][-7:] for line in told] == [
        "ckpt-99",
        "ckpt-12",
        "ckpt-10",
    ]
    for step in (5, 6, 7):
        new_keeper.save(step)
    assert {*foreign_names, "ckpt-6.index", "ckpt-7.index"} <= {
        p.name for p in folder.iterdir()
    }
    assert not (folder / "ckpt-5.index").exists()


def test_a_checkpoint_is_on_the_disk_before_another_is_deleted(tmp_path, monkeypatch):
    run_keeper = keeper(tmp_path, keep=1)
    run_keeper.save(1)
    events = []
    settle, unlink = files.settle, type(tmp_path).unlink

    def logged_settle(path):
        events.append(path.name)
        settle(path)

    def logged_unlink(path, **options):
        if path.name.startswith("ckpt"):
            events.append(f"-{path.name}")
        unlink(path, **options)

    monkeypatch.setattr(files, "settle", logged_settle)
    monkeypatch.setattr(type(tmp_path), "unlink", logged_unlink)
    run_keeper.save(2)
    data = "ckpt-{}.data-00000-of-00001"
    assert events == [
        data.format(2), "ckpt-2.index", "checkpoints", tmp_path.name,
        f"-{data.format(1)}", "-ckpt-1.index",
    ]  # fmt: skip


@pytest.mark.parametrize("work", ["checkpoints", "best", "model"])
def test_work_without_settings_is_refused(tmp_path, work):
    workdir = tmp_path / "run"
    if work == "checkpoints":
        saved(workdir, 4)
    elif work == "best":
        keeper(workdir).save_if_best(4, 1.0, "higher")
    else:
        workdir.mkdir()
        (workdir / "model.keras").write_text("a model")
    with pytest.raises(InputError, match=r"holds .* but no config.json"):
        directory.check_workdir(workdir, TrainConfig(), resume=True)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "\udcff"])
def test_names_that_no_file_can_name_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="--workdir must be .* printable"):
        directory.check_workdir(tmp_path / name, TrainConfig(), resume=True)


NO_CONFIG = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a circle": lambda path: path.symlink_to("config.json"),
    "a broken link": lambda path: path.symlink_to("nothing"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "noise": lambda path: path.write_bytes(b"\xff\x00"),
    "a list": lambda path: path.write_text("[]"),
    "deep nesting": lambda path: path.write_text("[" * 100_000),
}


@pytest.mark.parametrize("kind", NO_CONFIG)
def test_a_config_that_is_none_is_one_sentence(tmp_path, kind):
    NO_CONFIG[kind](tmp_path / "config.json")
    with pytest.raises(InputError, match=r"config\.json (cannot be used|is damaged)"):
        directory.check_workdir(tmp_path, TrainConfig(), resume=True)


def test_a_run_at_a_link_that_leads_nowhere_is_refused(tmp_path):
    (tmp_path / "run").symlink_to("nothing")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("run", "circle"):
        with pytest.raises(InputError, match="a broken link"):
            directory.check_workdir(tmp_path / name, TrainConfig(), resume=True)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_used(
    tmp_path, monkeypatch, told, code
):
    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with files.locked(tmp_path):
        pass
    assert len(told) == 1
    assert f"cannot be locked ({os.strerror(code)})" in told[0]


def test_leftovers_of_killed_processes_are_cleared(tmp_path):
    code = (
        "import sys, pathlib, os; from mtr_tf import files\n"
        "for path in sys.argv[1:]:\n"
        "    if process := os.fork():\n"
        "        os.waitpid(process, 0)\n"
        "        continue\n"
        "    with files.whole_file(pathlib.Path(path)) as beside:\n"
        "        beside.write_text('half'); os.kill(os.getpid(), 9)"
    )
    targets = ("model.keras", "checkpoints/checkpoint", ".hidden")
    paths = [tmp_path / name for name in targets]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    (tmp_path / ".12 notes").write_text("mine")
    names = [p.name for p in tmp_path.rglob(".*")]
    assert len(names) == 4
    with files.locked(tmp_path):
        keeper(tmp_path)
    assert {p.name for p in tmp_path.rglob(".*")} == {".12 notes", ".lock"}


@pytest.mark.parametrize("name", ["*", "**", "?", "[a]", "../attacks/a"])
def test_compare_takes_a_name_for_a_name(tmp_path, name):
    for attack in ("a", "b"):
        folder = tmp_path / "attacks" / attack
        folder.mkdir(parents=True)
        (folder / "results.json").write_text("[]")
    config = compare.CompareConfig(runs=(str(tmp_path),), name=name)
    with pytest.raises(InputError, match=r" \(a, b\); got"):
        compare.main(config)


def test_the_system_word_about_a_file_is_one_sentence(tmp_path):
    (tmp_path / "link").symlink_to("link")
    for path in (tmp_path / ("x" * 256), tmp_path / "link", tmp_path):
        with pytest.raises(OSError, match=path.name) as raised:
            files.read_text(path)
        message = files.what_failed(raised.value)
        assert message.startswith(f"{path} cannot be used: ")
        assert message.count("\n") == 0
    assert files.what_failed(OSError("no file is named")) is None


@pytest.mark.parametrize("name", ["v[XY]", "back\\slash", "v*"])
def test_a_saved_model_of_a_name_like_a_pattern(tmp_path, name):
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, {"depth": keras.layers.Conv2D(1, 1)(image)})
    logger = logging.get_absl_logger()
    level = logger.level
    model.export(tmp_path / name, verbose=False)
    logger.setLevel(level)  # TensorFlow has set it.
    model.save(tmp_path / f"{name}.keras")
    for path in (tmp_path / name, tmp_path / f"{name}.keras"):
        assert loading.load_run(str(path), ("depth",)).tasks == ("depth",)
