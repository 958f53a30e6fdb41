# SPDX-License-Identifier: Apache-2.0
"""Training that stops and goes on, also by signals; see also cli/stopping_test."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

import process_fixture
import pytest

from mtr_tf import train
from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.train import RunPlace
from mtr_tf.config.train import TrainConfig
from mtr_tf.runs import checkpoints
from mtr_tf.runs import loading

pytestmark = pytest.mark.slow


# Trains; after the step in the first argument, prints its number and waits for a line.
WAITING = """
import sys
from mtr_tf import train
from mtr_tf.training import monitor

wanted, real = int(sys.argv.pop(1)), monitor.Monitor.trained

def trained(self, step, *arguments):
    global wanted
    if step >= wanted:
        print(step, flush=True)
        sys.stdin.readline()
        wanted = float("inf")
    return real(self, step, *arguments)

monitor.Monitor.trained = trained
train.run()
"""


def start(whole_run, workdir, *flags, binary=("-m", "mtr_tf.train")):
    command = [sys.executable, *binary, *whole_run.flags]
    # Without a signal, no checkpoint is written before the end.
    command += ["--checkpoint_every=100", f"--workdir={workdir}", *flags]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return process_fixture.start(command, text=True, **pipes)


def last_line(process):
    """Waits for the end of a process; returns the last line that it wrote to stderr."""
    output = process.communicate(timeout=300)[1]
    assert "Traceback" not in output, output
    return output.strip().splitlines()[-1]


def prints(workdir):
    parts = ("model.keras", "checkpoints/best")
    return [loading.load_run(str(workdir / part)).fingerprint for part in parts]


def test_stopped_at_random_steps_it_ends_with_the_same_bits(whole_run, tmp_path):
    workdir, rng, last_step = tmp_path / "run", random.Random(0), 0
    for limit in (8, 24):  # The first stop may come before any checkpoint is due.
        signum = rng.choice([signal.SIGINT, signal.SIGTERM])
        target = str(rng.randint(last_step + 1, limit))
        process = start(whole_run, workdir, binary=("-c", WAITING, target))
        step = int(process.stdout.readline())
        assert step >= int(target)
        process.send_signal(signum)
        line = last_line(process)  # Closes the pipe that it waits on.
        assert process.returncode == 128 + signum
        assert f". Step {step} of 30 is done and kept in {workdir}/checkpoints" in line
        assert checkpoints.steps(workdir / "checkpoints")[-1] == step
        last_step = step
    process = start(whole_run, workdir)
    last_line(process)
    assert process.returncode == 0
    assert prints(workdir) == prints(whole_run.workdir)


def test_a_longer_run_goes_on_where_the_rate_does_not_depend_on_it(whole_run, tmp_path):
    flags = [*whole_run.flags, "--schedule=constant", "--jit=off", "--eval_eps=0"]
    for name, epochs in (("a", 1), ("a", 3), ("b", 3)):
        arguments = [*flags, f"--epochs={epochs}", f"--workdir={tmp_path / name}"]
        train.main(*cli_flags.parse(["train", *arguments], (TrainConfig, RunPlace)))
    fingerprints = [
        loading.load_run(str(tmp_path / name / "model.keras")).fingerprint
        for name in "ab"
    ]
    assert fingerprints[0] == fingerprints[1]
    assert "--epochs=3" in (tmp_path / "a" / "train.flags").read_text()
