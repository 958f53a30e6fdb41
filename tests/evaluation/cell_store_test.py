# SPDX-License-Identifier: Apache-2.0
"""Finished cells: what is read back, and what is rejected as damaged."""

import dataclasses
import json
import logging
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from cells_fixture import a_cell
from process_fixture import imported_by

from mtr_tf import files
from mtr_tf.config.attack import AttackConfig
from mtr_tf.errors import InputError
from mtr_tf.evaluation import cell_files
from mtr_tf.evaluation import resampling
from mtr_tf.evaluation import scores
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.cell_store import Store
from mtr_tf.evaluation.evaluator import Examples
from mtr_tf.evaluation.plan import make_cells
from mtr_tf.runs import store as files_of_work
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import more_metrics

COUNT = 6
FACTS = {"model": "m", "seed": 3}
CELLS = make_cells(AttackConfig(ckpt="x", eps=(1.0, 2.0)), ("depth",))


def result(cell=CELLS[0], seed=0):
    random = np.random.default_rng(seed)
    rows = {
        "depth": {
            metric.name: np.stack([random.random(COUNT), np.ones(COUNT)], axis=1)
            for metric in TASKS["depth"].metrics
        }
    }
    units = resampling.independent(COUNT)
    picture = np.full((2, 4, 4, 3), seed, np.uint8)
    pictures = {"image": picture, "adversarial": picture + 1}
    cell_scores = scores.of_rows(rows, FACTS["seed"], units)
    return Result(cell, cell_scores, COUNT, pictures, rows, unit=units.of)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path, FACTS)
    for number, cell in enumerate(CELLS):
        store.write(result(cell, number))
    return store


def same(first: Result, second: Result) -> bool:
    rows = zip(first.rows["depth"].values(), second.rows["depth"].values(), strict=True)
    return first.scores == second.scores and all(np.array_equal(*pair) for pair in rows)


def without_checksum(path: pathlib.Path) -> None:
    """Rewrites a cell's file as versions before 0.2 wrote it."""
    content = json.loads(path.read_text())
    del content["checksum"], content["arrays"]
    path.write_text(json.dumps(content))


def edit(path: pathlib.Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_digit(part, value):
    def change(content):
        content["scores"]["depth"]["mae"][part] = value

    return change


CHANGES = {
    "a value": set_digit("value", 0.4321),
    "an interval": set_digit("interval", [0.4, 0.6]),
    "a value left out": set_digit("value", None),
    "a list for a number": set_digit("value", [0.5]),
    "a number for a list": set_digit("interval", 0.5),
    "a text for a number": set_digit("value", "0.5"),
    "the count": lambda content: content.update(count=5),
    "no scores": lambda content: content.pop("scores"),
    "a task left out": lambda content: content["scores"].clear(),
    "no key": lambda content: content.pop("key"),
    "scores of the targets": lambda content: content.update(wanted={"depth": {}}),
    "a list of targets": lambda content: content.update(wanted=[1]),
}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_cell_is_done_again(store, change, sealed, caplog):
    path = store._path(CELLS[0])
    if not sealed:
        without_checksum(path)
        assert same(store.read(CELLS[0]), result())
    edit(path, CHANGES[change])
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert store.read(CELLS[0]) is None
    assert caplog.text.count("is damaged") == 1
    assert same(store.read(CELLS[1]), result(CELLS[1], 1))  # Its neighbour is intact.


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("suffixes", [(".json",), (".npz",), (".json", ".npz")])
def test_swapped_files_are_noticed(store, suffixes, sealed, caplog):
    first, second = (store._path(cell) for cell in CELLS[:2])
    if not sealed:
        without_checksum(first)
        without_checksum(second)
    for suffix in suffixes:
        a, b = first.with_suffix(suffix), second.with_suffix(suffix)
        temp_path = a.with_name("aside")
        shutil.move(a, temp_path)
        shutil.move(b, a)
        shutil.move(temp_path, b)
    assert store.read(CELLS[0]) is None
    assert store.read(CELLS[1]) is None
    assert caplog.text.count("is damaged") == 2


@pytest.mark.parametrize("sealed", [True, False])
def test_metrics_that_were_not_asked_for_are_none_and_others_are_left_out(
    store, sealed, caplog
):
    """A cell is finished for the metrics it has; its key does not name metrics."""
    caplog.set_level(logging.INFO, "absl")
    if not sealed:
        for path in (store.folder / "cells").glob("*.json"):
            without_checksum(path)
    tasks = TASKS.select("depth")
    for cell in CELLS:
        assert same(store.read(cell), result(cell, CELLS.index(cell)))
    full_tasks = more_metrics.with_more(tasks, ("delta1",), None)
    full_store = dataclasses.replace(store, tasks=full_tasks)
    assert full_store.read(CELLS[0]) is None
    assert not any("damaged" in text for text in caplog.messages)
    full_result = result()
    rows = {
        "depth": full_result.rows["depth"]
        | {"delta1": full_result.rows["depth"]["mae"]}
    }
    full_result = dataclasses.replace(
        full_result,
        rows=rows,
        scores=scores.of_rows(rows, FACTS["seed"], None, full_tasks),
    )
    full_store.write(full_result)
    assert "delta1" in full_store.read(CELLS[0]).rows["depth"]
    plain_result = dataclasses.replace(store, tasks=tasks).read(CELLS[0])
    assert list(plain_result.rows["depth"]) == list(result().rows["depth"])


def test_readers_get_what_was_written_or_an_error(store):
    path = store._path(CELLS[0]).with_suffix(".npz")
    content = cell_files.read(path)
    expected = result()
    for name, rows in expected.rows["depth"].items():
        np.testing.assert_array_equal(content.rows["depth"][name], rows)
    assert content.pictures["image"].shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(content.unit, np.arange(COUNT))
    part = cell_files.read(path, "row/depth/mae")
    assert list(part.rows["depth"]) == ["mae"]
    assert not part.pictures
    files_of_work.write_arrays(path, {"row/depth/mae": np.zeros((COUNT, 2))})
    with pytest.raises(files.DAMAGED):
        cell_files.read(path, "row/depth/mae")
    path.with_suffix(".json").unlink()  # Old versions gave readers only the arrays.
    assert cell_files.read(path).rows["depth"]["mae"].sum() == 0


def test_a_metric_with_a_slash_in_its_name_is_read_again():
    original = Result(None, {}, 1, {}, {"depth": {"depth/mae": np.ones((1, 2))}})
    copy = cell_files.result_of(None, *cell_files.contents(original))
    assert list(copy.rows["depth"]) == ["depth/mae"]


def test_reading_cells_needs_no_tensorflow():
    modules = imported_by("import mtr_tf.evaluation.cell_files")
    assert "mtr_tf.runs.store" in modules
    assert "tensorflow" not in modules


def test_a_result_that_is_filed_holds_no_arrays(store):
    """It reads the same arrays from its file at each access."""
    full_result = store.read(CELLS[1])
    filed_result = store.filed(full_result)
    assert len(pickle.dumps(dataclasses.replace(filed_result, cell=None))) < 3000
    assert same(filed_result, full_result)
    assert list(filed_result.pictures) == list(full_result.pictures)
    assert np.array_equal(filed_result.pictures["image"], full_result.pictures["image"])
    store._path(CELLS[1]).with_suffix(".npz").write_bytes(b"x")
    with pytest.raises(InputError, match="was changed while it was in use"):
        filed_result.pictures["image"]


def test_what_an_attack_left_as_it_was_is_said(store):
    unchanged = np.arange(COUNT) < 2
    store.write(dataclasses.replace(result(), unchanged=unchanged))
    saved_result = store.read(CELLS[0])
    assert np.array_equal(saved_result.unchanged, unchanged)
    assert "left 2 of 6 images unchanged" in saved_result.warnings[0]
    assert store.read(CELLS[1]).warnings == ()  # Old versions did not look.


def test_names_of_files_are_short_however_many_tasks(tmp_path):
    store = Store(tmp_path, FACTS)
    tasks = tuple(f"landmark_heatmap_{number:02d}" for number in range(12))
    names = [store.label(a_cell(tasks=tasks, eps=eps)) for eps in (1.0, 2.0)]
    assert all(len(name) < 60 and "12_tasks" in name for name in names)
    assert names[0] != names[1]
    assert "_depth_eps1_" in store.label(CELLS[0])


def test_as_many_examples_are_saved_as_were_asked_for(tmp_path):
    """Three examples are painted, however many are saved."""
    store = Store(tmp_path, FACTS, save_examples=1)
    images = np.zeros((3, 4, 4, 3), np.float32)
    depth = {"depth": images[..., :1]}
    store.write(result(), Examples(images, depth, depth, {}, images, depth))
    with np.load(store._examples_path(CELLS[0])) as file:
        assert {name: len(array) for name, array in file.items()} == {
            "image": 1,
            "adversarial": 1,
            "target/depth": 1,
            "mask/depth": 1,
            "output/depth": 1,
        }


def test_examples_of_an_ensemble_are_those_of_the_members_that_count(tmp_path):
    store = Store(tmp_path, FACTS, save_examples=3)
    cell = a_cell("worst", ensemble=("pgd", "fgsm"), step_size=2.0)
    for number, member in enumerate(cell.members):
        arrays = {"image": np.arange(4.0), "adversarial": 10 * number + np.arange(4.0)}
        files_of_work.write_arrays(store._examples_path(member), arrays)
    store.choose_examples(cell, np.array([1, 0, 1, 0, 0]))
    with np.load(store._examples_path(cell)) as file:
        assert file["image"].tolist() == [0, 1, 2]
        assert file["adversarial"].tolist() == [10, 1, 12]
    store._examples_path(cell.members[1]).write_bytes(b"PK")
    with pytest.raises(InputError, match="the examples of fgsm, but is damaged"):
        store.choose_examples(cell, np.array([1, 0, 1, 0, 0]))


@pytest.mark.parametrize(
    "fields",
    [
        {"channels": tuple(range(90))},
        {"spare": tuple(f"landmark_heatmap_{number:02d}" for number in range(40))},
    ],
)
def test_examples_are_saved_however_much_is_said_of_an_attack(tmp_path, fields):
    store = Store(tmp_path, FACTS, save_examples=1)
    cells = [a_cell(eps=eps, **fields) for eps in (1.0, 2.0)]
    names = [store.label(cell) for cell in cells]
    assert names[0] != names[1]
    assert all("_seg_eps" in name for name in names)
    for name in names:
        temp_name = files.name_beside(f"{name}.npz")
        (tmp_path / temp_name).touch()  # A name that is too long raises OSError.
    usual_cell = a_cell(channels=(0, 1, 2))
    assert store.label(usual_cell).startswith(f"{usual_cell.label}_seg_eps8_")
