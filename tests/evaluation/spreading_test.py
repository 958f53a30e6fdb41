# SPDX-License-Identifier: Apache-2.0
"""Sweeps that are spread over processes; running them is in commands/attack_test."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from mtr_tf import executors
from mtr_tf import files
from mtr_tf.config.attack import AttackConfig
from mtr_tf.evaluation import spreading
from mtr_tf.evaluation.cell_store import Store
from mtr_tf.evaluation.plan import make_cells
from mtr_tf.executors import command

CONFIG = AttackConfig(ckpt="x", eps=(1.0, 2.0), executor="slurm")


def test_a_refused_second_command_stops_nothing(tmp_path, monkeypatch):
    """It makes no executor, which would end the lease of the running command."""
    folder = tmp_path / "parts"
    lease = command.Lease.begin(folder / "jobs")
    monkeypatch.setattr(
        executors, "create", lambda _, place, *__: command.Lease.begin(place)
    )
    cells = make_cells(CONFIG, ("seg",))
    store = Store(tmp_path, {"model": "m", "seed": 0})
    with files.locked(folder), pytest.raises(files.InUse, match="in use"):
        spreading.run(CONFIG, cells, store, None, 0)
    assert pathlib.Path(lease.path).exists()
    lease.end()


@pytest.mark.parametrize(("of_a_replica", "given"), [(16, 1), (None, 0)])
def test_parts_on_a_random_model_have_the_batches_of_a_replica(
    tmp_path, monkeypatch, of_a_replica, given
):
    """These identify finished cells, and the whole command may have replicas."""
    parts = []

    def results(engine, take):
        parts.extend(iter(take, None))
        return ()

    monkeypatch.setattr(executors, "create", lambda *_: executors.Engine(None, 2, 2))
    monkeypatch.setattr(executors, "results", results)
    cells = make_cells(CONFIG, ("seg",))
    facts = {"model": "m", "seed": 0, "batch_size": of_a_replica}
    spreading.run(CONFIG, cells, Store(tmp_path, facts), None, 2)
    counts = [part.arguments.count("--batch_size=16") for _, part in parts]
    assert counts == [given] * 3


def test_parts_write_where_the_whole_command_does():
    """By --out if the user named a folder, else by the name of the usual folder."""
    arguments = spreading._arguments(CONFIG, "pgd", "1/2")
    assert "--name=pgd" in arguments
    config = dataclasses.replace(CONFIG, out="a/mine")
    arguments = spreading._arguments(config, "mine", "1/2")
    assert "--out=a/mine" in arguments
    assert not [word for word in arguments if word.startswith("--name")]
