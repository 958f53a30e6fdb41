# SPDX-License-Identifier: Apache-2.0
"""Run directories: what is in one, and how files get there.

    runs/NAME/config.json      settings, versions, commit, command
              train.flags      a flagfile that repeats the run
              model.keras      the model at the end of training
              checkpoints/     the newest ones, and best/ by the named metric
              train/ validation/  TensorBoard events
              attacks/NAME/    what `mtr_tf.attack` writes

Files appear whole or not at all: each is written beside, flushed and renamed.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import mtr_tf
from mtr_tf.config import Settings
from mtr_tf.config import TrainConfig
from mtr_tf.errors import InputError

# What may differ between a run and the command that resumes it.
_PLACE_ONLY = ("data_dir", "strategy", "replicas", "jit", "keep_checkpoints")


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write to; it becomes `path` if all went well, else it is gone.

    Raises:
      InputError: the disk is full. What stood at `path` before is untouched.
    """
    beside = path.with_name(f".{os.getpid()}.{path.name}")  # Keeps the suffix.
    try:
        with write_errors_explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


@contextlib.contextmanager
def write_errors_explained(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of writing into `InputError`: a full disk, a folder without rights.

    A full disk is told by TensorFlow's errors as well as by Python's.
    """
    try:
        yield
    except Exception as error:
        codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        text = str(error)
        full = getattr(error, "errno", None) in codes or any(
            os.strerror(code) in text for code in codes
        )
        if not full and not isinstance(error, OSError):
            raise
        if not full:
            raise InputError(
                f"{path} cannot be written: {error.strerror or error}. Give another "
                "directory, or the right to write there."
            ) from error
        raise InputError(
            f"no space is left on the disk to write {path}; what was there before is "
            "kept. Free some space, then repeat the command to go on."
        ) from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text(text)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; refuses NaN, which JSON lacks."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a run directory for this process; the lock ends with it, even if killed.

    Raises:
      InputError: another process holds it.
    """
    with write_errors_explained(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "a+")  # noqa: SIM115  (closed below)
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"the run directory {workdir} is in use by another process (pid "
                f"{file.read().strip() or 'unknown'}); wait for it, stop it, or give "
                "another directory."
            ) from error
        with write_errors_explained(workdir):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


def provenance() -> dict[str, Any]:
    """What a result is traced by: command, commit, versions, machine, time (UTC)."""
    packages = ("tensorflow", "keras", "numpy", "tensorflow-datasets")
    versions = {"python": platform.python_version(), "mtr_tf": mtr_tf.__version__}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "command": shlex.join(["python", "-m", *_module_and_flags()]),
        "commit": _commit(),
        "versions": versions,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _module_and_flags() -> list[str]:
    binary = pathlib.Path(sys.argv[0]).stem.removeprefix("mtr-")
    return [f"mtr_tf.{binary}", *sys.argv[1:]]


def _commit() -> str | None:
    """The commit of the source tree, `+changes` if it differs; None without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=pathlib.Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    try:
        if not git("ls-files", "--", "__init__.py"):
            return None  # Installed into someone else's repository.
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def default_workdir(config: TrainConfig) -> pathlib.Path:
    """A readable name for a run, of what people vary most."""
    from mtr_tf import tasks

    names = "-".join(tasks.resolve(config.tasks))
    dataset = re.sub(r"[^\w-]+", "-", config.dataset)  # As in my_package.data:read.
    return pathlib.Path("runs", f"{dataset}-{config.model}-{names}-seed{config.seed}")


def write_config(workdir: pathlib.Path, config: TrainConfig) -> None:
    """Writes config.json and train.flags of a new run."""
    write_json(workdir / "config.json", {"train": config.to_dict(), **provenance()})
    lines = [
        f"# Repeats this run: python -m mtr_tf.train --flagfile={workdir}/train.flags "
        "--workdir=ANOTHER"
    ]
    for name, value in config.to_dict().items():
        if isinstance(value, list):
            value = ",".join(map(str, value))
        lines.append(f"--{name}={value}")
    write_text(workdir / "train.flags", "\n".join(lines) + "\n")


def read_config(workdir: pathlib.Path) -> TrainConfig | None:
    """The settings of the run in a directory; None where there is no run.

    Raises:
      InputError: config.json cannot be read, or holds settings of another version.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        return TrainConfig.from_dict(json.loads(path.read_text())["train"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it, or use "
            "another run directory."
        ) from error
    except InputError as error:
        raise InputError(f"{path} is of another version of mtr_tf: {error}.") from error


def check_same(workdir: pathlib.Path, old: Settings, new: Settings) -> None:
    """Raises `InputError`, with each difference, unless both describe one run."""
    before, now = old.to_dict(), new.to_dict()
    changed = [
        f"--{name} was {before[name]!r} and is {now[name]!r}"
        for name in now
        if name not in _PLACE_ONLY and before[name] != now[name]
    ]
    if changed:
        raise InputError(
            f"{workdir} holds a run with other settings: {'; '.join(changed)}. Repeat "
            "its settings to go on with it, or give another --workdir."
        )
