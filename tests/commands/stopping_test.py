# SPDX-License-Identifier: Apache-2.0
"""Training that signals stop, in processes of its own; see also cli/stopping_test."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time

import process_fixture
import pytest

from mtr_tf.runs import checkpoints
from mtr_tf.runs import loading

pytestmark = pytest.mark.slow


def start(whole_run, workdir, *flags):
    command = [sys.executable, "-m", "mtr_tf.train", *whole_run.flags]
    # Of its own, no checkpoint comes before the end.
    command += ["--checkpoint_every=100", f"--workdir={workdir}", *flags]
    return process_fixture.start(command, stderr=subprocess.PIPE, text=True)


def last_line(process):
    """Waits for the end; returns the last of what a process said."""
    said = process.communicate(timeout=300)[1]
    assert "Traceback" not in said, said
    return said.strip().splitlines()[-1]


def prints(workdir):
    parts = ("model.keras", "checkpoints/best")
    return [loading.load_run(str(workdir / part)).fingerprint for part in parts]


def test_stopped_at_random_moments_it_ends_with_the_same_bits(whole_run, tmp_path):
    """The first stop is after the first step, before any checkpoint is due."""
    workdir, moments = tmp_path / "run", random.Random()
    kept = [0]
    for _ in range(20):
        signum = moments.choice([signal.SIGINT, signal.SIGTERM])
        process = start(whole_run, workdir)
        events = workdir / "train"
        known = set(events.glob("*"))
        while set(events.glob("*")) == known and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 6))
        process.send_signal(signum)
        line = last_line(process)
        finished = (workdir / "model.keras").exists()
        if process.returncode == 0 or (finished and process.returncode == -signum):
            break  # It was done, or on its way out.
        assert process.returncode == 128 + signum
        found = re.search(r"\. Step (\d+) of 30 is done and kept in (.*); the", line)
        if found:
            step = int(found[1])
            assert checkpoints.steps(workdir / "checkpoints")[-1] == step >= kept[-1]
            kept.append(step)
        else:  # While Python starts or ends, it knows less.
            assert "No training step was done" in line or "is complete" in line
    else:
        raise AssertionError("it never ends")
    assert len(kept) > 1
    assert prints(workdir) == prints(whole_run.workdir)


def test_a_longer_run_goes_on_where_the_rate_does_not_depend_on_it(whole_run, tmp_path):
    rate = ("--schedule=constant", "--jit=off", "--eval_eps=0")
    for epochs in (1, 3):
        process = start(whole_run, tmp_path / "a", *rate, f"--epochs={epochs}")
        process.communicate(timeout=300)
        assert process.returncode == 0
    process = start(whole_run, tmp_path / "b", *rate, "--epochs=3")
    process.communicate(timeout=300)
    end = [
        loading.load_run(str(tmp_path / name / "model.keras")).fingerprint
        for name in "ab"
    ]
    assert end[0] == end[1]
    assert "--epochs=3" in (tmp_path / "a" / "train.flags").read_text()
