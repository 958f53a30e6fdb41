# SPDX-License-Identifier: Apache-2.0
"""A sweep of many cells holds only the numbers of each cell."""

from __future__ import annotations

import gc
import pathlib
import tracemalloc
import types

import cells_fixture
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import tasks as tasks_lib
from mtr_tf.config.attack import AttackConfig
from mtr_tf.data.source import Columns
from mtr_tf.evaluation import sweep
from mtr_tf.evaluation.cell_store import Store
from mtr_tf.evaluation.evaluator import Evaluation
from mtr_tf.evaluation.evaluator import Examples
from mtr_tf.evaluation.plan import make_cells
from mtr_tf.runs.workers import Workers

COUNT, SIZE = 16, 64
PACKAGE = pathlib.Path(sweep.__file__).parents[1]
INFO = cells_fixture.depth_info(COUNT, SIZE)


def evaluation(**_) -> Evaluation:
    """An evaluator's result: 200 kB of pictures, which the sweep must not hold."""
    images = np.random.default_rng(0).random((3, SIZE, SIZE, 3), np.float32)
    depth = {"depth": images[..., :1]}
    rows = {
        "depth": {m.name: np.ones((COUNT, 2)) for m in tasks_lib.TASKS["depth"].metrics}
    }
    unchanged = np.zeros(COUNT, bool)
    examples = Examples(
        image=images,
        targets=depth,
        masks={"depth": np.ones((3, SIZE, SIZE), np.uint8)},
        clean=depth,
        adversarial=images,
        attacked=depth,
    )
    return Evaluation(np.arange(COUNT), rows, rows, {}, {}, {}, {}, unchanged, examples)


def held(folder, count: int, monkeypatch) -> tracemalloc.Snapshot:
    """The memory that the package still holds after a sweep of `count` cells."""
    images = np.zeros((COUNT, SIZE, SIZE, 3), np.uint8)
    subject = sweep.Subject(
        model=None,
        tasks=("depth",),
        info=INFO,
        columns=Columns(images=images, targets={}, masks={}),
        num_examples=COUNT,
        workers=Workers(tf.distribute.get_strategy()),
        batch_size=8,
        seed=0,
    )
    evaluator = types.SimpleNamespace(run=lambda *_, **options: evaluation())
    monkeypatch.setattr(sweep, "make_evaluator", lambda *_, **options: evaluator)
    radii = tuple(np.linspace(1, 8, count).tolist())
    cells = make_cells(AttackConfig(ckpt="x", eps=radii), ("depth",))
    assert len(cells) == count
    store = Store(folder, {"model": "m", "seed": 0})
    gc.collect()
    tracemalloc.start(8)  # Frames.
    try:
        results = sweep.run(subject, cells, store)
        gc.collect()
        assert len(results[1]) == count
        assert results[1][-1].pictures["image"].shape == (3, SIZE, SIZE, 3)
        # Threads that earlier tests left behind take memory meanwhile.
        package_filter = tracemalloc.Filter(True, str(PACKAGE / "*"), all_frames=True)
        return tracemalloc.take_snapshot().filter_traces([package_filter])
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_grows_by_a_few_kilobytes_a_cell(tmp_path, monkeypatch):
    held(tmp_path / "first", 2, monkeypatch)  # Makes what is made once.
    snapshot_10 = held(tmp_path / "few", 10, monkeypatch)
    snapshot_70 = held(tmp_path / "many", 70, monkeypatch)
    growth = snapshot_70.compare_to(snapshot_10, "lineno")
    per_cell = sum(line.size_diff for line in growth) / 60
    assert per_cell < 8_000, "\n".join(
        [f"{per_cell:.0f} bytes a cell:", *map(str, growth[:9])]
    )
