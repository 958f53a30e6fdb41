# SPDX-License-Identifier: Apache-2.0
"""The training loop: its timetable, and what stops it."""

import contextlib
import dataclasses
import math
import signal
import types
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf.cli import stopping
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.runs.workers import Workers
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
    resumed = dataclasses.replace(timetable, first=7)
    assert resumed.stop_after(7) == 8


def test_a_compiled_call_has_a_limit_of_steps():
    config = TrainConfig(
        summary_every=10**9, eval_every=10**9, checkpoint_every=10**9, epochs=10**6
    )
    timetable = training.Timetable(0, 10**9, config)
    assert timetable.stop_after(0) == training.MOST_IN_A_CALL
    assert timetable.stop_after(10**9 - 5) == 10**9


def test_ten_evaluations_and_five_checkpoints_unless_told_otherwise():
    timetable = training.Timetable(0, 100, TrainConfig())
    for kind, times in (("eval", 10), ("checkpoint", 5)):
        steps = [step for step in range(1, 101) if timetable.due(kind, step)]
        assert steps == list(range(100 // times, 101, 100 // times)), kind
    assert timetable.stop_after(0) == 10


class Recorder:
    """A monitor and a keeper that only record what they are asked for."""

    def __init__(self):
        self.tasks, self.said = TASKS, []
        self.best = types.SimpleNamespace(better="higher")

    def trained(self, step, losses, speed):
        return 1.0

    def evaluated(self, step):
        self.said.append(("eval", step))
        return 1.0

    def save_if_best(self, step, score, better):
        pass

    def flush(self):
        pass

    def save(self, step):
        self.said.append(("save", step))


def run_loop(config, train_steps, first=0):
    recorder = Recorder()
    timetable = training.Timetable(first, 20, config)
    workers = Workers(tf.distribute.get_strategy())
    parts = (train_steps, timetable, recorder, recorder, lambda: None, workers)
    steps = training.loop(*parts)
    return steps, recorder.said


def trains(count):
    return tf.ones([int(count), 2])


def test_a_signal_ends_training_after_the_call_with_a_checkpoint():
    config = TrainConfig(summary_every=4, eval_every=8, checkpoint_every=10)
    calls = []

    def train_steps(count):
        calls.append(int(count))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return trains(count)

    with pytest.raises(stopping.Stopped), stopping.later():
        steps, records = run_loop(config, train_steps)
    assert steps == 8
    assert records == [("eval", 8), ("save", 8)]  # What is due is still done.
    assert run_loop(config, trains, first=8) == (
        20,
        [("save", 10), ("eval", 16), ("eval", 20), ("save", 20)],
    )


@pytest.mark.parametrize(("fails", "done"), [(0, [False] * 5), (2, [True] * 2)])
def test_no_step_is_done_twice_where_xla_fails(monkeypatch, fails, done):
    """XLA is left out if it fails at once; a later failure ends training."""
    jit_flags = []

    def compile_steps(learner, strategy, jit):
        def steps(iterator, count):
            for _ in range(int(count)):
                if jit and len(jit_flags) == fails:
                    raise tf.errors.UnknownError(None, None, "no luck")
                jit_flags.append(jit)
            return trains(count)

        return steps

    monkeypatch.setattr(training.step_lib, "compile_steps", compile_steps)
    job = types.SimpleNamespace(
        learner=None, strategy=None, jit=True, batches=lambda first: []
    )
    train_steps = training._train_steps(job, 0)
    context = (
        pytest.raises(tf.errors.UnknownError) if fails else contextlib.nullcontext()
    )
    with context:
        assert train_steps(tf.constant(5)).shape == (5, 2)
    assert jit_flags == done


def test_what_is_kept_is_said(tmp_path):
    def message(step):
        return training._stop_message(types.SimpleNamespace(kept=step), 20, tmp_path)

    assert training._stop_message(None, 20, tmp_path) == message(None) == ""
    assert message(0).startswith("No training step is kept;")
    for step in (8, 20):  # There is no model.
        assert message(step).startswith(f"Step {step} of 20 is done and kept in")
    with zipfile.ZipFile(tmp_path / "model.keras", "w"):
        pass
    assert message(20) == f"Training had already finished: {tmp_path} is complete."


def test_a_signal_before_the_first_step_ends_training_there():
    with contextlib.suppress(stopping.Stopped), stopping.later():
        signal.raise_signal(signal.SIGTERM)
        assert run_loop(TrainConfig(), trains) == (0, [])


@pytest.mark.parametrize(
    ("minutes", "saved"), [(10, [8, 16, 20]), (5, [4, 8, 12, 16, 20]), (0, [20])]
)
def test_a_checkpoint_is_kept_by_time_too(monkeypatch, minutes, saved):
    """Each call takes five minutes."""
    clock = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])

    def train_steps(count):
        clock[0] += 300
        return trains(count)

    config = TrainConfig(
        summary_every=4,
        eval_every=100,
        checkpoint_every=100,
        checkpoint_minutes=minutes,
    )
    _, records = run_loop(config, train_steps)
    assert [step for kind, step in records if kind == "save"] == saved
