# SPDX-License-Identifier: Apache-2.0
"""The training loop: when what happens, and what stops it."""

import dataclasses
import math

import numpy as np
import pytest

from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.training import loop as training

TASKS = ("seg", "depth")


def test_a_loss_that_is_not_finite_is_named_with_step_and_task():
    losses = np.ones((4, 2))
    training.raise_if_not_finite(losses, TASKS, 10)
    losses[2, 1] = math.nan
    losses[3, 0] = math.inf
    with pytest.raises(InputError, match="loss of depth is nan at step 13"):
        training.raise_if_not_finite(losses, TASKS, 10)


def test_the_timetable():
    config = TrainConfig(summary_every=4, eval_every=6, checkpoint_every=0)
    timetable = training.Timetable(0, 13, config)
    stops, step = [], 0
    while step < 13:
        step = timetable.stop_after(step)
        stops.append(step)
    assert stops == [3, 4, 6, 8, 9, 12, 13]  # Checkpoints every ceil(13 / 5) = 3.
    assert [s for s in stops if timetable.due("eval", s)] == [6, 12, 13]
    assert [s for s in stops if timetable.due("checkpoint", s)] == [3, 6, 9, 12, 13]
    later = dataclasses.replace(timetable, first=7)
    assert later.stop_after(7) == 8


def test_ten_evaluations_and_five_checkpoints_unless_told_otherwise():
    timetable = training.Timetable(0, 100, TrainConfig())
    for what, times in (("eval", 10), ("checkpoint", 5)):
        due = [step for step in range(1, 101) if timetable.due(what, step)]
        assert due == list(range(100 // times, 101, 100 // times)), what
    assert timetable.stop_after(0) == 10
