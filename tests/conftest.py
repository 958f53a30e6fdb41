# SPDX-License-Identifier: Apache-2.0
"""What all tests share: two logical CPU devices, and one strategy over them."""

from __future__ import annotations

import dataclasses
import gc
import os
import pathlib
import signal
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import fuzz_fixture
import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from PIL import Image

from mtr_tf.config.train import TrainConfig

# Must come before any TensorFlow operation. Two replicas on one CPU stand for two GPUs.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
# Graphs and models are many small objects. With Python's default thresholds the
# collector looks at all of them so often that it takes a thirteenth of the tests' time.
gc.freeze()
gc.set_threshold(50_000, 20, 20)


FUZZED = pytest.StashKey[dict]()  # How the cases of each test of the tier ended.


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz_seconds",
        type=float,
        default=20.0,
        help="how long each test of `-m fuzz` goes on, once it has done its least",
    )
    parser.addoption(
        "--fuzz_first",
        type=int,
        default=0,
        help="the number of the first case of each test of `-m fuzz`",
    )


def pytest_configure():
    """Lets Ctrl-C through, which shells make their background jobs ignore."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Leaves the fuzz tier out unless it is asked for."""
    if "fuzz" in config.option.markexpr:
        return
    selection = [item for item in items if not item.get_closest_marker("fuzz")]
    config.hook.pytest_deselected(items=[i for i in items if i not in selection])
    items[:] = selection


def pytest_terminal_summary(terminalreporter):
    """Says how many cases each test of the fuzz tier has tried."""
    for name, counts in terminalreporter.config.stash.get(FUZZED, {}).items():
        summary = ", ".join(f"{count} {what}" for what, count in counts.items())
        terminalreporter.line(f"fuzz: {name}: {summary}")


@pytest.fixture(scope="session")
def mirrored() -> tf.distribute.MirroredStrategy:
    """The one two-replica strategy of the session (a second one would clash)."""
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


@pytest.fixture(scope="session", autouse=True)
def no_determinism_for_all():
    """Keeps commands from setting deterministic kernels for all later tests.

    On CPUs these change nothing, except that XLA then refuses max pooling.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
        yield


@pytest.fixture(autouse=True)
def logs_as_before():
    """Undoes what commands and workers do to logs, for the sake of later tests."""
    logger, verbosity = logging.get_absl_logger(), logging.get_verbosity()
    handlers, propagate = list(logger.handlers), logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logging.set_verbosity(verbosity)


@pytest.fixture
def unplotted(monkeypatch):
    """Leaves out the plots of an attack, which take seconds."""
    for name in ("curves", "gallery"):
        monkeypatch.setattr(f"mtr_tf.show.{name}.save_run", lambda *arguments: None)


@pytest.fixture(scope="session")
def camvid_dir(tmp_path_factory) -> pathlib.Path:
    """A data set of a few random pictures of 40x48 in CamVid's layout."""
    folder = tmp_path_factory.mktemp("camvid")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 9)):
        (folder / split).mkdir()
        (folder / f"{split}annot").mkdir()
        for i in range(count):
            labels = rng.integers(0, 12, (5, 6), np.uint8).repeat(8, 0).repeat(8, 1)
            noise = rng.integers(0, 20, (40, 48, 3), np.uint8)
            picture = (labels[..., None] * 20 + noise).astype(np.uint8)
            Image.fromarray(picture).save(folder / split / f"{i:03}.png")
            Image.fromarray(labels).save(folder / f"{split}annot" / f"{i:03}.png")
    return folder


@pytest.fixture(scope="session")
def noise_config(camvid_dir) -> TrainConfig:
    """The smallest net of segmentation beside a task whose targets are noise."""
    return TrainConfig(
        tasks=("seg", "autoencoder"),
        main_tasks=("seg",),
        random_targets=("autoencoder",),
        dataset="camvid",
        data_dir=str(camvid_dir),
        image_size="16x16",
        model="tiny",
        epochs=1,
        batch_size=8,
        eval_eps=0.0,
        eval_examples=2,
    )


@pytest.fixture(scope="session")
def tiny_flags(camvid_dir) -> tuple[str, ...]:
    """Flags of `mtr_tf.train` for the smallest net of two tasks on `camvid_dir`."""
    return (
        "--dataset=camvid",
        f"--data_dir={camvid_dir}",
        "--tasks=seg,autoencoder",
        "--model=tiny",
        "--image_size=32x40",
        "--batch_size=4",
    )


@dataclasses.dataclass(frozen=True)
class WholeRun:
    """An uninterrupted run of `python -m mtr_tf.train`; copy it before changing it."""

    flags: tuple[str, ...]  # All but --workdir.
    workdir: pathlib.Path
    said: str  # All that it wrote to stderr.


@pytest.fixture(scope="session")
def whole_run(tiny_flags, tmp_path_factory) -> WholeRun:
    """A run of 30 steps with 5 evaluations and 8 checkpoints, for several tests."""
    flags = (
        *tiny_flags,
        "--epochs=5",
        "--crop=24x32",
        "--checkpoint_every=4",
        "--summary_every=2",
        "--eval_every=7",
        "--eval_examples=4",
        "--eval_steps=1",
    )
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    process = subprocess.run(
        [sys.executable, "-m", "mtr_tf.train", *flags, f"--workdir={workdir}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return WholeRun(flags, workdir, process.stderr)


@pytest.fixture
def cases(request) -> fuzz_fixture.Cases:
    """The cases of a test that `fuzz_fixture.tiers` marks."""
    cases = fuzz_fixture.Cases(request, *request.function.fuzz_settings)
    if request.param == "fuzz":
        counts = request.config.stash.setdefault(FUZZED, {})
        counts[request.node.nodeid] = cases.counts
    return cases
