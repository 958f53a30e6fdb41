# SPDX-License-Identifier: Apache-2.0
"""Several workers, in processes of their own on 127.0.0.1, train one model."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import process_fixture
import pytest

from mtr_tf.runs import checkpoints
from mtr_tf.runs import loading

pytestmark = pytest.mark.slow
LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
STEPS = 12
PATIENCE = 300  # Seconds, on a machine with much else to do.


@pytest.fixture(scope="module")
def flags(tiny_flags) -> list[str]:
    return [
        *tiny_flags,
        "--epochs=2",
        "--learning_rate=1e-3",
        "--checkpoint_every=2",
        "--summary_every=2",
        "--eval_every=4",
        "--eval_examples=4",
        "--eval_eps=0",
    ]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(index: int, ports: list[int], flags: list[str]) -> subprocess.Popen:
    """Starts one worker."""
    workers = [f"127.0.0.1:{port}" for port in ports]
    config = {
        "cluster": {"worker": workers},
        "task": {"type": "worker", "index": index},
    }
    return process_fixture.start(
        [sys.executable, "-m", "mtr_tf.train", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TF_CONFIG": json.dumps(config)},
    )


def start_two(flags: list[str]) -> list[subprocess.Popen]:
    ports = free_ports(2)
    return [start(index, ports, flags) for index in range(2)]


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Waits for the end; returns the exit code, and the last of what was said."""
    said = process.communicate(timeout=PATIENCE)[1]
    assert "Traceback" not in said, said
    return process.returncode, (said.strip().splitlines() or [""])[-1]


def weights(workdir: pathlib.Path) -> list[np.ndarray]:
    return loading.load_run(str(workdir / "model.keras")).model.get_weights()


def alone(flags: list[str], workdir: pathlib.Path) -> list[np.ndarray]:
    """The weights of a run in one process."""
    command = [sys.executable, "-m", "mtr_tf.train", *flags, f"--workdir={workdir}"]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    return weights(workdir)


@pytest.fixture(scope="module")
def two_by_two(flags, tmp_path_factory) -> pathlib.Path:
    """A run of two workers with two replicas each, by the launcher, undisturbed."""
    workdir = tmp_path_factory.mktemp("workers") / "whole"
    command = ["bash", LAUNCH / "workers.sh", "2", *flags, "--replicas=2"]
    done = subprocess.run(
        [*command, f"--workdir={workdir}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | {"MTR_PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("the model is") == 1  # The chief alone says so.
    return workdir


def test_two_workers_of_two_replicas_equal_one_of_four(flags, two_by_two, tmp_path):
    one = alone([*flags, "--replicas=4"], tmp_path / "one")
    for a, b in zip(one, weights(two_by_two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_two_workers_equal_two_replicas_under_sgd(flags, tmp_path):
    flags = [*flags, "--optimizer=sgd", "--learning_rate=1e-2", "--sync_batch_norm"]
    for process in start_two([*flags, f"--workdir={tmp_path / 'two'}"]):
        assert ended(process)[0] == 0
    one = alone([*flags, "--replicas=2"], tmp_path / "one")
    for a, b in zip(one, weights(tmp_path / "two"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    events = list((tmp_path / "two").rglob("*tfevents*"))
    assert len(events) == len(list((tmp_path / "one").rglob("*tfevents*")))


@pytest.mark.fuzz  # Two minutes of four processes.
def test_killed_workers_end_all_and_the_same_command_ends_with_the_same_bits(
    flags, two_by_two, tmp_path
):
    flags = [*flags, "--replicas=2", f"--workdir={tmp_path / 'run'}"]
    folder = tmp_path / "run" / "checkpoints"
    for killed, after in ((1, 2), (0, 4)):
        processes = start_two(flags)
        until = time.monotonic() + PATIENCE
        while checkpoints.steps(folder)[-1:] < [after]:
            assert time.monotonic() < until
            assert all(process.poll() is None for process in processes)
            time.sleep(0.005)
        processes[killed].kill()
        code, line = ended(processes[1 - killed])
        assert code == 1
        assert line.startswith(f"error: worker {killed} (127.0.0.1:")
        assert " has ended or cannot be reached" in line
        assert line.endswith(f"goes on from what is kept in {tmp_path / 'run'}.")
        processes[killed].communicate()
        assert checkpoints.steps(folder)[-1] < STEPS
    for process in start_two(flags):
        assert ended(process)[0] == 0
    prints = [
        loading.load_run(str(at / "model.keras")).fingerprint
        for at in (two_by_two, tmp_path / "run")
    ]
    assert prints[0] == prints[1]


def test_a_worker_that_comes_late_with_other_settings_ends_all(flags, tmp_path):
    flags, ports = [*flags, f"--workdir={tmp_path / 'run'}"], free_ports(2)
    chief = start(0, ports, flags)
    for line in chief.stderr:  # Until it waits.
        if "waiting for 1" in line:
            break
    late = start(1, ports, [*flags, "--epochs=3", "--seed=5"])
    for process in (chief, late):
        code, line = ended(process)
        assert code == 1
        assert "--epochs is 2 there and 3 here; --seed is 0 there and 5 here" in line
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_one_sentence(flags, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1], *free_ports(1)]
        flags = [*flags, f"--workdir={tmp_path / 'run'}"]
        code, line = ended(start(0, ports, flags))
    assert code == 1
    assert line.startswith(
        f"error: worker 0 must have the address 127.0.0.1:{ports[0]}"
    )
    assert not (tmp_path / "run").exists()
