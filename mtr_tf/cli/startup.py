# SPDX-License-Identifier: Apache-2.0
"""Imports TensorFlow without its start-up noise, and sets what must be set early.

That is the folder where XLA keeps compiled code, and that GPU memory is taken as it is
needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import pathlib
import platform
import re
import sys
import tempfile
from collections.abc import Iterator

from absl import logging

from mtr_tf import files
from mtr_tf.errors import InputError

_DRIVER = pathlib.Path("/dev/nvidiactl")  # Exists where there are NVIDIA GPUs.
_MAX_CACHE_BYTES = 2 * 2**30  # Of compiled code.


@contextlib.contextmanager
def _hold_stderr() -> Iterator[None]:
    """Holds what C++ and Python write to stderr, and shows it only after an error."""
    sys.stderr.flush()
    stderr_copy = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(stderr_copy, 2)
            buffer.seek(0)
            os.write(2, buffer.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr_copy, 2)
            os.close(stderr_copy)


def import_tensorflow(deterministic: bool = False) -> None:
    """Imports TensorFlow and Keras quietly; set TF_CPP_MIN_LOG_LEVEL=0 to see all.

    `deterministic` says whether deterministic kernels will be asked for: code that XLA
    has compiled for other kernels must not be used then.

    Raises:
      InputError: There is no temporary directory, which Keras and TFDS need too.
    """
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise InputError(
            "a writable temporary directory is needed, but there is none "
            f"({error.strerror}); name one in the variable TMPDIR."
        ) from error
    if "tensorflow" not in sys.modules:  # It takes seconds, on a slow disk a minute.
        logging.info("starting TensorFlow")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    _set_up_cache(deterministic)
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        _share_gpus()
    else:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        with _hold_stderr():
            importlib.import_module("keras")
            tf = importlib.import_module("tensorflow")
            _share_gpus()
            tf.get_logger().setLevel("WARNING")
    _warn_of_unused_gpus()


def _share_gpus() -> None:
    """Takes GPU memory as it is needed, so that several processes may share a GPU.

    TF_FORCE_GPU_ALLOW_GROWTH=false gives each process all of it from the start.
    """
    tf = importlib.import_module("tensorflow")
    gpus = tf.config.list_physical_devices("GPU")
    if "TF_FORCE_GPU_ALLOW_GROWTH" in os.environ:  # Then that counts.
        return
    with contextlib.suppress(RuntimeError):  # TensorFlow has started already.
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)


def _warn_of_unused_gpus() -> None:
    """Warns of GPUs that TensorFlow cannot use, unless none is to be used."""
    tf = importlib.import_module("tensorflow")
    if tf.config.list_physical_devices("GPU") or not _has_gpu():
        return
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices is None or re.match(r"\d|GPU-|MIG-", devices):  # SLURM says NoDevFiles.
        logging.warning(
            "this machine has a GPU that TensorFlow cannot use, so the CPU computes; "
            "install TensorFlow's libraries for GPUs by pip install -e '.[gpu]', or "
            "set CUDA_VISIBLE_DEVICES=-1 if the CPU is meant"
        )


def _has_gpu() -> bool:
    """Whether there is a driver of NVIDIA GPUs that this process may use."""
    return os.access(_DRIVER, os.R_OK)


def _set_up_cache(deterministic: bool) -> None:
    """Lets XLA keep what it compiles for GPUs in a folder, for the next process.

    MTR_TF_CACHE names the folder; if it is empty or the folder cannot be written,
    nothing is kept. A cache in the user's own TF_XLA_FLAGS takes precedence. Must be
    called before TensorFlow is imported.
    """
    folder = os.environ.get("MTR_TF_CACHE", os.path.expanduser("~/.cache/mtr_tf"))
    machine = _machine()
    flags = os.environ.get("TF_XLA_FLAGS", "")
    if not machine or "persistent_cache" in flags:
        return
    if not folder or files.is_remote(folder):
        return
    kind = "deterministic" if deterministic else "free"
    place = pathlib.Path(folder).absolute() / f"xla-{machine}-{kind}"
    if " " in str(place):  # Flags are separated by spaces.
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    except OSError:
        return
    _delete_oldest(place.parent)
    flags += f" --tf_xla_persistent_cache_directory={place}"
    flags += " --tf_xla_persistent_cache_device_types=GPU"
    os.environ["TF_XLA_FLAGS"] = flags.strip()


def _delete_oldest(folder: pathlib.Path) -> None:
    """Deletes the oldest of XLA's files; at most `_MAX_CACHE_BYTES` stay."""
    entries = []
    for file in folder.glob("xla-*/*"):
        with contextlib.suppress(OSError):  # Another process may delete it too.
            status = file.stat()
            entries.append((status.st_mtime, status.st_size, file))
    total = 0
    for _, size, file in sorted(entries, reverse=True):
        total += size
        if total > _MAX_CACHE_BYTES:
            with contextlib.suppress(OSError):
                file.unlink()


def _machine() -> str:
    """A hash of what compiled code depends on; empty without a GPU."""
    if not _has_gpu():
        return ""
    facts = [importlib.metadata.version("tensorflow")]
    driver = pathlib.Path("/proc/driver/nvidia")
    for file in (driver / "version", *sorted(driver.glob("gpus/*/information"))):
        with contextlib.suppress(OSError):
            lines = file.read_text().splitlines()
            facts += [line for line in lines if line.startswith(("Model", "NVRM"))]
    if len(facts) < 3:  # Driver and GPU are not both known: use this host.
        facts.append(platform.node())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]
