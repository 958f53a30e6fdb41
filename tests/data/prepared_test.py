# SPDX-License-Identifier: Apache-2.0
"""Preparing once, keeping parts, and reading features as columns."""

from __future__ import annotations

import concurrent.futures
import fcntl
import itertools
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import process_fixture
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from mtr_tf.data import parts
from mtr_tf.data import prepared
from mtr_tf.data import rooms
from mtr_tf.data.rooms import reading
from mtr_tf.data.rooms import workers
from mtr_tf.errors import InputError

COUNT = 13


def small_config() -> rooms.RoomsConfig:
    splits = {"train": COUNT, "validation": 3, "test": 3}
    config = rooms.RoomsConfig(name="columns", size=32, splits=splits)
    return config.with_own_folder()


def builder_in(folder: pathlib.Path) -> rooms.Rooms:
    return rooms.Rooms(
        data_dir=folder, config=small_config(), file_format=prepared.FILE_FORMAT
    )


@pytest.fixture(scope="module")
def builder(tmp_path_factory) -> rooms.Rooms:
    """Prepared data in three shards, to check the order across files."""
    builder = builder_in(tmp_path_factory.mktemp("data"))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=3)
    )
    assert len(list(pathlib.Path(builder.data_dir).glob("*train*"))) == 3
    return builder


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    examples = [workers.example(0, 0, index, 32) for index in range(COUNT)]
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


@pytest.mark.parametrize("name", ["image", "seg", "depth", "normal"])
def test_a_column_is_the_array(builder, expected, name):
    column, array = prepared.Column(builder, "train", name), expected[name]
    assert column.shape == array.shape
    assert column.dtype == array.dtype
    assert len(column) == COUNT
    for rows in (
        np.array([3, 12, 0, 3], np.int64),
        np.array([], np.int64),
        slice(2, 9),
        slice(None),
        array.mean(tuple(range(1, array.ndim))) > array.mean(),
        np.array([-1]),
    ):
        values = column[rows]
        np.testing.assert_array_equal(values, array[rows])
        assert values.dtype == array.dtype
        assert values.shape == array[rows].shape
    with pytest.raises(IndexError):
        column[np.array([COUNT])]


def test_threads_may_read_one_column(builder, expected):
    column = prepared.Column(builder, "train", "depth")
    rng = np.random.default_rng(0)
    requests = [rng.integers(0, COUNT, 5) for _ in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for rows, values in zip(
            requests, pool.map(column.__getitem__, requests), strict=True
        ):
            np.testing.assert_array_equal(values, expected["depth"][rows])


class Noting:
    """A data source that records the rows that are read."""

    def __init__(self, source, read):
        self.source, self.read = source, read

    def __getitem__(self, row):
        self.read.append(row)
        return self.source[row]


def test_little_is_kept_and_nothing_is_shared(builder, expected, monkeypatch):
    column = prepared.Column(builder, "train", "image")
    column[np.array([0])][:] = 0
    np.testing.assert_array_equal(column[np.array([0])], expected["image"][:1])

    reads = []
    records = prepared._Records(builder, "train")
    source = records._source
    monkeypatch.setattr(records, "_source", Noting(source, reads))
    for rows in ([3, 3], [1, 3], [3, 1], [1, 2], [1], [2]):
        assert list(records.read(rows)) == [source[row] for row in rows]
    assert reads == [3, 1, 2, 2]  # Rows of the last batch are not read again.
    monkeypatch.setattr(prepared, "_LARGEST_BATCH", 2)
    reads.clear()
    result = records.read([2, 4, 5])
    assert reads == []  # Read one by one when needed, and not kept.
    assert list(result) == [source[2], source[4], source[5]]
    list(records.read([4]))
    assert reads == [2, 4, 5, 4]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((10, 4096), (13, 4096)),
        ((10, 11), (11, 11)),
        ((10, -1), (13, -1)),
        ((-1, -1), None),
        ((2, 2), "3 files, all of which are open .* but the system allows fewer; r"),
    ],
)
def test_shards_may_all_be_open(builder, monkeypatch, before, after):
    """The limit rises by three files, where the system allows that many."""
    calls = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: calls.append(limits))
    if isinstance(after, str):
        with pytest.raises(InputError, match=after):
            prepared._Records(builder, "train")
    else:
        assert len(prepared._Records(builder, "train")) == COUNT
        assert calls == ([after] if after else [])


# Preparing.


class Failing:
    """A builder that raises where TFDS would generate."""

    def __init__(self, folder, error):
        self.name, self.version, self.error = "failing", "1.0.0", error
        self.data_dir = folder / "failing" / "tiny" / "1.0.0"
        self.builder_config = rooms.RoomsConfig(name="tiny", size=32)

    def is_prepared(self):
        return False

    def download_and_prepare(self):
        raise self.error


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match="'x.png' is broken"):
        prepared.prepare(
            lambda folder: Failing(folder, InputError("'x.png' is broken")),
            tmp_path,
            "Things",
        )
    with pytest.raises(InputError, match="^it could not be prepared: killed. The same"):
        prepared.prepare(  # Not a full disk.
            lambda folder: Failing(folder, parts.WorkerError("killed")), tmp_path, "it"
        )
    error = OSError(28, "No space left on device")
    with pytest.raises(
        InputError, match=r"Things could not be written .* No space .* VAR"
    ):
        prepared.prepare(lambda f: Failing(f, error), tmp_path, "Things", "VAR")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """Flips one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def noise(path):
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def remove(path):
    path.unlink()


def as_folder(path):
    path.unlink()
    path.mkdir()


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_another(path):
    shutil.copy(next(path.parent.glob("*test.*")), path)


def as_circle(path):
    path.unlink()
    path.symlink_to(path)


def one_digit(path):
    """Lowers the number of examples by one, which would go unnoticed."""
    text = path.read_text()
    assert f'"{COUNT}"' in text
    path.write_text(text.replace(f'"{COUNT}"', f'"{COUNT - 1}"'))


def of_format(kind):
    """A function that makes the builder; `kind` None is the format of rooms."""

    options = {"file_format": kind} if kind else {}

    def make(folder):
        return rooms.Rooms(data_dir=folder, config=small_config(), **options)

    return make


@pytest.fixture(scope="module")
def sound(tmp_path_factory, expected):
    """Folders of undamaged prepared data, by format."""
    folders = {}
    for kind in (None, prepared.FILE_FORMAT):
        folders[kind] = tmp_path_factory.mktemp("sound")
        images = read_all(kind, folders[kind])
        np.testing.assert_array_equal(images, expected["image"])
    return folders


def read_all(kind, root):
    builder = prepared.prepare(of_format(kind), root, "rooms")
    if kind:
        return prepared.Column(builder, "train", "image")[:]
    return reading._read(builder, ("seg",), "train").images


INFO, SHARD = "dataset_info.json", "*-train.*"


@pytest.mark.parametrize("kind", [None, prepared.FILE_FORMAT])
@pytest.mark.parametrize("known", [True, False], ids=["new", "old"])
@pytest.mark.parametrize(
    ("what", "damage"),
    [
        *[(INFO, d) for d in (cut, flip, empty, noise, remove, as_folder, one_digit)],
        *[(SHARD, d) for d in (cut, flip, empty, noise, remove, as_folder)],
        *[(SHARD, d) for d in (as_another, as_circle)],
        *[(what, as_pipe) for what in (INFO, SHARD)],
    ],
)
def test_damage_to_prepared_data_is_one_sentence(
    sound, expected, tmp_path, kind, known, what, damage
):
    """`old`: data prepared before 0.3, without a list of their contents."""
    root = shutil.copytree(sound[kind], tmp_path / "root")
    folder = root / "rooms" / small_config().name / "1.0.0"
    if not known:
        (folder / "contents.json").unlink()
        if damage is one_digit or (kind, what, damage) == (None, INFO, flip):
            pytest.skip("it may go unnoticed there")
    damage(next(folder.glob(what)))
    for _ in range(2):  # The second error is the same.
        with pytest.raises(InputError) as error:
            read_all(kind, root)
        message = str(error.value)
        assert message.startswith(f"the prepared data in {folder} are damaged (")
        assert message.endswith(
            "delete that folder, then repeat the command to make them again."
        )
        assert "\n" not in message
        prepared._records.cache_clear()
    if known and damage is flip:
        shutil.rmtree(folder)
        np.testing.assert_array_equal(read_all(kind, root), expected["image"])


@pytest.mark.parametrize("kind", [None, prepared.FILE_FORMAT])
@pytest.mark.parametrize("known", [True, False], ids=["new", "old"])
def test_what_systems_put_into_prepared_data_is_no_damage(
    sound, expected, tmp_path, kind, known
):
    root = shutil.copytree(sound[kind], tmp_path / "root")
    folder = root / "rooms" / small_config().name / "1.0.0"
    if not known:
        (folder / "contents.json").unlink()
    contents = prepared._contents(folder)
    for place in (root, folder.parents[1], folder.parent, folder):
        for name in ("@eaDir", ".snapshot", "#recycle", "lost+found"):
            (place / name).mkdir()
            (place / name / "SYNOFILE_THUMB_M.png").write_bytes(b"small")
        for name in (".DS_Store", "._features.json", "Thumbs.db", "desktop.ini"):
            (place / name).write_bytes(b"theirs")
    images = read_all(kind, root)
    np.testing.assert_array_equal(images, expected["image"])
    assert prepared._contents(folder) == contents  # Such files may grow and vanish.
    prepared._records.cache_clear()
    (folder / "mine").mkdir()
    with pytest.raises(InputError, match=r"are damaged \(mine is not a file\)"):
        read_all(kind, root)


@pytest.mark.fuzz
def test_killed_at_twenty_random_moments_the_data_are_whole(sound, tmp_path):
    """The next process makes the data again, or reads whole data."""
    code = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:]\n"
        "import prepared_test as t\n"
        "print('begins', flush=True)\n"
        "t.read_all(None, pathlib.Path(sys.argv[1]))"
    )

    def begin(root):
        process = subprocess.Popen(
            [sys.executable, "-c", code, root, *pathlib.Path(__file__).parents[:2]],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with process.stdout:
            process.stdout.readline()
        return process

    places = (tmp_path / f"root {n}" for n in itertools.count())
    for root in process_fixture.kill_at_random_moments(begin, places, seed=0):
        np.testing.assert_array_equal(read_all(None, root), read_all(None, sound[None]))
        assert not list(root.rglob("*incomplete*"))


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 500, 20_000])
def test_on_a_full_disk_nothing_is_made_in_part(sound, tmp_path, room):
    """Files have at most `room` bytes; later the same command makes the data."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(InputError) as error:
            read_all(None, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(error.value)
    assert message.endswith(
        "Choose another folder with --data_dir, or free some space there."
    )
    assert "\n" not in message
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names <= {
        f".rooms-{small_config().name}.lock",
        "metadata.json",
    }  # No example.
    np.testing.assert_array_equal(read_all(None, tmp_path), read_all(None, sound[None]))
    assert not list(tmp_path.rglob("*incomplete*"))


class WithParts(rooms.Rooms):
    """A builder of rooms that has a folder of parts."""

    work = {}

    @property
    def parts(self):
        return prepared.parts_folder(self, ("facts",))


def test_parts_go_when_the_data_set_is_whole(tmp_path):
    builder = builder_in(tmp_path)

    def make(folder):
        return WithParts(data_dir=folder, config=builder.builder_config)

    folder = make(tmp_path).parts
    assert folder != prepared.parts_folder(builder, ("other facts",))
    folder.mkdir(parents=True)
    (folder / "0.npz").write_bytes(b"left")
    assert prepared.prepare(make, tmp_path, "rooms").is_prepared()
    assert not folder.exists()
    assert not list(folder.parent.glob(".parts*"))


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 20000])
def test_keys_share_tfds_buckets_in_order(count):
    keys = [prepared.key(index, count) for index in range(count)]
    assert all(low < high for low, high in zip(keys, keys[1:], strict=False))
    assert keys[0] == 0
    assert keys[-1] < 2**shuffle.HKEY_SIZE
    buckets = [shuffle.get_bucket_number(k, shuffle.BUCKETS_NUMBER) for k in keys]
    assert np.bincount(buckets).max() <= -(-count // shuffle.BUCKETS_NUMBER) + 1


def test_where_data_go(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert prepared.root_folder() == tmp_path
    assert prepared.root_folder("elsewhere") == pathlib.Path("elsewhere")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert prepared.root_folder().name == "tensorflow_datasets"


def test_a_fingerprint_is_of_all_and_of_their_order():
    fingerprint = prepared.fingerprint(["a", ("b", 1)])
    assert fingerprint == prepared.fingerprint(["a", ("b", 1)])
    variants = [["a", ("b", 2)], [("b", 1), "a"], ["a"], []]
    assert len({fingerprint, *map(prepared.fingerprint, variants)}) == 5
    assert len(fingerprint) == 8


# Parts.

WORK = "prepared_fixture:square"


def jobs(tmp_path, count, **changes):
    log = str(tmp_path / "log")
    return {
        f"no{i}": {"value": i, "log": log, **changes.get(f"no{i}", {})}
        for i in range(count)
    }


def called(tmp_path):
    return sorted(int(line) for line in (tmp_path / "log").read_text().split())


def run(tmp_path, named_jobs, processes):
    examples = parts.examples(
        tmp_path / "parts",
        list(named_jobs.items()),
        WORK,
        "testing",
        processes=processes,
    )
    return [int(arrays["squared"][0]) for arrays in examples]


@pytest.mark.parametrize("processes", [1, 3])
def test_examples_come_in_order_and_are_made_once(tmp_path, processes):
    named_jobs = jobs(tmp_path, 10)
    assert run(tmp_path, dict(list(named_jobs.items())[3:5]), 1) == [9, 16]
    assert run(tmp_path, named_jobs, processes) == [i * i for i in range(10)]
    assert called(tmp_path) == list(range(10))
    assert run(tmp_path, named_jobs, processes) == [i * i for i in range(10)]
    assert called(tmp_path) == list(range(10))
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [
        f"no{i}.npz" for i in range(10)
    ]


def test_parts_that_are_there_are_not_told_of_one_by_one(tmp_path, caplog):
    caplog.set_level("INFO", "absl")
    named_jobs = jobs(tmp_path, 10)
    run(tmp_path, named_jobs, 1)
    assert caplog.messages.count("testing: 10 of 10 images, 00:00 left") == 1
    (tmp_path / "parts" / "no3.npz").unlink()
    caplog.clear()
    for _ in range(2):  # First one part is missing, then none.
        run(tmp_path, named_jobs, 1)
    assert caplog.messages == ["testing: 10 of 10 images, 00:00 left"]


@pytest.mark.parametrize("at", [0, 40, 90, -60])
def test_a_damaged_part_is_made_again(tmp_path, at, caplog):
    named_jobs = jobs(tmp_path, 3)
    run(tmp_path, named_jobs, 1)
    part = tmp_path / "parts" / "no1.npz"
    content = bytearray(part.read_bytes())
    content[at] ^= 255
    part.write_bytes(content)
    assert run(tmp_path, named_jobs, 1) == [0, 1, 4]
    part.write_bytes(part.read_bytes()[:50])
    assert run(tmp_path, named_jobs, 1) == [0, 1, 4]
    assert caplog.text.count("no1.npz is damaged") in (1, 2)  # Not all bits matter.
    assert run(tmp_path, named_jobs, 1) == [0, 1, 4]
    assert len(called(tmp_path)) == 3 + caplog.text.count("is damaged")


def test_a_part_that_is_removed_meanwhile_is_made_again(tmp_path, caplog):
    job_items, folder = list(jobs(tmp_path, 3).items()), tmp_path / "parts"
    list(parts.examples(folder, job_items, WORK, "testing", processes=1))
    examples = parts.examples(folder, job_items, WORK, "testing", processes=1)
    next(examples)
    (folder / "no2.npz").unlink()
    assert [int(arrays["squared"][0]) for arrays in examples] == [1, 4]
    assert called(tmp_path) == [0, 1, 2, 2]
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_of_the_user_is_told_as_it_is(tmp_path, processes):
    named_jobs = jobs(tmp_path, 6, no3={"fail": "input"})
    with pytest.raises(InputError, match=r"^'3.png' is broken$"):
        run(tmp_path, named_jobs, processes)
    names = {p.stem for p in (tmp_path / "parts").glob("*.npz")}
    assert names >= {"no0", "no1", "no2"}  # All before the broken one.
    assert "no3" not in names


def test_a_mistake_is_told_where_its_worker_was_given_more_to_do(tmp_path):
    named_jobs = jobs(tmp_path, 50, no0={"sleep": 0.5}, no1={"fail": "input"})
    with pytest.raises(InputError, match=r"^'1.png' is broken$"):
        run(tmp_path, named_jobs, 2)


def test_a_worker_that_dies_is_no_silent_end(tmp_path, capfd):
    named_jobs = jobs(tmp_path, 4, no1={"fail": "bug"})
    with pytest.raises(parts.WorkerError, match="ended early"):
        run(tmp_path, named_jobs, 2)
    assert "ZeroDivisionError" in capfd.readouterr().err


HELPER = """
import json, pathlib, sys
from mtr_tf.data import parts
folder, jobs = sys.argv[1:]
jobs = list(json.loads(jobs).items())
parts.help_with(pathlib.Path(folder), jobs, "prepared_fixture:square", lambda: False)
"""


def start(script, *arguments):
    path = os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )


def test_helpers_share_the_parts_and_those_of_a_killed_one_are_made(tmp_path):
    named_jobs = jobs(tmp_path, 31)
    slow_jobs = {key: {**job, "sleep": 0.02} for key, job in named_jobs.items()}
    folder = tmp_path / "parts"
    helpers = [start(HELPER, folder, json.dumps(slow_jobs)) for _ in range(3)]
    deadline = time.monotonic() + 60
    while not list(folder.glob("no*.npz")) and time.monotonic() < deadline:
        time.sleep(0.01)
    helpers[0].kill()
    assert [helper.wait(timeout=60) for helper in helpers[1:]] == [0, 0]
    calls = called(tmp_path)
    assert set(calls) == set(range(31))
    assert len(calls) < 62  # One process alone makes 31 calls.
    assert run(tmp_path, named_jobs, 1) == [i * i for i in range(31)]
    assert called(tmp_path) == calls
    helpers[0].wait(timeout=60)


def test_helping_ends_when_nobody_wants_parts(tmp_path):
    job_items, stops = list(jobs(tmp_path, 9).items()), iter([False, False, True])
    parts.help_with(tmp_path / "parts", job_items, WORK, lambda: next(stops))
    assert len(called(tmp_path)) == 3


class Shared(Failing):
    """A builder whose data set another process finishes while this one helps."""

    def __init__(self, folder, job_items):
        super().__init__(folder, None)
        self.parts = folder / "parts"
        self.work = {"train": prepared.Work(self.parts, job_items, WORK)}

    def is_prepared(self):
        return os.path.exists(self.data_dir)


def test_who_comes_second_helps_and_leaves_nothing(tmp_path, monkeypatch):
    job_items, names = list(jobs(tmp_path, 5).items()), []
    builder = Shared(tmp_path, job_items)
    original = parts.help_with

    def help_with(*work):
        original(*work)
        names.extend(sorted(path.name for path in builder.parts.iterdir()))
        builder.data_dir.mkdir(parents=True)
        (builder.data_dir / INFO).write_text("{}")
        lock.close()
        raise InputError("the folder of parts went while one was written")

    monkeypatch.setattr(parts, "help_with", help_with)
    lock = open(tmp_path / ".failing-tiny.lock", "w")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    result = prepared.prepare(lambda folder: Shared(folder, job_items), tmp_path, "it")
    assert result.is_prepared()
    assert names == [f"no{i}.npz" for i in range(5)]
    assert not builder.parts.exists()


class Sharing(Shared):
    """A config that shares its parts; it calls `meanwhile` while it prepares."""

    def __init__(self, folder, config, meanwhile):
        super().__init__(folder, [])
        self.builder_config = rooms.RoomsConfig(name=config, size=32)
        self.data_dir = folder / "failing" / config / "1.0.0"
        self.meanwhile = meanwhile

    def download_and_prepare(self):
        self.parts.mkdir(exist_ok=True)
        (self.parts / "0.npz").touch()
        self.meanwhile()
        self.data_dir.mkdir(parents=True)
        (self.data_dir / INFO).write_text("{}")


def test_who_finishes_last_removes_the_parts_that_configs_share(tmp_path):
    presence = []

    def prepare(config, meanwhile):
        def make(folder):
            return Sharing(folder, config, meanwhile)

        assert prepared.prepare(make, tmp_path, "it").is_prepared()
        presence.append((tmp_path / "parts" / "0.npz").exists())

    prepare("first", lambda: prepare("second", lambda: None))
    assert presence == [True, False]


def test_a_data_set_without_parts_is_only_waited_for(tmp_path, monkeypatch):
    def fail(*work):
        raise AssertionError(work)

    monkeypatch.setattr(parts, "help_with", fail)
    builder = Failing(tmp_path, None)
    prepared._help(builder)  # Unfinished.
    assert not list(tmp_path.iterdir())
    builder.data_dir.mkdir(parents=True)
    prepared._help(builder)  # Finished.
    assert not list(builder.data_dir.iterdir())


def test_preparing_leaves_no_temporary_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        prepared.prepare(builder_in, tmp_path / "root", "rooms")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
