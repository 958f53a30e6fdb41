# SPDX-License-Identifier: Apache-2.0
"""Runs at addresses: the same bits and numbers as in folders, wherever they stop."""

from __future__ import annotations

import contextlib
import errno
import json
import logging as standard_logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import types

import fsspec
import numpy as np
import pytest
import tensorflow as tf
from absl import logging

import mtr_tf
from mtr_tf import attack_job
from mtr_tf import compare
from mtr_tf import export
from mtr_tf import train as train_command
from mtr_tf.cli import stopping
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import RunPlace
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.evaluation import sweep
from mtr_tf.runs import addresses
from mtr_tf.runs import checkpoints
from mtr_tf.runs import directory
from mtr_tf.runs import remote
from mtr_tf.training import loop as training

SIZE = (8, 8)
PLACE = addresses.place  # The original, which no test watches.
SETTINGS = {
    "dataset": "own_remote:examples",
    "tasks": ("seg",),
    "model": "tiny",
    "batch_size": 4,
    "epochs": 2,
    "schedule": "constant",
    "checkpoint_every": 1,
    "eval_every": 1,
    "eval_eps": 0.0,
    "summary_every": 1,
    "strategy": "one_device",
}
CONFIG = TrainConfig(**SETTINGS)


def example(seed):
    rng = np.random.default_rng(seed)
    seg = (np.arange(8) > seed % 6)[:, None] & np.ones(SIZE, bool)
    image = np.where(seg[..., None], 0.8, 0.2) + rng.uniform(0, 0.2, (*SIZE, 3))
    return {"image": image, "targets": {"seg": seg.astype(int)}}


def examples():
    return {
        "train": [example(i) for i in range(8)],
        "validation": [example(i) for i in range(8, 12)],
        "classes": ["ground", "block"],
    }


@pytest.fixture(scope="module", autouse=True)
def module():
    own_module = types.ModuleType("own_remote")
    own_module.examples = examples
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "own_remote", own_module)
        yield


def attack(ckpt, **changes):
    """Attacks with the settings of these tests; returns what is printed."""
    settings = {"attack": ("fgsm",), "eps": (4.0,), "checks": False, **changes}
    return attack_job.attack(
        AttackConfig(
            ckpt=str(ckpt),
            dataset=CONFIG.dataset,
            attack_tasks=("all",),
            strategy="one_device",
            **settings,
        )
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The run and its attack in a folder."""
    folder = tmp_path_factory.mktemp("here") / "run"
    training.train(CONFIG, folder)
    attack(folder)
    return folder


class Watched:
    """A place that records all writes, and may fail at one of them."""

    def __init__(self, inner, fail_at=None, error=None):
        self.inner, self.fail_at = inner, fail_at
        self.error = error or OSError("the bucket is full")
        self.written = []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def put(self, file, name):
        self._note(name, file.read_bytes())
        self.inner.put(file, name)

    def remove(self, name):
        self._note(name, None)
        self.inner.remove(name)

    def _note(self, name, content):
        self.written.append((name, content))
        if len(self.written) == self.fail_at:
            raise self.error


@pytest.fixture
def watched(monkeypatch):
    """Wraps all places in `Watched`; {address: place}, and "settings" for `Watched`."""
    real_place, places = addresses.place, {}

    def place(address, flag):
        places[address] = Watched(
            real_place(address, flag), **places.get("settings", {})
        )
        return places[address]

    monkeypatch.setattr(addresses, "place", place)
    return places


@pytest.fixture(autouse=True)
def copies_folder(tmp_path_factory, monkeypatch):
    """Where copies are made."""
    folder = tmp_path_factory.mktemp("copies")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@contextlib.contextmanager
def log_lines():
    """The lines that are logged inside, whatever other handlers there are."""
    lines, logger = [], logging.get_absl_logger()
    handler, level = standard_logging.Handler(), logger.level
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(standard_logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture
def memory(request):
    """The address of an empty folder in memory."""
    address = f"memory://remote/{request.node.name}/run"
    yield address
    fsspec.filesystem("memory").store.clear()


def contents(address):
    """All files at an address."""
    place = PLACE(address, "")
    files = {name: place.read(name) for name in place.names()}
    return {name: content for name, content in files.items() if content is not None}


def hold(address):
    """Holds an address, as a command does that finds nothing to do."""
    with remote.copies(), remote.held(remote.local(address, "--workdir")):
        pass


def write(address, files):
    """Puts files of these names and contents at an address."""
    system = fsspec.filesystem("memory")
    for name, content in files.items():
        system.pipe_file(f"{address}/{name}", content)


@pytest.mark.slow
def test_a_run_at_an_address(here, memory, watched, capsys, monkeypatch, tmp_path):
    address = "ram://bucket/runs/run"
    short_config = TrainConfig(**SETTINGS | {"epochs": 1})
    train_command.main(short_config, RunPlace(workdir=address))
    steps = [watched[address].written]
    train_command.main(CONFIG, RunPlace(workdir=address))
    steps.append(watched[address].written)
    output = attack(address)

    # Nothing mentions the copy, and all is as in the folder.
    files, local_attacks = contents(address), here / "attacks"
    assert f"results:  {address}/attacks/" in output
    assert not [name for name, content in files.items() if b"/mtr_tf-" in content]
    assert remote.RUNNING not in files
    assert ".lock" not in files
    (name,) = (folder.name for folder in local_attacks.iterdir())
    for file in ("results.json", "results.csv"):
        assert (
            files[f"attacks/{name}/{file}"]
            == (local_attacks / name / file).read_bytes()
        )
    prefixes = ("events", ".flags", ".lock")
    names = {
        file.relative_to(here).as_posix() for file in here.rglob("*") if file.is_file()
    }
    assert {n for n in names if not n.split("/")[-1].startswith(prefixes)} == {
        n for n in files if not n.split("/")[-1].startswith(prefixes)
    }
    same_checkpoint(here, save(files, tmp_path / "copy"))

    # TensorBoard drops what was written after the checkpoint.
    events = [n for n in files if n.startswith("train/events") and "before" in n]
    kinds = [
        tf.compat.v1.Event.FromString(record.numpy()).session_log.status
        for record in tf.data.TFRecordDataset(str(tmp_path / "copy" / events[0]))
    ]
    assert kinds.count(tf.compat.v1.SessionLog.START) == 2

    # A second attack computes nothing, and both can be compared.
    monkeypatch.setattr(sweep, "Evaluator", None)
    attack(address)
    written_names = [name for name, _ in watched[address].written]
    assert not [name for name in written_names if "/cells/" in name]
    train_command.main(CONFIG, RunPlace(workdir=address))
    capsys.readouterr()
    compare.main(compare.CompareConfig(runs=(str(here), address), format="json"))
    by_model = {}
    for record in json.loads(capsys.readouterr().out):
        by_model.setdefault(record.pop("model"), []).append(record)
    assert len(by_model) == 2
    assert len({str(records) for records in by_model.values()}) == 1
    every_stop_can_go_on(steps, tmp_path / "stopped")

    # From one of these stops, with half a checkpoint written, the run goes on.
    writes = [write for part in steps for write in part]
    last_file = "checkpoints/ckpt-3.data-00000-of-00001"
    cut = [name for name, _ in writes].index(last_file) + 1
    state = {name: content for name, content in writes[:cut] if content is not None}
    write(memory, {n: c for n, c in state.items() if (n, None) not in writes[:cut]})
    training.train(CONFIG, memory)
    same_checkpoint(here, save(contents(memory), tmp_path / "again"))


def save(files, folder):
    """Writes files of these names and contents to a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def same_checkpoint(first, second):
    """The last checkpoints of two runs hold the same bits."""
    first, second = (
        tf.train.load_checkpoint(str(folder / "checkpoints" / "ckpt-4"))
        for folder in (first, second)
    )
    names = first.get_variable_to_shape_map()
    assert names == second.get_variable_to_shape_map()
    for name in names.keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH"}:
        a, b = first.get_tensor(name), second.get_tensor(name)
        np.testing.assert_array_equal(a, b, name)


def every_stop_can_go_on(steps, folder):
    """After any of the writes, the run can be continued from its files, or begun."""
    state, pairs = {}, {}
    for epochs, writes in zip((1, 2), steps, strict=True):
        for count, (name, content) in enumerate(writes):
            state.pop(name, None)
            if content is not None:
                state[name] = content
            place = folder / f"{epochs}-{count}"
            for file in ("config.json", "train.flags", "model.keras", "checkpoint"):
                if file in state:
                    (place / file).parent.mkdir(parents=True, exist_ok=True)
                    (place / file).write_bytes(state[file])
            for index in [n for n in state if n.endswith(".index")]:
                (place / index).parent.mkdir(parents=True, exist_ok=True)
                (place / index).touch()
                # Never the index of one save with the data of another.
                data = index.replace(".index", ".data-00000-of-00001")
                pair = state[data], state[index]
                assert pairs.setdefault(index, pair) == pair, index
            directory.check_workdir(place, CONFIG, resume=True)
            if "model.keras" in state:  # Never the model of a shorter run.
                model_epochs = directory.read_config(place).epochs
                model = state["model.keras"]
                assert pairs.setdefault(f"model of {model_epochs}", model) == model
    assert {f"checkpoints/ckpt-{n}.index" for n in (1, 2, 3, 4)} <= pairs.keys()
    assert {"model of 1", "model of 2"} <= pairs.keys()
    assert sorted(checkpoints.steps(place / "checkpoints")) == [3, 4]


# Folders without a run, in memory.


@pytest.mark.parametrize("scheme", ["memory", "ram"])
def test_a_folder_is_copied_worked_on_and_brought_up_to_date(scheme, watched, request):
    address = f"{scheme}://remote/{request.node.callspec.id}/run"
    with remote.copies(), remote.held(remote.local(address, "--workdir")):
        folder = remote.local(address, "--workdir")
        assert folder.name == "run"
        (folder / "cells").mkdir()
        # Written in the wrong order: first the files that mark others as complete.
        for name in ("cells/a.json", "ckpt-1.index", "config.json", "checkpoint"):
            (folder / name).write_text(name)
            os.utime(folder / name, (1, 1))
        for name in ("cells/a.npz", "ckpt-1.data-00000-of-00001", "events"):
            (folder / name).write_text(name)
        for name in (".lock", ".12.model.keras", "ckpt-9_temp/part"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("of one process")
        remote.push(folder / "cells")
        names = [name for name, _ in watched[address].written]
        assert names == [
            remote.RUNNING,
            *("cells/a.npz", "ckpt-1.data-00000-of-00001", "events"),
            *("cells/a.json", "checkpoint", "ckpt-1.index", "config.json"),
        ]
        # Nothing is new, so the place is not asked.
        place = watched[address].inner
        watched[address].inner = None
        remote.push(folder)
        watched[address].inner = place
        # New and changed files come first, then deletions.
        (folder / "ckpt-1.index").unlink()
        (folder / "ckpt-1.data-00000-of-00001").unlink()
        (folder / "ckpt-2.index").write_text("new")
        (folder / "events").write_text("events and more")
        remote.push(folder)
        assert watched[address].written[len(names) :] == [
            ("events", b"events and more"),
            ("ckpt-2.index", b"new"),
            ("ckpt-1.index", None),
            ("ckpt-1.data-00000-of-00001", None),
        ]
    assert not folder.exists()
    files = contents(address)
    assert sorted(files) == [
        *("cells/a.json", "cells/a.npz", "checkpoint"),
        *("ckpt-2.index", "config.json", "events"),
    ]
    assert files["events"] == b"events and more"
    with remote.copies():
        new_folder = remote.local(address, "--workdir")
        assert new_folder != folder
        with remote.held(new_folder, skip="cells/"):
            local_names = {file.name for file in new_folder.rglob("*")}
            assert local_names == {
                "checkpoint",
                "ckpt-2.index",
                "config.json",
                "events",
            }
    assert contents(address).keys() == files.keys()  # What was skipped stays.


def test_only_what_is_held_is_written(memory):
    write(memory, {"config.json": b"{}", "train.flags": b"", "model.keras": b"m"})
    files = contents(memory)
    with remote.copies():
        folder = remote.fetched(memory, "--ckpt")
        assert {file.name for file in folder.iterdir()} == {*files}
        (folder / "model.keras").unlink()
        results = folder / "attacks" / "a"
        with remote.held(results):
            (results / "results.json").write_text("[]")
        remote.push(folder)
    assert contents(memory) == files | {"attacks/a/results.json": b"[]"}


@pytest.mark.parametrize(
    ("inner", "wanted"),
    [
        ("", {"model.keras"}),
        ("/model.keras", {"model.keras"}),
        ("/checkpoints", {"checkpoints/ckpt-2.index", "checkpoints/best/ckpt-1.index"}),
        (
            "/checkpoints/best/ckpt-1",
            {"checkpoints/ckpt-2.index", "checkpoints/best/ckpt-1.index"},
        ),
        ("/no.keras", set()),
        ("/exported", {"exported/saved_model.pb"}),
    ],
)
def test_what_of_a_run_is_downloaded(memory, inner, wanted):
    names = ("config.json", "train.flags", "model.keras", "train/events")
    names += ("checkpoints/ckpt-2.index", "checkpoints/best/ckpt-1.index")
    names += ("exported/saved_model.pb",)
    write(memory, dict.fromkeys((*names, "attacks/a/results.json"), b"{}"))
    with remote.copies():
        path = remote.fetched(pathlib.Path(memory + inner), "--ckpt")
        root = path
        for _ in pathlib.PurePosixPath(inner).parts[1:]:
            root = root.parent
        local_names = {
            f.relative_to(root).as_posix() for f in root.rglob("*") if f.is_file()
        }
        assert local_names == wanted | {"config.json", "train.flags"}
        assert remote.named(str(path)) == memory + inner


def test_a_network_that_fails_in_between_is_one_sentence(memory, monkeypatch):
    write(memory, dict.fromkeys(("config.json", "train.flags", "model.keras"), b"{}"))
    exists = addresses._FsspecPlace.exists

    def failing_exists(self, name):
        if name == "model.keras":
            raise ConnectionError("it is gone")
        return exists(self, name)

    monkeypatch.setattr(addresses._FsspecPlace, "exists", failing_exists)
    message = r"run cannot be read \(ConnectionError: it is gone\); check the address"
    with remote.copies(), pytest.raises(InputError, match=message):
        remote.fetched(memory, "--ckpt")


def test_models_of_ones_own_at_addresses(memory):
    files = {"saved_model.pb": b"p", "variables/variables.index": b"i"}
    write(f"{memory}/saved", files)
    write(memory, {"my.keras": b"k", "other": b"o"})
    with remote.copies():
        file = remote.fetched(f"{memory}/my.keras", "--ckpt")
        assert [f.read_bytes() for f in file.parent.iterdir()] == [b"k"]
        folder = remote.fetched(f"{memory}/saved", "--ckpt")
        assert {*folder.rglob("*")} == {
            *(folder / "variables", *(folder / name for name in files))
        }
        assert not remote.fetched(f"{memory}/nothing", "--ckpt").exists()


def test_a_failed_upload_is_told_and_done_later(memory, watched):
    watched["settings"] = {"fail_at": 3}
    with remote.copies():
        folder = remote.local(memory, "--workdir")
        with remote.held(folder):
            (folder / "a.npz").write_text("a")
            (folder / "b.json").write_text("b")
            with log_lines() as lines:
                remote.push(folder)
            assert sorted(contents(memory)) == [remote.RUNNING, "a.npz"]
            (line,) = lines
            assert line == (
                f"{memory} could not be brought up to date (OSError: the bucket is "
                "full); the next upload tries again"
            )
            remote.push(folder)
    assert sorted(contents(memory)) == ["a.npz", "b.json"]
    assert not folder.exists()


@pytest.mark.parametrize("error", [OSError("no network"), stopping.Stopped("kept")])
def test_whichever_write_fails_nothing_is_half_there(memory, watched, error):
    """Nor is anything missing in the end."""

    def work():
        with remote.copies(), remote.held(remote.local(memory, "--workdir")):
            folder = remote.local(memory, "--workdir")
            for step in range(4):
                for part in ("data-00000-of-00001", "index"):
                    (folder / f"ckpt-{step}.{part}").write_text(f"{step}")
                    (folder / f"ckpt-{step - 2}.{part}").unlink(missing_ok=True)
                (folder / "checkpoint").write_text(f"{step}")
                saves.append((folder, step))
                remote.push(folder)
                assert_whole()

    def assert_whole():
        files = contents(memory)
        for name in files:
            if name.endswith(".index"):
                data = name.replace("index", "data-00000-of-00001")
                assert files[data] == files[name]

    failures = 0
    for number in range(1, 40):
        fsspec.filesystem("memory").store.clear()
        watched.clear()
        watched["settings"], saves = {"fail_at": number, "error": error}, []
        with contextlib.suppress(InputError, stopping.Stopped):
            work()
        assert_whole()
        failures += len(watched[memory].written) >= number
        if saves:  # The mark was written.
            step = saves[-1][1]
            assert checkpoints_of(contents(memory)) == {step - 1, step} - {-1}
            assert contents(memory)["checkpoint"] == b"%d" % step
    assert 12 < failures < 30


@contextlib.contextmanager
def signal_at(monkeypatch, file_name):
    """Sends Ctrl-C, as to a command, while the file `file_name` is uploaded."""
    put = Watched.put

    def put_with_signal(self, file, name):
        if name == file_name:
            signal.raise_signal(signal.SIGINT)
        put(self, file, name)

    monkeypatch.setattr(Watched, "put", put_with_signal)
    with stopping.handled():
        yield


@pytest.mark.parametrize("error", [None, InputError("It is full.")])
def test_a_signal_during_the_last_upload_waits_for_its_end(
    memory, watched, monkeypatch, error
):
    def work():
        with remote.copies(), remote.held(remote.local(memory, "--workdir")):
            for name in ("a.npz", "b.npz"):
                (remote.local(memory, "--workdir") / name).write_text(name)
            if error:
                raise error

    kind = InputError if error else stopping.Stopped
    with signal_at(monkeypatch, "a.npz"), pytest.raises(kind):
        work()
    assert sorted(contents(memory)) == ["a.npz", "b.npz"]


@pytest.mark.slow
def test_a_signal_while_the_model_is_uploaded_loses_nothing(
    memory, watched, monkeypatch
):
    with (
        signal_at(monkeypatch, "model.keras"),
        pytest.raises(stopping.Stopped) as raised,
    ):
        training.train(CONFIG, memory)
    assert str(raised.value) == (
        f"Training had already finished: {memory} is complete."
    )
    assert "model.keras" in contents(memory)
    assert remote.RUNNING not in contents(memory)


def checkpoints_of(files):
    return {int(n[5:-6]) for n in files if n.endswith(".index")}


def test_what_could_not_be_uploaded_stays_here(memory, watched):
    watched["settings"] = {"fail_at": 3}
    folder = None

    def work():
        nonlocal folder
        with remote.copies(), remote.held(remote.local(memory, "--workdir")):
            folder = remote.local(memory, "--workdir")
            (folder / "a.npz").write_text("a")
            (folder / "b.json").write_text("b")
            raise stopping.Stopped("Step 1 of 2 is kept.")

    with pytest.raises(remote.NotUploaded) as raised:
        work()
    assert str(raised.value) == (
        f"{memory} could not be brought up to date (OSError: the bucket is full); all "
        f"of it is in {folder}: copy it there, or repeat the command, which does again "
        "what is missing."
    )
    assert (folder / "b.json").read_text() == "b"
    assert sorted(contents(memory)) == [remote.RUNNING, "a.npz"]


@pytest.mark.parametrize("kind", [InputError, stopping.Stopped, OSError])
def test_errors_stops_and_logs_name_the_address(memory, kind):
    def work():
        with remote.copies():
            folder = remote.local(memory, "--workdir")
            logging.info("in %s", folder / "x")
            if kind is OSError:
                (folder / "x").read_text()
            raise kind(f"{folder}/x is kept")

    with pytest.raises(kind) as raised, log_lines() as lines:
        work()
    assert lines == [f"in {memory}/x"]
    assert getattr(raised.value, "filename", memory).startswith(memory)
    assert kind is OSError or str(raised.value) == f"{memory}/x is kept"


def test_one_process_of_a_machine_and_the_last_of_several(memory, watched):
    child = subprocess.Popen(["sleep", "60"])
    try:
        with remote.copies():
            folder = remote.local(memory, "--workdir")
            with remote.held(folder):
                mark = json.loads(contents(memory)[remote.RUNNING])
                child_mark = mark | {"pid": child.pid}
                write(memory, {remote.RUNNING: json.dumps(child_mark).encode()})
                (folder / "a").write_text("a")
                with pytest.raises(remote.NotUploaded, match=f"process {child.pid} on"):
                    remote.push(folder)
                (folder / "a").unlink()
        assert list(contents(memory)) == [remote.RUNNING]
        with pytest.raises(InputError, match="in use by another"):
            hold(memory)
        old_mark = child_mark | {"system": "before the machine started again"}
        write(memory, {remote.RUNNING: json.dumps(old_mark).encode()})
        hold(memory)  # The number is another process's by now.
    finally:
        child.kill()
        child.wait()
    write(memory, {remote.RUNNING: json.dumps(child_mark).encode()})
    with log_lines() as lines:
        hold(memory)  # It has ended.
    assert f"process {child.pid}" in lines[0]
    assert not contents(memory)


def test_what_a_killed_process_was_writing_goes(memory):
    write(memory, {"a.json": b"{}", ".77.model.keras": b"half", "b/.7.c": b"half"})
    write(memory, {"attacks/a/.8.results.json": b"of an attack that runs"})
    with remote.copies():
        folder = remote.local(memory, "--workdir")
        with remote.held(folder, skip="attacks/"):
            pass
    assert sorted(contents(memory)) == ["a.json", "attacks/a/.8.results.json"]


def test_copies_of_killed_processes_go(memory, copies_folder):
    dead_copy = copies_folder / "mtr_tf-copy-0"
    dead_copy.mkdir()
    (dead_copy / "in_use").write_text(remote._machine())  # Nobody has locked it.
    unmarked_copy = copies_folder / "mtr_tf-copy-1"
    unmarked_copy.mkdir()
    foreign_copy = copies_folder / "mtr_tf-copy-2"
    foreign_copy.mkdir()
    (foreign_copy / "in_use").write_text("node7 0")  # Its locks may not reach us.
    with remote.copies():
        used_copy = remote.local(memory, "--workdir").parents[1]
        assert {*copies_folder.iterdir()} == {used_copy, unmarked_copy, foreign_copy}
        remote._clear_leftovers()
        assert used_copy.exists()
    assert {*copies_folder.iterdir()} == {unmarked_copy, foreign_copy}


def delete_all(folder):
    shutil.rmtree(folder.parents[1])


def delete_all_and_go_on(folder):
    delete_all(folder)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "ckpt-2.index").write_text("new")


def delete_the_oldest(folder):
    (folder.parents[1] / "in_use").unlink()
    (folder / "checkpoints" / "ckpt-1.index").unlink()


def delete_settings(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    "delete", [delete_all, delete_all_and_go_on, delete_the_oldest, delete_settings]
)
@pytest.mark.parametrize("pushes", [True, False])
def test_what_others_delete_here_stays_at_the_address(memory, delete, pushes):
    files = {"config.json": b"{}", "train.flags": b"", "checkpoints/ckpt-1.index": b"1"}
    write(memory, files)

    def work():
        with remote.copies(), remote.held(remote.local(memory, "--workdir")):
            folder = remote.local(memory, "--workdir")
            delete(folder)
            if pushes:
                remote.push(folder / "checkpoints")

    with pytest.raises(remote.NotUploaded) as raised:
        work()
    assert str(raised.value).startswith(f"{memory} stays as it was at the last upload")
    assert {n: c for n, c in contents(memory).items() if n != remote.RUNNING} == files


def test_what_cannot_be_read_here_stays_at_the_address(memory, monkeypatch):
    write(memory, files := {"config.json": b"{}", "checkpoints/ckpt-1.index": b"1"})
    with remote.copies():
        folder = remote.local(memory, "--workdir")
        with remote.held(folder):
            (folder / "new").write_text("new")
            scandir = os.scandir

            def broken_scandir(path):
                if str(path).endswith("checkpoints"):
                    raise OSError(errno.ESTALE, "Stale file handle", str(path))
                return scandir(path)

            with monkeypatch.context() as patch, log_lines() as lines:
                patch.setattr(os, "scandir", broken_scandir)
                remote.push(folder)
            assert "Stale file handle" in lines[0]
            assert "the next upload tries again" in lines[0]
    assert contents(memory) == files | {"new": b"new"}


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("nosuch://bucket/run", "--ckpt must be a path, or an address that"),
        ("memory::zip://a.zip", "--ckpt must be a path, or an address that"),
        ("sftp://host/run", "needs the package paramiko, which is not installed"),
    ],
)
def test_addresses_that_nothing_reaches(address, told):
    with remote.copies(), pytest.raises(InputError, match=told):
        remote.fetched(address, "--ckpt")


def test_addresses_where_no_copies_are_made():
    with pytest.raises(InputError, match="must be a path in this machine's file"):
        remote.local("gs://bucket/run", "--workdir")


def test_a_longer_run_forgets_its_model_before_it_is_longer(memory, watched):
    config = directory.canonical(TrainConfig(epochs=1, schedule="constant"))
    longer_config = directory.canonical(TrainConfig(epochs=2, schedule="constant"))
    with remote.copies():
        folder = remote.local(memory, "--workdir")
        with remote.held(folder):
            directory.begin(folder, config, resume=True)
            (folder / "model.keras").write_text("of one epoch")
            remote.push(folder)
            directory.begin(folder, longer_config, resume=True)
    writes = watched[memory].written
    removal = writes.index(("model.keras", None))
    uploads = [i for i, (name, _) in enumerate(writes) if name == "config.json"]
    assert uploads[0] < removal < uploads[1]


@pytest.mark.slow
def test_what_reads_and_writes_runs_at_addresses(here, memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(
        memory,
        {
            file.relative_to(here).as_posix(): file.read_bytes()
            for file in here.rglob("*")
            if file.is_file() and "attacks" not in file.parts
        },
    )
    files = contents(memory)
    # A checkpoint at an address, results at another.
    results = mtr_tf.evaluate(
        f"{memory}/checkpoints",
        CONFIG.dataset,
        out=f"{memory}-results",
        attacks="fgsm",
        eps=4,
        attack_tasks="all",
        checks=False,
    )
    (local_results,) = here.glob("attacks/*/results.json")
    keys = ("task", "metric", "clean", "attacked_value", "model_fingerprint")
    remote_results, local_results = (
        [[record[key] for key in keys] for record in records]
        for records in (results.records, json.loads(local_results.read_text()))
    )
    assert remote_results == local_results
    assert results.folder == f"{memory}-results"
    assert results.gallery().axes  # Its pictures are in memory by now.
    assert "results.json" in contents(f"{memory}-results")
    assert contents(memory) == files

    # A model that starts from one, and an export of one.
    config = TrainConfig(**SETTINGS | {"init": memory, "epochs": 1})
    train_command.main(config, RunPlace(workdir="new"))
    assert directory.read_config(pathlib.Path("new")).init == memory
    out = f"{memory}-export"
    export.main(export.ExportConfig(ckpt=memory, out=out))
    export_files = contents(out)
    assert {"model.json", "model.keras", "saved_model/saved_model.pb"} <= {
        *export_files
    }
    assert json.loads(export_files["model.json"])["run"]["name"] == "run"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
