# SPDX-License-Identifier: Apache-2.0
"""Several workers, in processes of their own on 127.0.0.1: training and attacks."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import process_fixture
import pytest
import slurm_fixture
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import RunPlace
from mtr_tf.config.train import TrainConfig
from mtr_tf.runs import checkpoints
from mtr_tf.runs import loading

pytestmark = pytest.mark.slow
LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
STEPS = 12
PYTHON = """#!/bin/sh
exec "{python}" "$@"
"""
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
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def start(
    index: int, ports: list[int], flags: list[str], command: str = "train"
) -> subprocess.Popen:
    """Starts one worker."""
    workers = [f"127.0.0.1:{port}" for port in ports]
    config = {
        "cluster": {"worker": workers},
        "task": {"type": "worker", "index": index},
    }
    return process_fixture.start(
        [sys.executable, "-m", f"mtr_tf.{command}", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TF_CONFIG": json.dumps(config)},
    )


def start_two(flags: list[str], command: str = "train") -> list[subprocess.Popen]:
    ports = free_ports(2)
    return [start(index, ports, flags, command) for index in range(2)]


def wait_until(condition: Callable[[], bool], *processes: subprocess.Popen) -> None:
    """Waits for a condition, before which no process may end."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Waits for the end; returns the exit code and the last line of stderr."""
    errors = process.communicate(timeout=PATIENCE)[1]
    assert "Traceback" not in errors, errors
    return process.returncode, (errors.strip().splitlines() or [""])[-1]


def run_here(command: str, *flags: str) -> None:
    """Runs a command in this process, whose CPU is two devices."""
    records = {"train": (TrainConfig, RunPlace), "attack": (AttackConfig,)}
    main = importlib.import_module(f"mtr_tf.{command}").main
    main(*cli_flags.parse([command, *flags], records[command]))


def weights(workdir: pathlib.Path) -> list[np.ndarray]:
    return loading.load_run(str(workdir / "model.keras")).model.get_weights()


def scalars(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The curves that TensorBoard shows, without speeds, as {tag: [points]}."""
    events = EventAccumulator(str(folder), {"tensors": 0}).Reload()
    curves = {
        tag: [tf.make_ndarray(event.tensor_proto) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if "per_second" not in tag
    }
    return {tag: np.array(v) for tag, v in curves.items() if v[0].dtype == np.float32}


@pytest.fixture(scope="module")
def two_by_two(flags, tmp_path_factory) -> pathlib.Path:
    """An undisturbed run, by the launcher, of two workers with two replicas each."""
    workdir = tmp_path_factory.mktemp("workers") / "whole"
    command = ["bash", LAUNCH / "workers.sh", "2", *flags, "--replicas=2"]
    process = subprocess.run(
        [*command, f"--workdir={workdir}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | {"MTR_PYTHON": sys.executable},
    )
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    assert process.stderr.count("the model is") == 1  # The chief alone says so.
    return workdir


def test_two_workers_of_two_replicas_equal_one_of_four(flags, two_by_two, tmp_path):
    command = [sys.executable, "-m", "mtr_tf.train", *flags, "--replicas=4"]
    command += [f"--workdir={tmp_path / 'one'}"]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    for a, b in zip(weights(tmp_path / "one"), weights(two_by_two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_two_workers_equal_two_replicas_under_sgd(flags, tmp_path):
    flags = [*flags, "--optimizer=sgd", "--learning_rate=1e-2", "--sync_batch_norm"]
    processes = start_two([*flags, f"--workdir={tmp_path / 'two'}"])
    run_here("train", *flags, "--replicas=2", f"--workdir={tmp_path / 'one'}")
    for process in processes:
        assert ended(process)[0] == 0
    for a, b in zip(weights(tmp_path / "one"), weights(tmp_path / "two"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    events = list((tmp_path / "two").rglob("*tfevents*"))
    assert len(events) == len(list((tmp_path / "one").rglob("*tfevents*")))
    replica_curves, worker_curves = (
        scalars(tmp_path / name / "train") for name in ("one", "two")
    )
    assert any("miou" in tag for tag in replica_curves)  # All evaluate, each its share.
    assert replica_curves.keys() == worker_curves.keys()
    for tag in replica_curves:
        np.testing.assert_allclose(
            replica_curves[tag], worker_curves[tag], atol=1e-4, err_msg=tag
        )


@pytest.mark.fuzz  # Two minutes of four processes.
def test_killed_workers_end_all_and_the_same_command_ends_with_the_same_bits(
    flags, two_by_two, tmp_path
):
    flags = [*flags, "--replicas=2", f"--workdir={tmp_path / 'run'}"]
    folder = tmp_path / "run" / "checkpoints"
    for victim, step in ((1, 2), (0, 4)):
        processes = start_two(flags)
        wait_until(
            lambda step=step: checkpoints.steps(folder)[-1:] >= [step], *processes
        )
        processes[victim].kill()
        code, line = ended(processes[1 - victim])
        assert code == 1
        assert line.startswith(f"error: worker {victim} (127.0.0.1:")
        assert " has ended or cannot be reached" in line
        assert line.endswith(f"goes on from what is kept in {tmp_path / 'run'}.")
        processes[victim].communicate()
        assert checkpoints.steps(folder)[-1] < STEPS
    for process in start_two(flags):
        assert ended(process)[0] == 0
    prints = [
        loading.load_run(str(workdir / "model.keras")).fingerprint
        for workdir in (two_by_two, tmp_path / "run")
    ]
    assert prints[0] == prints[1]


def test_a_worker_that_comes_late_with_other_settings_ends_all(flags, tmp_path):
    flags, ports = [*flags, f"--workdir={tmp_path / 'run'}"], free_ports(2)
    chief = start(0, ports, flags)
    for line in chief.stderr:  # Until it waits.
        if "waiting for 1" in line:
            break
    worker = start(1, ports, [*flags, "--epochs=3", "--seed=5"])
    for process in (chief, worker):
        code, line = ended(process)
        assert code == 1
        assert "--epochs is 2 there and 3 here; --seed is 0 there and 5 here" in line
    assert not (tmp_path / "run").exists()


def free_job() -> str:
    """The number of a job of SLURM whose two ports are free here."""
    for job in range(100, 1000):
        first_port = 15_000 + job * 16
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in (first_port, first_port + 1):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return str(job)
    raise AssertionError("no ports are free")


def test_a_signal_to_one_task_of_slurm_stops_all_at_a_checkpoint_and_requeues(
    flags, tmp_path
):
    """One worker, not the chief, gets the signal; all end after the same step."""
    slurm_fixture.put_commands(tmp_path, python=PYTHON)
    workdir, job = tmp_path / "run", free_job()
    # The signal comes during an evaluation, most likely, and long before a checkpoint.
    flags = [*flags, "--eval_every=1", "--eval_eps=2", "--eval_steps=20"]
    flags += ["--epochs=500", "--checkpoint_every=3000", f"--workdir={workdir}"]
    flags += ["--tasks=seg"]
    script = slurm_fixture.start(
        tmp_path, *flags, SLURM_JOB_ID=job, NODE="127.0.0.1", ONLY="1"
    )
    folder = workdir / "checkpoints"
    wait_until(lambda: checkpoints.steps(folder / "best") != [], script)
    assert checkpoints.steps(folder) == []
    script.send_signal(signal.SIGUSR1)  # As slurm.sbatch asks for.
    errors = script.communicate(timeout=PATIENCE)[1]
    assert "Traceback" not in errors, errors
    assert script.returncode == 143, errors
    stops = re.findall(
        r"stopped by SIGTERM\. Step (\d+) of 3000 is done and kept", errors
    )
    assert len(stops) == 2  # Both say so, each with its code.
    assert len(set(stops)) == 1
    assert checkpoints.steps(folder)[-1] == int(stops[0])
    assert slurm_fixture.requeued(tmp_path) == f"requeue {job}"


@pytest.fixture(scope="module")
def attack_flags(two_by_two) -> list[str]:
    return [
        f"--ckpt={two_by_two}",
        "--attack_tasks=all",
        "--eps=2,4",
        "--steps=2",
        "--batch_size=4",
        "--nochecks",
        "--save_examples=9",
        "--measure=tasks",
    ]


@pytest.fixture(scope="module")
def attacked(attack_flags, two_by_two) -> pathlib.Path:
    """The results of one process with two replicas."""
    flags = [*attack_flags, "--strategy=mirrored", "--replicas=2", "--name=one"]
    run_here("attack", *flags)
    return two_by_two / "attacks" / "one"


def check_equal(folder_a: pathlib.Path, folder_b: pathlib.Path) -> None:
    """Asserts that two folders of results have the same values."""
    for name in ("results.json", "measures.json"):
        a, b = (
            json.loads((folder / name).read_text()) for folder in (folder_a, folder_b)
        )
        numbers = [
            [value for record in records for value in flat(record)]
            for records in (a, b)
        ]
        np.testing.assert_allclose(*numbers, rtol=1e-5, atol=1e-5)
    files = [
        {path.relative_to(folder): path for path in folder.rglob("*.npz")}
        for folder in (folder_a, folder_b)
    ]
    assert files[0].keys() == files[1].keys()
    for name in files[0]:
        with np.load(files[0][name]) as a, np.load(files[1][name]) as b:
            for key in a:
                np.testing.assert_allclose(a[key], b[key], atol=1e-5)


def flat(value) -> list[float]:
    """The numbers in a JSON value, in order of sorted keys."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        return [number for part in value for number in flat(part)]
    return [float(value)] if isinstance(value, int | float) else []


def test_an_attack_by_two_workers_equals_one_process_with_two_replicas(
    attack_flags, attacked
):
    for process in start_two([*attack_flags, "--name=two"], "attack"):
        assert ended(process)[0] == 0
    folder = attacked.with_name("two")
    assert (folder / "gallery.png").exists()
    check_equal(attacked, folder)
    shutil.rmtree(folder)


@pytest.mark.fuzz
def test_a_killed_attack_ends_all_and_the_same_command_does_what_is_left(
    attack_flags, attacked
):
    flags, folder = [*attack_flags, "--name=killed"], attacked.with_name("killed")
    for victim, count in ((1, 1), (0, 2)):  # Of three.
        processes = start_two(flags, "attack")
        wait_until(
            lambda count=count: len([*folder.glob("cells/*.json")]) >= count, *processes
        )
        processes[victim].kill()
        code, line = ended(processes[1 - victim])
        assert code == 1
        assert line.startswith(f"error: worker {victim} (127.0.0.1:")
        processes[victim].communicate()
    for process in start_two(flags, "attack"):
        assert ended(process)[0] == 0
    check_equal(attacked, folder)
    shutil.rmtree(folder)


@pytest.mark.fuzz
def test_what_cannot_be_attacked_by_one_is_told_to_all(attack_flags, attacked):
    """The other worker attacks something else, before anything is written."""
    ports, folder = free_ports(2), attacked.with_name("other")
    flags = [*attack_flags, "--name=other"]
    processes = [
        start(0, ports, flags, "attack"),
        start(1, ports, [*flags, "--ckpt=nothing"], "attack"),
    ]
    lines = [ended(process)[1] for process in processes]
    assert lines[1].startswith("error: --ckpt must be a run directory")
    assert lines[0].startswith("error: worker 1 (127.0.0.1:")
    assert lines[1].removeprefix("error: ") in lines[0]
    assert not folder.exists()
