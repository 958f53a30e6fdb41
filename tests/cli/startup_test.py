# SPDX-License-Identifier: Apache-2.0
"""What is set before TensorFlow starts, and what commands say when memory runs out."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from process_fixture import imported_by

from mtr_tf.cli import flags as cli_flags
from mtr_tf.cli import startup
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.export import ExportConfig


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a GPU and without flags of XLA; gives the cache folder."""
    monkeypatch.setattr(startup, "_machine", lambda: "gpu")
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    monkeypatch.setenv("MTR_TF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flags() -> str:
    return os.environ.get("TF_XLA_FLAGS", "")


def test_compiled_code_is_kept_apart_by_determinism(machine, monkeypatch):
    startup._set_up_cache(True)
    folder = machine / "xla-gpu-deterministic"
    assert f"--tf_xla_persistent_cache_directory={folder} " in flags()
    assert folder.is_dir()
    monkeypatch.delenv("TF_XLA_FLAGS")
    startup._set_up_cache(False)
    assert f"={machine / 'xla-gpu-free'} " in flags()


def test_flags_of_the_users_own_count(machine, monkeypatch):
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_clustering_debug")
    startup._set_up_cache(True)
    assert flags().startswith("--tf_xla_clustering_debug --tf_xla_persistent_cache")
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_persistent_cache_directory=/mine")
    startup._set_up_cache(True)
    assert flags() == "--tf_xla_persistent_cache_directory=/mine"


def test_the_oldest_compiled_code_goes_beyond_a_size(machine, monkeypatch):
    monkeypatch.setattr(startup, "_MAX_CACHE_BYTES", 250)
    names = ("gpu-free/new.pb", "other-free/old.pb", "gpu-deterministic/older.pb")
    for age, name in enumerate(names):
        file = machine / f"xla-{name}"
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(100))
        os.utime(file, (10**9 - age,) * 2)
    (machine / "of-another.pb").write_bytes(bytes(1000))
    startup._set_up_cache(False)
    file_names = {path.name for path in machine.rglob("*.pb")}
    assert file_names == {"new.pb", "old.pb", "of-another.pb"}


@pytest.mark.parametrize(
    ("driver", "gpus", "visible", "warns"),
    [
        (True, [], None, True),
        (True, [], "0", True),
        (True, [], "", False),
        (True, [], "-1", False),
        (True, ["GPU"], None, False),
        (False, [], None, False),
    ],
)
def test_a_gpu_that_tensorflow_cannot_use_is_named(
    driver, gpus, visible, warns, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(startup, "_DRIVER", tmp_path if driver else tmp_path / "none")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    startup._warn_of_unused_gpus()
    assert ("pip install -e '.[gpu]'" in caplog.text) == warns


@pytest.mark.parametrize("kind", ["empty", "unwritable", "space", "no GPU"])
def test_nothing_is_kept_where_that_cannot_be(kind, machine, monkeypatch):
    if kind == "empty":
        monkeypatch.setenv("MTR_TF_CACHE", "")
    elif kind == "unwritable":
        machine.write_text("a file in its place")
    elif kind == "space":
        monkeypatch.setenv("MTR_TF_CACHE", str(machine / "a b"))
    else:
        monkeypatch.setattr(startup, "_machine", lambda: "")
    startup._set_up_cache(True)
    assert not flags()


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
        tf.errors.InternalError(None, None, "RESOURCE_EXHAUSTED: Out of memory while"),
        tf.errors.InternalError(None, None, "Failed: Out of memory trying to allocate"),
        tf.errors.InternalError(
            None, None, "Failed copying input tensor: Dst tensor is not initialized."
        ),
        tf.errors.InternalError(None, None, "CUBLAS_STATUS_ALLOC_FAILED"),
        tf.errors.InternalError(None, None, "{{node Conv2D}} No BLAS for stream."),
        tf.errors.InternalError(None, None, "CUDNN_STATUS_NOT_INITIALIZED"),
        tf.errors.NotFoundError(
            None, None, "No algorithm worked! Error messages: RESOURCE_EXHAUSTED: x"
        ),
    ],
)
def test_too_little_memory_is_one_sentence(error):
    message = cli_flags.out_of_memory(error, [TrainConfig(batch_size=24)])
    assert message.count("\n") == 0
    assert "--batch_size=24. Try --batch_size=12, or" in message
    message = cli_flags.out_of_memory(error, [AttackConfig(ckpt="x", batch_size=1)])
    assert "--batch_size=1. Use smaller images or a smaller --model, or" in message
    message = cli_flags.out_of_memory(
        error, [AttackConfig(ckpt="x", batch_size="auto")]
    )
    assert "Try a number, such as --batch_size=4; use smaller images" in message


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.InvalidArgumentError(None, None, "in the ROOM, Incompatible"),
        tf.errors.NotFoundError(None, None, "No algorithm worked!"),
        tf.errors.ResourceExhaustedError(None, None, "f; No space left on device"),
        tf.errors.ResourceExhaustedError(None, None, "f; Disk quota exceeded"),
    ],
)
def test_other_errors_are_not_of_memory(error):
    assert cli_flags.out_of_memory(error, [TrainConfig()]) is None


@pytest.mark.parametrize(
    ("settings", "gpus", "told"),
    [
        ({"num_examples": 8}, 1, "for 8 images at a time. Try --batch_size=4,"),
        ({"num_examples": 0}, 1, "for --batch_size=32. Try --batch_size=16,"),
        ({}, 3, "for --batch_size=32. Try --batch_size=15,"),
        ({"strategy": "one_device"}, 3, "for --batch_size=32. Try --batch_size=16,"),
        (
            {"replicas": 2, "num_examples": 6},
            4,
            "6 images at a time. Try --batch_size=2",
        ),
        ({"num_examples": 5}, 4, "for 5 images at a time. Use smaller images or"),
    ],
)
def test_half_of_what_ran_is_advised_in_equal_shares(settings, gpus, told, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["GPU"] * gpus)
    error = tf.errors.ResourceExhaustedError(None, None, "OOM")
    config = AttackConfig(ckpt="x", **settings)
    assert told in cli_flags.out_of_memory(error, [config])


def test_a_command_without_batches_is_told_of_no_flag_that_it_lacks():
    message = cli_flags.out_of_memory(MemoryError("out of memory"), [ExportConfig()])
    assert message is not None
    assert message.startswith("the device has too little memory. ")
    assert "--" not in message


def test_lines_are_ours_or_warnings():
    """Also if packages of others lie in a folder named mtr_tf."""
    other_path = "/home/me/mtr_tf/.venv/lib/python3.11/site-packages/tensorflow/a.py"
    lines = [(startup.__file__, 20), (other_path, 20), (other_path, 30)]
    results = []
    for file, level in lines:
        record = logging.LogRecord("absl", level, file, 1, "told", (), None)
        results.append(bool(cli_flags._PlainHandler().filter(record)))
    assert results == [True, False, True]


def test_skipped_steps_are_those_without_an_update():
    """`Monitor` counts steps minus updates: Keras skips overflows of a scaled loss."""
    variable = keras.Variable([1.0])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    optimizer.build([variable])
    for slope in (1.0, np.inf, 1.0, np.nan):
        optimizer.apply([tf.constant([slope])], [variable])
    assert int(optimizer.iterations.numpy()) == 2
    assert float(optimizer.dynamic_scale.numpy()) == 2.0**13


@pytest.mark.parametrize(
    "name", ["train", "attack", "convert", "compare", "export", "reproduce"]
)
def test_help_needs_no_heavy_library(name):
    code = (
        f"import sys; sys.argv = ['x', '--help']; from mtr_tf import {name}\n"
        f"try:\n    {name}.run()\nexcept SystemExit:\n    pass\n"
        "heavy = {'tensorflow', 'numpy', 'scipy', 'matplotlib', 'rich', 'jinja2'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert "Usage: python -m mtr_tf" in process.stdout


def test_comparing_needs_no_tensorflow():
    assert "tensorflow" not in imported_by("import mtr_tf.show.side_by_side")


def test_no_temporary_directory_is_one_sentence(monkeypatch):
    def fail():
        raise FileNotFoundError(2, "No usable temporary directory found in [...]")

    monkeypatch.setattr(tempfile, "gettempdir", fail)
    with pytest.raises(InputError, match=r"No usable .* TMPDIR"):
        startup.import_tensorflow()
