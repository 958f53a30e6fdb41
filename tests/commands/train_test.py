# SPDX-License-Identifier: Apache-2.0
"""`python -m mtr_tf.train` in processes of its own: kills, bad input, real pictures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import process_fixture
import pytest
import tensorflow as tf
from absl import flags as absl_flags

from mtr_tf import attack_job
from mtr_tf import train
from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import RunPlace
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.runs import loading
from mtr_tf.training import loop as training
from mtr_tf.training import step

SHARED = pathlib.Path(__file__).parents[3] / "shared"
CAMVID = pathlib.Path(os.environ.get("MTR_CAMVID", SHARED / "camvid"))
needs_camvid = pytest.mark.skipif(
    not CAMVID.is_dir(),
    reason="CamVid is neither at ../shared/camvid nor where MTR_CAMVID says",
)


def command(*arguments):
    return [sys.executable, "-m", "mtr_tf.train", *map(str, arguments)]


def finish(*arguments, code=0, **options):
    """Runs the binary to its end; returns the text that it wrote to stderr."""
    process = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=300, **options
    )
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr, process.stderr
    return process.stderr


def read(flags):
    """The records of settings that the binary makes from flags."""
    values = absl_flags.FlagValues()
    for record in (TrainConfig, RunPlace):
        cli_flags.define(record, values)
    values(["train", *flags])
    return [cli_flags.read(record, values) for record in (TrainConfig, RunPlace)]


@pytest.fixture(scope="module")
def here():
    """A function that does in this process what the binary does with flags."""
    with pytest.MonkeyPatch.context() as patch:
        # It would hold for all later tests; no step is computed here.
        patch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
        yield lambda *flags: train.main(*read(flags))


def newest(workdir):
    steps = (p.stem.split("-")[1] for p in workdir.glob("checkpoints/ckpt-*.index"))
    return max(map(int, steps), default=0)


@dataclasses.dataclass
class Stopped:
    """A run of the flags of `whole_run` that was stopped again and again."""

    workdir: pathlib.Path
    full_disk: str = ""  # Its stderr when nothing could be written any more.
    left: tuple[str, ...] = ()  # Names in the folder after that.
    kills: int = 0
    in_use: tuple[str, str] = ("", "")  # Pid; the refusal of another process.


@pytest.fixture(scope="module")
def stopped(whole_run, here, tmp_path_factory):
    """One run from a full disk through two kills to its end: each start takes long."""
    run = Stopped(tmp_path_factory.mktemp("stopped") / "run")
    flags = (*whole_run.flags, f"--workdir={run.workdir}")

    def limit():  # Files of at most 40 kB: checkpoints do not fit, summaries do.
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    run.full_disk = finish(*flags, code=1, preexec_fn=limit)
    run.left = tuple(path.name for path in run.workdir.iterdir())
    rng = random.Random(0)
    for last_step in (0, 8):  # At first before any evaluation, then after one.
        process = subprocess.Popen(command(*flags), stderr=subprocess.DEVNULL)
        try:
            while newest(run.workdir) <= last_step and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGSTOP)  # It holds the directory still.
            run.kills += process.poll() is None
            if last_step:
                with pytest.raises(InputError) as error:
                    here(*flags)
                run.in_use = (str(process.pid), str(error.value))
        finally:
            process.kill()
            process.wait()
    finish(*flags)
    return run


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(whole_run, stopped):
    assert stopped.kills == 2
    prints = {
        name: {
            loading.load_run(str(path / part)).fingerprint
            for path in (whole_run.workdir, stopped.workdir)
        }
        for name, part in (("end", "model.keras"), ("best", "checkpoints/best"))
    }
    assert all(len(values) == 1 for values in prints.values()), prints


def shown(workdir):
    """(tag, step) of all values that a run writes for TensorBoard, by file."""
    return [
        (value.tag, event.step)
        for file in sorted(workdir.rglob("events.out.*"))
        for raw in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
        for event in [tf.compat.v1.Event.FromString(raw)]
        for value in event.summary.value
    ]


@pytest.mark.fuzz
def test_killed_at_twenty_random_moments_under_a_name_like_a_pattern(
    whole_run, tmp_path
):
    """Its neighbour, whose name the pattern fits, is left alone."""
    neighbour = shutil.copytree(whole_run.workdir, tmp_path / "run 0 -")
    contents = {p: p.read_bytes() for p in neighbour.rglob("*") if p.is_file()}

    def begin(run):
        return subprocess.Popen(
            command(*whole_run.flags, f"--workdir={run}"), stderr=subprocess.DEVNULL
        )

    names = itertools.chain(["run *[0-9]\\?"], (f"run *[{n}]" for n in range(99)))
    runs = process_fixture.kill_at_random_moments(
        begin, (tmp_path / name for name in names), seed=1
    )
    finish(*whole_run.flags, f"--workdir={runs[-1]}")
    expected = loading.load_run(str(whole_run.workdir)).fingerprint
    for run in runs:
        assert loading.load_run(str(run)).fingerprint == expected
        assert sorted(shown(run)) == sorted(shown(whole_run.workdir))
        names = {path.name for path in (run / "checkpoints").iterdir()}
        paths = (whole_run.workdir / "checkpoints").iterdir()
        assert names == {path.name for path in paths}
    assert {p: p.read_bytes() for p in neighbour.rglob("*") if p.is_file()} == contents


@pytest.mark.slow
def test_killed_at_any_moment_it_shows_each_step_once(whole_run, stopped):
    whole_points, stopped_points = (shown(run.workdir) for run in (whole_run, stopped))
    assert len(set(whole_points)) == len(whole_points)
    assert sorted(stopped_points) == sorted(whole_points)
    steps = [
        [point for point in points if point[1]]
        for points in (stopped_points, whole_points)
    ]
    assert steps[0] == steps[1]  # Settings are at step 0, of the last start.


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(stopped):
    assert "no space is left on the disk" in stopped.full_disk.strip().splitlines()[-1]
    assert "config.json" in stopped.left
    assert "model.keras" not in stopped.left
    assert (stopped.workdir / "model.keras").exists()


@pytest.mark.slow
def test_a_run_in_use_is_refused(stopped):
    pid, refusal = stopped.in_use
    assert f"pid {pid}" in refusal


@pytest.mark.slow
def test_of_a_run_that_has_ended_nothing_is_left_to_do(
    whole_run, stopped, here, monkeypatch
):
    lines = []
    monkeypatch.setattr(
        training.logging, "info", lambda line, *values: lines.append(line % values)
    )

    def fail(*_, **__):
        raise AssertionError("a step was traced")

    monkeypatch.setattr(step, "replica_step", fail)
    fingerprint = loading.load_run(str(stopped.workdir)).fingerprint
    here(*whole_run.flags, f"--workdir={stopped.workdir}")
    assert any(line.endswith("is already finished: 30 steps") for line in lines)
    assert loading.load_run(str(stopped.workdir)).fingerprint == fingerprint


@pytest.mark.slow
def test_a_run_of_other_settings_is_refused_and_kept(whole_run, here):
    flags = (*whole_run.flags, f"--workdir={whole_run.workdir}")
    times = {p: p.stat().st_mtime_ns for p in whole_run.workdir.rglob("*")}
    with pytest.raises(InputError, match=r"--seed was 0 and is 3.*other --workdir"):
        here(*flags, "--seed=3")
    with pytest.raises(InputError, match="--noresume"):
        here(*flags, "--noresume")
    assert {p: p.stat().st_mtime_ns for p in whole_run.workdir.rglob("*")} == times


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 6])
def test_a_loss_that_is_not_finite_stops_the_run(whole_run, here, tmp_path, steps):
    """After the very last step, the evaluation notices the broken model."""
    flags = [*whole_run.flags, f"--workdir={tmp_path / 'run'}"]
    flags += ["--eval_eps=0", "--eval_steps=5"]  # The default; there is no attack.
    flags += ["--learning_rate=1e6", "--optimizer=sgd", "--schedule=constant"]
    flags += ["--epochs=1", f"--train_examples={4 * steps}", "--nodeterministic"]
    flags += ["--crop="]
    moment = "after step 1:" if steps == 1 else r"at step \d"
    with pytest.raises(InputError, match=f"loss of .* {moment}"):
        here(*flags)
    assert not (tmp_path / "run" / "model.keras").exists()


@pytest.mark.slow
def test_the_start_is_quiet(whole_run):
    for noise in ("oneDNN", "cuda", "CUDA", "cpu_feature_guard", "WARNING"):
        assert noise not in whole_run.said
    assert "Traceback" not in whole_run.said
    assert "(attacked " in whole_run.said


def test_help_is_quick():
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        command("--help"), capture_output=True, text=True, check=True
    )
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "--tasks=seg,depth" in process.stdout
    assert process.stderr == ""
    assert end.ru_utime - begin.ru_utime < 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("seg", "dpeth")}, "Did you mean 'depth'"),
        ({"tasks": ("seg", "depth")}, "no task 'depth'; it has seg, "),
        ({"tasks": ()}, "At least one task"),
        ({"tasks": ("seg", "s")}, "named only once"),
        ({"main_tasks": ("edge_texture",)}, "--main_tasks must be among --tasks"),
        ({"dataset": "camvit"}, "Did you mean 'camvid'"),
        ({"data_dir": "/nowhere"}, "must be an existing folder, got '/nowhere'."),
        ({"image_size": "33x40"}, "multiples of 4, got 33x40"),
        ({"crop": "23x32"}, "multiples of 4, got 23x32"),
        ({"crop": "64x64"}, "fit into the pictures, got 64x64 for pictures of 32x40"),
        (
            {"batch_size": 3, "strategy": "mirrored", "replicas": 2},
            "Give 2 or 4",
        ),
        ({"batch_size": 100}, "examples, 24; got a batch size of 100"),
        ({"train_examples": 100}, "at most 24"),
        ({"best_metric": "seg/mean"}, "--best_metric must be"),
        ({"best_metric": "adversarial/seg/miou", "eval_eps": 0.0}, "--best_metric"),
        ({"model": "resnet17"}, "Did you mean 'resnet18'"),
        (
            {
                "sync_batch_norm": True,
                "strategy": "mirrored",
                "replicas": 2,
                "adversarial_tasks": "main",
                "adversarial_batch_norm": "training",
                "data_dir": "/nowhere",  # Data are not looked for.
            },
            "--adversarial_batch_norm must be inference with --sync_batch_norm on",
        ),
    ],
)
def test_bad_settings_are_explained_and_leave_nothing(
    camvid_dir, tmp_path, changes, message
):
    settings = {
        "dataset": "camvid",
        "data_dir": str(camvid_dir),
        "tasks": ("seg", "autoencoder"),
        "model": "tiny",
        "image_size": "32x40",
        "batch_size": 4,
        "deterministic": False,
    }
    workdir = tmp_path / "run"
    config = TrainConfig(**(settings | changes))
    with pytest.raises(InputError) as error:
        training.train(config, workdir)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval_eps=-1"], "error: --eval_eps must be from 0 to 255, got -1"),
        (["--eval_steps=0"], "error: --eval_steps must be from 1 to 1000000, got 0"),
        (["seg"], "error: every argument must be a flag"),
        (["--epochs=three"], "error: --epochs must be a whole number, got 'three'."),
    ],
)
def test_bad_flags_are_one_line(tmp_path, flags, message):
    assert message in finish(*flags, f"--workdir={tmp_path / 'run'}", code=1)
    assert not (tmp_path / "run").exists()


@needs_camvid
@pytest.mark.slow
def test_real_pictures(tmp_path):
    config = TrainConfig(
        dataset="camvid",
        data_dir=str(CAMVID),
        tasks=("seg", "autoencoder"),
        model="tiny",
        image_size="48x64",
        epochs=2,
        train_examples=96,
        eval_every=100,
        eval_eps=0.0,
        deterministic=False,
    )
    training.train(config, tmp_path / "run")
    attack = AttackConfig(
        ckpt=str(tmp_path / "run"),
        attack_tasks=("each",),
        num_examples=8,
        steps=5,
        name="all",
    )
    attack_job.attack(attack)
    results = tmp_path / "run" / "attacks" / "all" / "results.json"
    records = json.loads(results.read_text())
    loss_records = [
        r for r in records if r["attacked"] == [r["task"]] and r["metric"] == "loss"
    ]
    for task in ("seg", "autoencoder"):
        losses = [r["clean"] for r in loss_records if r["task"] == task][:1]
        losses += [r["attacked_value"] for r in loss_records if r["task"] == task]
        assert len(losses) == 5  # Clean, and eps 1, 2, 4, 8.
        assert losses == sorted(set(losses))
