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
    still = np.zeros(COUNT, bool)
    return Evaluation(np.arange(COUNT), rows, rows, {}, {}, {}, {}, still, examples)


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
    """The families that an evaluator is made for, one for each worker."""
    made = []

    def make(subject, cell, jit):
        made.append((cell and cell.family, subject.workers.chief))
        return types.SimpleNamespace(run=lambda *_, **options: evaluation())

    monkeypatch.setattr(sweep, "make_evaluator", make)
    return made


def test_what_the_chief_has_finished_no_worker_runs_again(tmp_path, evaluated):
    def work(workers):  # They see different folders.
        place = "chief" if workers.chief else "other"
        store = Store(tmp_path / place, {"model": "m", "seed": 0})
        found = sweep.run(subject_of(workers), CELLS, store)
        return found and [len(result.rows) for result in found[1]]

    assert workers_fixture.run(work) == [[1, 1], None]
    families = {family for family, _ in evaluated}
    assert sorted(evaluated, key=str) == sorted(
        ((family, chief) for family in families for chief in (True, False)), key=str
    )
    assert len(list((tmp_path / "chief" / "cells").glob("*.json"))) == 1 + 2 * 3
    assert not (tmp_path / "other").exists()
    before = len(evaluated)
    store = Store(tmp_path / "chief", {"model": "m", "seed": 0})
    store._path(CELLS[0].members[0]).unlink()  # One of them is missing.
    assert workers_fixture.run(work, 3) == [[1, 1], None, None]
    assert [family for family, _ in evaluated[before:]] == [
        CELLS[0].members[0].family
    ] * 3


JIT = AttackConfig(ckpt="x", attack=("pgd",), eps=(1, 2, 4), steps=10)


def compiled_of(folder, monkeypatch, part=None):
    """The families that are compiled, of a sweep of which some may be finished."""
    chosen = {}

    def make(subject, cell, jit):
        chosen[cell and cell.family] = jit
        return types.SimpleNamespace(run=lambda *_, **options: evaluation())

    monkeypatch.setattr(sweep, "make_evaluator", make)
    store = Store(folder, {"model": "m", "seed": 0})
    subject = subject_of(Workers(tf.distribute.get_strategy()))
    sweep.run(subject, make_cells(JIT, ("depth",)), store, part=part)
    return chosen


def test_xla_goes_by_the_whole_sweep_whatever_is_finished_or_elsewhere(
    tmp_path, monkeypatch
):
    """All radii together pay for compiling, and one alone would not."""
    monkeypatch.setattr(compiling, "on_gpu", lambda: True)
    monkeypatch.setattr(compiling, "PASSES", 3 * 11 * COUNT / 2)
    *_, last = cells = make_cells(JIT, ("depth",))
    whole = {None: False, last.family: True}
    assert compiled_of(tmp_path / "one", monkeypatch) == whole
    Store(tmp_path / "one", {"model": "m", "seed": 0})._path(last).unlink()
    assert compiled_of(tmp_path / "one", monkeypatch) == {last.family: True}
    parts = [
        compiled_of(tmp_path / "parts", monkeypatch, (number, 1 + len(cells)))
        for number in range(1, 2 + len(cells))
    ]
    assert {k: v for part in parts for k, v in part.items()} == whole


def test_checks_are_made_by_all_and_kept_by_the_chief(tmp_path, monkeypatch):
    made = []

    def run(subject, cell, transferred):
        made.append((cell.eps, subject.batch_size, subject.workers.chief))
        return [sanity_checks.Check("fgsm", "it is odd", {"pgd": 1.0})]

    def work(workers):
        subject = subject_of(workers)
        path = tmp_path / str(workers.chief) / "checks.json"
        return sanity_checks.check_once(subject, CELLS, (), {}, path, examples=1)

    monkeypatch.setattr(sanity_checks, "run", run)
    for _ in range(2):
        assert workers_fixture.run(work) == [["it is odd (pgd 1)."], []]
    assert sorted(made) == [(4, 2, False), (4, 2, True)]  # One image each, and once.
    assert [path.parent.name for path in tmp_path.rglob("checks.json")] == ["True"]


def test_all_go_on_from_the_parts_of_a_measure_that_the_chief_has(tmp_path):
    made = []

    def work(workers):
        def make(name, advance):
            made.append(name)
            return {"value": np.full(COUNT, float(ord(name)))}

        parts = [
            passes.Part({"part": name}, 1, functools.partial(make, name))
            for name in "ab"
        ]
        folder = tmp_path / str(workers.chief)
        kept = passes.Parts(folder, {"model": "m"}, workers)
        kept.finish(parts[:1], COUNT)
        return [arrays["value"].tolist() for arrays in kept.finish(parts, COUNT)]

    chief, other = workers_fixture.run(work)
    assert made == ["a", "a", "b", "b"]
    assert chief[0] == other[0] == [97.0] * COUNT
    assert [path.name for path in tmp_path.iterdir()] == ["True"]
    workers_fixture.run(work, 3)
    assert len(made) == 4
