# SPDX-License-Identifier: Apache-2.0
"""A resumed training shows each step once, to every reader, whatever the clock says."""

from __future__ import annotations

import functools
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtr_tf.show import event_files
from mtr_tf.show import tensorboard
from mtr_tf.show.tensorboard import Board

TAG = "total/loss"


def train(folder: pathlib.Path, first: int, last: int, start: int) -> None:
    """Writes what one start of a training writes: its settings and its steps."""
    event_files.keep_until(folder, first, {folder: str})
    board = Board(folder)
    board.settings({"start": start})
    for step in range(first + 1, last + 1):
        board.scalars({TAG: 100.0 * start + step}, step)
        if step % 4 == 0:
            board.picture("seg/pictures", np.full((4, 4, 3), start, np.uint8), step)
    board.flush()


def numbers(folder: pathlib.Path) -> list[tuple[int, float]]:
    """The (step, value) pairs that TensorBoard's own reader finds."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return [
        (e.step, float(tf.make_ndarray(e.tensor_proto))) for e in events.Tensors(TAG)
    ]


def plain(folder: pathlib.Path) -> list[tuple[int, str]]:
    """The (step, tag) pairs of all files, read one after the other."""
    return [
        (event.step, value.tag)
        for file in sorted(folder.iterdir())
        for raw in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
        for event in [tf.compat.v1.Event.FromString(raw)]
        for value in event.summary.value
    ]


def shift(folder: pathlib.Path, seconds: int) -> None:
    """Renames the files as if they were written at another time."""
    for file in folder.iterdir():
        head, kind, name, stamp, *suffixes = file.name.split(".")
        stamp = f"{int(stamp) + seconds:010d}"
        file.rename(folder / ".".join([head, kind, name, stamp, *suffixes]))


@pytest.mark.parametrize("clock", [0, 1000, -1000])
def test_steps_done_again_are_shown_once_and_in_order(tmp_path, clock):
    for start, (first, last) in enumerate([(0, 10), (8, 13), (12, 14), (12, 16)]):
        train(tmp_path, first, last, start)
        shift(tmp_path, clock)  # 1000: as if the clock were set back later.
    expected = [(step, step) for step in range(1, 9)]
    expected += [(step, 100 + step) for step in range(9, 13)]
    expected += [(step, 300 + step) for step in range(13, 17)]
    assert numbers(tmp_path) == expected
    pairs = plain(tmp_path)
    assert [step for step, tag in pairs if tag == TAG] == list(range(1, 17))
    assert [step for step, tag in pairs if tag == "seg/pictures"] == [4, 8, 12, 16]
    assert sum(tag == "settings" for _, tag in pairs) == 1
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "weight" in events.SummaryMetadata(TAG).summary_description
    (settings,) = events.Tensors("settings")
    assert b"`3`" in tf.make_ndarray(settings.tensor_proto).item()


def test_a_reader_that_watches_forgets_what_is_done_again(tmp_path):
    train(tmp_path, 0, 10, 0)
    shift(tmp_path, -10)
    reader = plugin_event_accumulator.EventAccumulator(str(tmp_path))
    old_steps = [event.step for event in reader.Reload().Tensors(TAG)]
    train(tmp_path, 8, 12, 1)
    new_steps = [event.step for event in reader.Reload().Tensors(TAG)]
    assert old_steps == list(range(1, 11))
    assert new_steps == list(range(1, 13))


def test_killed_before_the_first_checkpoint(tmp_path):
    train(tmp_path, 0, 3, 0)
    train(tmp_path, 0, 5, 1)
    assert numbers(tmp_path) == [(step, 100 + step) for step in range(1, 6)]


@pytest.mark.parametrize("damage", ["cut", "zeros", "garbage", "empty"])
def test_what_a_kill_or_power_cut_broke_off_ends_there(tmp_path, damage):
    train(tmp_path, 0, 10, 0)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    contents = {
        "cut": content[:-7],
        "zeros": content + bytes(50),
        "garbage": content + b"garbage" * 9,
        "empty": b"",
    }
    file.write_bytes(contents[damage])
    train(tmp_path, 8, 12, 1)
    first = 9 if damage == "empty" else 1
    assert [step for step, _ in numbers(tmp_path)] == list(range(first, 13))


def test_files_of_others_stay(tmp_path):
    train(tmp_path, 0, 3, 0)
    with Board(tmp_path, anew=True) as board:
        board.number("mine", 1.0, 7)
    (tmp_path / "notes.tfevents.txt").write_text("mine")
    other_files = {p for p in tmp_path.iterdir() if p.suffix in (".mtr_tf", ".txt")}
    assert len(other_files) == 2
    train(tmp_path, 2, 5, 1)
    assert other_files <= set(tmp_path.iterdir())


def test_an_older_run_that_goes_on_becomes_one(tmp_path):
    """An older run has a folder for each kind of number, all with the same tags."""
    kinds = {"train": "training", "val": "clean", "val/adv": "attacked"}
    places = {
        tmp_path / place: functools.partial(tensorboard.of_kind, kind=kind)
        for place, kind in kinds.items()
    }
    for start, place in enumerate(places):
        train(place, 0, 5, start)
    for repeat in range(2):
        event_files.keep_until(tmp_path / "train", 4, places)
        assert [path.name for path in tmp_path.iterdir()] == ["train"]
        events = EventAccumulator(str(tmp_path / "train")).Reload()
        for start, kind in enumerate(kinds.values()):
            points = [
                (e.step, float(tf.make_ndarray(e.tensor_proto)))
                for e in events.Tensors(f"{TAG}, {kind}")
            ]
            assert points == [(step, 100 * start + step) for step in range(1, 5)]
        assert len(events.Tensors("seg/pictures")) == 1
        assert len(events.Tags()["tensors"]) == 4, repeat


def test_a_first_start_leaves_nothing(tmp_path):
    folder = tmp_path / "train"
    event_files.keep_until(folder, 0, {folder: str})
    assert not folder.exists()
