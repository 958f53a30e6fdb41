# SPDX-License-Identifier: Apache-2.0
"""Sweeps, checks and measures of several workers: the chief alone reads and writes."""

from __future__ import annotations

import functools
import types

import cells_fixture
import numpy as np
import pytest
import tensorflow as tf
import workers_fixture

from mtr_tf.config.attack import AttackConfig
from mtr_tf.data.source import Columns
from mtr_tf.evaluation import sanity_checks
from mtr_tf.evaluation import sweep
from mtr_tf.evaluation.cell_store import Store
from mtr_tf.evaluation.evaluator import Evaluation
from mtr_tf.evaluation.evaluator import Examples
from mtr_tf.evaluation.plan import make_cells
from mtr_tf.measures import passes
from mtr_tf.models import compiling
from mtr_tf.runs.workers import Workers
from mtr_tf.tasks import TASKS

COUNT, SIZE = 4, 8
INFO = cells_fixture.depth_info(COUNT, SIZE)
CONFIG = AttackConfig(ckpt="x", attack=("worst",), ensemble=("pgd", "fgsm"), eps=(2, 4))
CELLS = make_cells(CONFIG, ("depth",))


def evaluation(**_) -> Evaluation:
    images = np.random.default_rng(0).random((3, SIZE, SIZE, 3), np.float32)
    depth = {"depth": images[..., :1]}
    rows = {"depth": {m.name: np.ones((COUNT, 2)) for m in TASKS["depth"].metrics}}
    masks = {"depth": np.ones((3, SIZE, SIZE), np.uint8)}
    examples = Examples(images, depth, masks, depth, images, depth)
    unchanged = np.zeros(COUNT, bool)
    return Evaluation(np.arange(COUNT), rows, rows, {}, {}, {}, {}, unchanged, examples)


def subject_of(workers) -> sweep.Subject:
    return sweep.Subject(
        model=None,
        tasks=("depth",),
        info=INFO,
        columns=Columns(np.zeros((COUNT, SIZE, SIZE, 3), np.uint8), {}, {}),
        num_examples=COUNT,
        workers=workers,
        batch_size=2,
        seed=0,
    )


@pytest.fixture
def evaluated(monkeypatch) -> list:
    """The families that evaluators are made for, and whether by the chief."""
    families = []

    def make(subject, cell, jit):
        families.append((cell and cell.family, subject.workers.chief))
        return types.SimpleNamespace(run=lambda *_, **options: evaluation())

    monkeypatch.setattr(sweep, "make_evaluator", make)
    return families


def test_what_the_chief_has_finished_no_worker_runs_again(tmp_path, evaluated):
    def work(workers):  # They see different folders.
        folder = "chief" if workers.chief else "other"
        store = Store(tmp_path / folder, {"model": "m", "seed": 0})
        outcome = sweep.run(subject_of(workers), CELLS, store)
        return outcome and [len(result.rows) for result in outcome[1]]

    assert workers_fixture.run(work) == [[1, 1], None]
    families = {family for family, _ in evaluated}
    assert sorted(evaluated, key=str) == sorted(
        ((family, chief) for family in families for chief in (True, False)), key=str
    )
    assert len(list((tmp_path / "chief" / "cells").glob("*.json"))) == 1 + 2 * 3
    assert not (tmp_path / "other").exists()
    count = len(evaluated)
    store = Store(tmp_path / "chief", {"model": "m", "seed": 0})
    store._path(CELLS[0].members[0]).unlink()  # One cell is missing.
    assert workers_fixture.run(work, 3) == [[1, 1], None, None]
    assert [family for family, _ in evaluated[count:]] == [
        CELLS[0].members[0].family
    ] * 3


JIT = AttackConfig(ckpt="x", attack=("pgd",), eps=(1, 2, 4), steps=10)


def compiled_of(folder, monkeypatch, part=None):
    """Whether each family that a sweep evaluates is compiled; some may be finished."""
    choices = {}

    def make(subject, cell, jit):
        choices[cell and cell.family] = jit
        return types.SimpleNamespace(run=lambda *_, **options: evaluation())

    monkeypatch.setattr(sweep, "make_evaluator", make)
    store = Store(folder, {"model": "m", "seed": 0})
    subject = subject_of(Workers(tf.distribute.get_strategy()))
    sweep.run(subject, make_cells(JIT, ("depth",)), store, part=part)
    return choices


def test_xla_goes_by_the_whole_sweep_whatever_is_finished_or_elsewhere(
    tmp_path, monkeypatch
):
    """All radii together pay for compiling, and one alone would not."""
    monkeypatch.setattr(compiling, "on_gpu", lambda: True)
    monkeypatch.setattr(compiling, "PASSES", 3 * 11 * COUNT / 2)
    *_, last = cells = make_cells(JIT, ("depth",))
    expected = {None: False, last.family: True}
    assert compiled_of(tmp_path / "one", monkeypatch) == expected
    Store(tmp_path / "one", {"model": "m", "seed": 0})._path(last).unlink()
    assert compiled_of(tmp_path / "one", monkeypatch) == {last.family: True}
    parts = [
        compiled_of(tmp_path / "parts", monkeypatch, (number, 1 + len(cells)))
        for number in range(1, 2 + len(cells))
    ]
    assert {k: v for part in parts for k, v in part.items()} == expected


def test_checks_are_made_by_all_and_kept_by_the_chief(tmp_path, monkeypatch):
    calls = []

    def run(subject, cell, transferred):
        calls.append((cell.eps, subject.batch_size, subject.workers.chief))
        return [sanity_checks.Check("fgsm", "it is odd", {"pgd": 1.0})]

    def work(workers):
        subject = subject_of(workers)
        path = tmp_path / str(workers.chief) / "checks.json"
        return sanity_checks.check_once(subject, CELLS, (), {}, path, examples=1)

    monkeypatch.setattr(sanity_checks, "run", run)
    for _ in range(2):
        assert workers_fixture.run(work) == [["it is odd (pgd 1)."], []]
    assert sorted(calls) == [(4, 2, False), (4, 2, True)]  # One image each, and once.
    assert [path.parent.name for path in tmp_path.rglob("checks.json")] == ["True"]


def test_all_go_on_from_the_parts_of_a_measure_that_the_chief_has(tmp_path):
    names = []

    def work(workers):
        def make(name, advance):
            names.append(name)
            return {"value": np.full(COUNT, float(ord(name)))}

        parts = [
            passes.Part({"part": name}, 1, functools.partial(make, name))
            for name in "ab"
        ]
        folder = tmp_path / str(workers.chief)
        store = passes.Parts(folder, {"model": "m"}, workers)
        store.finish(parts[:1], COUNT)
        return [arrays["value"].tolist() for arrays in store.finish(parts, COUNT)]

    chief, worker = workers_fixture.run(work)
    assert names == ["a", "a", "b", "b"]
    assert chief[0] == worker[0] == [97.0] * COUNT
    assert [path.name for path in tmp_path.iterdir()] == ["True"]
    workers_fixture.run(work, 3)
    assert len(names) == 4
