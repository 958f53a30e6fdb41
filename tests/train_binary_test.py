# SPDX-License-Identifier: Apache-2.0
"""`python -m mtr_tf.train` in processes of its own: kills, bad input, real pictures."""

from __future__ import annotations

import json
import os
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import time

import pytest

from mtr_tf import checkpoints
from mtr_tf import training
from mtr_tf.config import TrainConfig
from mtr_tf.errors import InputError

SHARED = pathlib.Path(__file__).parent.parent.parent / "shared"
CAMVID = pathlib.Path(os.environ.get("MTR_CAMVID", SHARED / "camvid"))
needs_camvid = pytest.mark.skipif(
    not CAMVID.is_dir(),
    reason="CamVid is neither at ../shared/camvid nor where MTR_CAMVID says",
)


def command(*arguments):
    return [sys.executable, "-m", "mtr_tf.train", *map(str, arguments)]


def finish(*arguments, code=0, **options):
    """Runs the binary to its end; returns what it wrote to stderr."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.fixture
def small(camvid_dir, tmp_path):
    """Flags of a run of 60 steps on `camvid_dir`."""
    return (
        "--dataset=camvid",
        f"--data_dir={camvid_dir}",
        "--tasks=seg,autoencoder",
        "--model=tiny",
        "--image_size=32x40",
        "--batch_size=4",
        "--epochs=10",
        "--crop=24x32",
        "--checkpoint_every=4",
        "--summary_every=2",
        "--eval_every=7",
        "--eval_examples=4",
        "--eval_steps=1",
        f"--workdir={tmp_path / 'run'}",
    )


def newest(workdir):
    steps = (p.stem.split("-")[1] for p in workdir.glob("checkpoints/ckpt-*.index"))
    return max(map(int, steps), default=0)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(small, tmp_path):
    whole = tmp_path / "whole"
    finish(*small, f"--workdir={whole}")
    workdir = tmp_path / "run"
    moment = random.Random(0)
    kills = 0
    for _ in range(3):
        before = newest(workdir)
        process = subprocess.Popen(command(*small), stderr=subprocess.DEVNULL)
        while newest(workdir) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moment.uniform(0, 0.3))
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills >= 2
    finish(*small)
    prints = {
        name: {
            checkpoints.load_run(str(path / part)).fingerprint
            for path in (whole, workdir)
        }
        for name, part in (("end", "model.keras"), ("best", "checkpoints/best"))
    }
    assert all(len(values) == 1 for values in prints.values()), prints
    log = finish(*small)  # Ended already: nothing is left to do.
    assert "going on from step 60 of 60" in log


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("seg", "dpeth")}, "Did you mean 'depth'"),
        ({"tasks": ("seg", "depth")}, "no task 'depth'; it has seg, "),
        ({"tasks": ()}, "At least one task"),
        ({"tasks": ("seg", "s")}, "differ"),
        ({"main_tasks": ("edge_texture",)}, "--main_tasks must be among --tasks"),
        ({"dataset": "camvit"}, "camvid"),
        ({"data_dir": "/nowhere"}, "/nowhere"),
        ({"image_size": "33x40"}, "multiples of 4, got 33x40"),
        ({"crop": "23x32"}, "multiples of 4, got 23x32"),
        ({"crop": "64x64"}, "64x64"),
        (
            {"batch_size": 3, "strategy": "mirrored", "replicas": 2},
            "take 2 or 4",
        ),
        ({"batch_size": 100}, "batch size is 100, for 24 examples"),
        ({"train_examples": 100}, "at most 24"),
        ({"best_metric": "seg/mean"}, "--best_metric must be"),
        ({"best_metric": "adversarial/seg/miou", "eval_eps": 0.0}, "--best_metric"),
        ({"model": "resnet17"}, "resnet18"),
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
    with pytest.raises(InputError) as raised:
        training.train(config, workdir)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks=seg,dpeth"], "error: Unknown task 'dpeth'. Did you mean 'depth'"),
        (["--eval_eps=-1"], "error: --eval_eps must be from 0 to 255, got -1"),
        (["--eval_steps=0"], "error: --eval_steps must be at least 1, got 0"),
        (["seg"], "error: every argument must be a flag"),
        (["--epochs=three"], "three"),
    ],
)
def test_bad_flags_are_one_line(tmp_path, flags, message):
    assert message in finish(*flags, f"--workdir={tmp_path / 'run'}", code=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_of_other_settings_is_refused_and_kept(small, tmp_path):
    finish(*small, "--epochs=1")
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    said = finish(*small, "--epochs=1", "--seed=3", code=1)
    assert "--seed was 0 and is 3" in said
    assert "other --workdir" in said
    assert "--noresume" in finish(*small, "--epochs=1", "--noresume", code=1)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == kept


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 60])
def test_a_loss_that_is_not_finite_stops_the_run(small, tmp_path, steps):
    """In the last step of all the broken model is found by its evaluation."""
    flags = ["--learning_rate=1e30", "--optimizer=sgd", "--schedule=constant"]
    if steps == 1:
        flags += ["--epochs=1", "--train_examples=4"]
    said = finish(*small, *flags, code=1)
    assert "error: the loss of" in said
    assert ("after step 1" if steps == 1 else "at step") in said
    assert not (tmp_path / "run" / "model.keras").exists()


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(small, tmp_path):
    def limit():  # Files of at most 40 kB: checkpoints do not fit, summaries do.
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    said = finish(*small, code=1, preexec_fn=limit)
    assert "no space is left on the disk" in said.strip().splitlines()[-1]
    assert not (tmp_path / "run" / "model.keras").exists()
    finish(*small)
    assert (tmp_path / "run" / "model.keras").exists()


@pytest.mark.slow
def test_a_run_in_use_is_refused(small, tmp_path):
    process = subprocess.Popen(command(*small), stderr=subprocess.DEVNULL)
    try:
        while newest(tmp_path / "run") == 0 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(19)  # SIGSTOP: it holds the directory and does nothing.
        assert f"pid {process.pid}" in finish(*small, code=1)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_help_and_start_are_quiet_and_quick(small, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command("--help"), capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "--tasks=seg,depth" in done.stdout
    assert done.stderr == ""
    assert after.ru_utime - before.ru_utime < 0.5
    said = finish(*small, "--epochs=1")
    for noise in ("oneDNN", "cuda", "CUDA", "cpu_feature_guard", "WARNING"):
        assert noise not in said
    shutil.rmtree(tmp_path / "run")


@needs_camvid
@pytest.mark.slow
def test_real_pictures(tmp_path):
    said = finish(
        "--dataset=camvid",
        f"--data_dir={CAMVID}",
        "--tasks=seg,autoencoder",
        "--model=tiny",
        "--epochs=2",
        "--train_examples=96",
        f"--workdir={tmp_path / 'run'}",
    )
    assert "(attacked " in said
    attacking = [sys.executable, "-m", "mtr_tf.attack", f"--ckpt={tmp_path / 'run'}"]
    attacking += ["--attack_tasks=each", "--num_examples=32", "--name=all"]
    subprocess.run(attacking, check=True, capture_output=True, timeout=300)
    results = tmp_path / "run" / "attacks" / "all" / "results.json"
    records = json.loads(results.read_text())
    own = [r for r in records if r["attacked"] == [r["task"]] and r["metric"] == "loss"]
    for task in ("seg", "autoencoder"):
        losses = [r["clean"] for r in own if r["task"] == task][:1]
        losses += [r["attacked_value"] for r in own if r["task"] == task]
        assert len(losses) == 5  # Clean, and eps 1, 2, 4, 8.
        assert losses == sorted(set(losses))
