# SPDX-License-Identifier: Apache-2.0
"""Run directories: what they contain.

    runs/NAME/config.json      settings, facts of the data, code, versions, command
              train.flags      a flagfile that repeats the run
              model.keras      the model at the end of training
              checkpoints/     the newest ones, and best/ by the chosen metric
              train/           TensorBoard events, including those of validation
              attacks/NAME/    what `mtr_tf.attack` writes

Files appear complete or not at all; see `files`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import mtr_tf
from mtr_tf import data
from mtr_tf import files
from mtr_tf.config.settings import EXTRAS
from mtr_tf.config.settings import RESULTS
from mtr_tf.config.settings import Settings
from mtr_tf.config.settings import shortened
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.runs import checkpoints
from mtr_tf.runs import remote

if TYPE_CHECKING:
    from mtr_tf.tasks import TaskSet


def environment() -> dict[str, Any]:
    """Where a result comes from: command, commit, versions, machine, time (UTC)."""
    name = pathlib.Path(sys.argv[0]).stem.removeprefix("mtr-")
    return {
        "command": shlex.join(["python", "-m", f"mtr_tf.{name}", *sys.argv[1:]]),
        "commit": _commit(),
        "versions": versions(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """The versions of Python, mtr_tf and the libraries that it computes with."""
    result = {"python": platform.python_version(), "mtr_tf": mtr_tf.__version__}
    for package in ("tensorflow", "keras", "numpy", "tensorflow-datasets"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result[package] = importlib.metadata.version(package)
    return result


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
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def canonical(config: TrainConfig) -> TrainConfig:
    """The settings as a run keeps them, with the canonical name of every task.

    Names are resolved only here; code that gets these settings does not do so again.
    Tasks declared by a user's own data set keep their names.

    Raises:
      InputError: A task is unknown, or named twice.
    """
    resolve = functools.partial(data.canonical_tasks, config.dataset)
    adversarial = config.adversarial_tasks
    if adversarial not in ("", "main", "all"):
        adversarial = "+".join(resolve(adversarial.split("+")))
    return dataclasses.replace(
        config,
        tasks=resolve(config.tasks),
        main_tasks=resolve(config.main_tasks) if config.main_tasks else (),
        random_targets=resolve(config.random_targets) if config.random_targets else (),
        task_losses=tuple(
            _canonical_loss(pair, resolve) for pair in config.task_losses
        ),
        adversarial_tasks=adversarial,
    )


def _canonical_loss(pair: str, resolve: Callable[[str], tuple[str, ...]]) -> str:
    """Returns `autoencoder:l1` for `A:l1`; what is no pair stays as it is."""
    task, separator, loss = pair.partition(":")
    return f"{resolve(task)[0]}:{loss}" if separator else pair


def default_workdir(config: TrainConfig) -> pathlib.Path:
    """A readable name for a run, from the settings that people vary most."""
    tasks = "-".join(data.canonical_tasks(config.dataset, config.tasks))
    dataset, model = (
        re.sub(r"[^\w-]+", "-", name)  # As in my_package.data:read.
        for name in (config.dataset, config.model)
    )
    return pathlib.Path("runs", f"{dataset}-{model}-{tasks}-seed{config.seed}")


def write_config(
    workdir: pathlib.Path,
    config: TrainConfig,
    tasks: TaskSet | None = None,
    ranges: Mapping[str, Sequence[float]] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json and train.flags of a new run.

    Args:
      workdir: The run directory.
      config: The run's settings.
      tasks: The tasks of the run, as its data set has them; None if they are not known.
      ranges: The (low, high) of scalar maps in that data set, by task, if known.
      facts: Other facts to keep of the data and the model, by name (`_FACTS`).
    """
    for name, text in _settings(workdir, config, tasks, ranges, facts).items():
        files.write_text(workdir / name, text)


def _settings(
    workdir: pathlib.Path,
    config: TrainConfig,
    tasks: TaskSet | None,
    ranges: Mapping[str, Sequence[float]] | None,
    facts: Mapping[str, Any] | None,
) -> dict[str, str]:
    """The texts that `write_config` writes, by file name; same arguments."""
    content: dict[str, Any] = {"train": config.to_dict()}
    if tasks:
        content["tasks"] = [task.to_dict() for task in tasks.values()]
        content["ranges"] = {
            name: list(limits)
            for name, limits in (ranges or {}).items()
            if name in tasks
        }
    content |= {**(facts or {}), **environment()}
    flags = f"{workdir}/train.flags"
    if remote.named(flags) != flags:  # An address, but flagfiles are read from paths.
        flags = "train.flags"
    flagfile = shlex.quote(f"--flagfile={flags}")
    lines = [
        f"# To repeat this run: python -m mtr_tf.train {flagfile} --workdir=ANOTHER"
    ]
    for name, value in config.to_dict().items():
        if isinstance(value, list):
            value = ",".join(map(str, value))
        lines.append(f"--{name}={value}")
    return {
        "config.json": files.json_text(content),
        "train.flags": "\n".join(lines) + "\n",
    }


def read_tasks(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What config.json says of each task and its range; empty for older runs."""
    content = files.read_json(workdir / "config.json")
    ranges = content.get("ranges", {})
    return {
        task["name"]: {**task, "range": ranges.get(task["name"])}
        for task in content.get("tasks", ())
    }


# Keys of config.json with facts of the data and the model when the run began.
_FACTS = ("data", "normalization", "code", "init")


@dataclasses.dataclass(frozen=True)
class Begun:
    """The state of a run in its directory, begun or not.

    Attributes:
      is_run: Whether the directory holds a run.
      steps: The steps of its newest checkpoint, damaged or not; 0: there is none.
      normalization: (mean, std) per channel with which its model standardises images;
        None if not known: for new runs, older ones, and a user's own models.
    """

    is_run: bool = False
    steps: int = 0
    normalization: Sequence[Sequence[float]] | None = None


def begun(workdir: pathlib.Path) -> Begun:
    """The state of the run in a directory, whose config.json must be readable.

    Raises:
      InputError: The facts of the model in config.json are damaged.
    """
    steps, content = checkpoints.steps(workdir / "checkpoints"), _content(workdir)
    normalization = _normalization(workdir, content.get("normalization"))
    return Begun(bool(content), max(steps, default=0), normalization)


def _normalization(
    workdir: pathlib.Path, value: Any
) -> tuple[tuple[float, ...], ...] | None:
    """(mean, std) from their value in config.json; None if it has none."""
    if value is None:
        return None
    try:
        mean, std = (tuple(map(float, value[name])) for name in ("mean", "std"))
    except files.DAMAGED:
        mean, std = (), ()
    numbers = (*mean, *std)
    if not mean or len(mean) != len(std) or not all(map(math.isfinite, numbers)):
        raise InputError(
            f"{workdir / 'config.json'} must have a mean and an std for each channel "
            f'as its "normalization", got {shortened(value)}; restore it, or use '
            "another run directory."
        )
    return mean, std


def _content(workdir: pathlib.Path) -> dict[str, Any]:
    """The content of config.json; empty if there is no such file."""
    try:
        return dict(files.read_json(workdir / "config.json"))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def read_config(workdir: pathlib.Path) -> TrainConfig | None:
    """The settings of the run in a directory; None if it holds no run.

    Raises:
      InputError: config.json cannot be read, or holds settings of another version.
    """
    path = workdir / "config.json"
    try:
        return canonical(TrainConfig.from_dict(files.read_json(path)["train"]))
    except InputError as error:
        raise InputError(
            f"{path} is from another version of mtr_tf: {error}."
        ) from error
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        if is_missing and not path.is_symlink():
            return None
        raise InputError(str(files.what_failed(error))) from error
    except files.DAMAGED as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {files.reason(error)}); "
            "restore it, or use another run directory."
        ) from error


def check_workdir(workdir: pathlib.Path, config: TrainConfig, resume: bool) -> None:
    """Raises `InputError` for a directory that holds another run, or other files.

    Also if it holds this run and `resume` is false.
    """
    check_path(workdir)
    if (workdir / "conversion.json").exists():
        raise InputError(
            f"{workdir} holds weights converted by mtr_tf.convert, which training "
            "would overwrite; give another --workdir."
        )
    old_config = read_config(workdir)
    if old_config is None:
        if work := kept_work(workdir):
            raise InputError(
                f"{workdir} holds {work.relative_to(workdir)}, but no config.json "
                "that says which run it belongs to; restore config.json to continue, "
                "or give another --workdir."
            )
        return
    check_same(workdir, _extend_run(old_config, config), config)
    if not resume:
        raise InputError(
            f"{workdir} already holds a run; leave out --noresume to continue it, or "
            "give another --workdir."
        )


def check_path(workdir: pathlib.Path) -> None:
    """Raises `InputError` for a `--workdir` that cannot be used, or not be printed."""
    if not str(workdir).isprintable():  # Bytes outside UTF-8 are not, either.
        raise InputError(
            "--workdir must be a path of printable UTF-8 characters; got "
            f"{str(workdir)!r}. Give another."
        )
    if workdir.is_symlink() and not workdir.exists():
        raise InputError(
            f"--workdir must be a directory, but {workdir} is a broken link; remove "
            "or correct it, or give another."
        )
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir must be a directory, but {workdir} is a file.")


def kept_work(workdir: pathlib.Path) -> pathlib.Path | None:
    """The newest checkpoint of a run, else its model; None if it has neither."""
    folder = workdir / "checkpoints"
    for place in (folder, folder / "best"):
        if steps := checkpoints.steps(place):
            return place / checkpoints.name(steps[-1])
    model = workdir / "model.keras"
    return model if model.exists() else None


def _extend_run(old_config: TrainConfig, new_config: TrainConfig) -> TrainConfig:
    """The settings of the old run, with the new number of epochs if that is larger.

    Raises:
      InputError: With its schedule, every step's rate depends on the number of epochs.
    """
    longer = dataclasses.replace(old_config, epochs=new_config.epochs)
    if old_config.epochs >= new_config.epochs:
        return old_config
    if old_config.schedule == "cosine" and longer.that_change(RESULTS, EXTRAS) == (
        new_config.that_change(RESULTS, EXTRAS)
    ):
        raise InputError(
            f"--epochs was {old_config.epochs} and is now {new_config.epochs}, but "
            "with --schedule=cosine the rate of every step depends on it, so a longer "
            "run differs from the first step; give another --workdir, or train with "
            "--schedule=constant or step, which allow longer runs."
        )
    return longer


def begin(
    workdir: pathlib.Path,
    config: TrainConfig,
    resume: bool,
    tasks: TaskSet | None = None,
    ranges: Mapping[str, Sequence[float]] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Begins a run in a checked directory that is locked now; see `write_config`.

    If the directory holds the run with fewer epochs, it becomes the longer run: the
    finished model is deleted, and the facts of its data and model are kept.

    Raises:
      InputError: Another run has begun there meanwhile, or this one had other data,
        other code or other initial weights.
    """
    check_workdir(workdir, config, resume)
    old_config, content, facts = read_config(workdir), _content(workdir), facts or {}
    check_data(workdir, content.get("data"), facts.get("data"))
    if reason := older_targets(workdir):
        raise InputError(f"{workdir} cannot be continued: {reason}. Give another.")
    check_code(workdir, content, facts)
    if old_config and old_config.epochs >= config.epochs:
        return
    kept_facts = {name: content[name] for name in _FACTS if name in content}
    settings = _settings(workdir, config, tasks, ranges, {**facts, **kept_facts})
    if old_config:  # Only now: making `settings` might have failed.
        (workdir / "model.keras").unlink(missing_ok=True)
        remote.push(workdir, needed=True)  # Before the settings speak of a longer run.
    for name, text in settings.items():
        files.write_text(workdir / name, text)
    remote.push(workdir, needed=True)


def check_data(workdir: pathlib.Path, old_facts: Any, new_facts: Any) -> None:
    """Raises `InputError`, with each difference, unless a run is on the same data.

    Args:
      workdir: The run directory.
      old_facts: The result of `data_facts` for it.
      new_facts: The same facts of the data that are open now.
    """
    refuse_changed(
        f"{workdir} holds a run on other data",
        data_changes(old_facts, new_facts),
        "Give the data that it was trained on to continue it (--data_dir, if they were "
        "moved), or give another --workdir.",
    )


def refuse_changed(problem: str, changes: Sequence[str], advice: str) -> None:
    """Raises `InputError` if there are changes: with problem, changes and advice."""
    if changes:
        raise InputError(f"{problem}: {'; '.join(changes)}. {advice}")


def data_facts(workdir: pathlib.Path) -> Any:
    """The size of each split and the means of two of its images, from config.json.

    None for new runs and older ones.
    """
    return _content(workdir).get("data")


def older_targets(workdir: pathlib.Path) -> str:
    """How the targets of a run's settings have changed since it began; "" if not.

    Before version 0.3, `released` applied to depth alone; runs since then have a range
    in config.json. (Converted models have always given standardised pictures.)
    """
    config = read_config(workdir)
    if (
        config is None
        or (config.dataset, config.depth_target) != ("cityscapes", "released")
        or "autoencoder" not in config.tasks
        or "autoencoder" in _dict(_content(workdir).get("ranges"))
        or (workdir / "conversion.json").exists()
    ):
        return ""
    return (
        "its autoencoder was trained on pictures in [0, 1], and those of "
        "--depth_target=released are standardised now"
    )


def data_changes(old_facts: Any, new_facts: Any) -> list[str]:
    """The differences between a run's data and others, in words; see `check_data`.

    Raises:
      InputError: The means of images in config.json are not valid.
    """
    changes = []
    for split, new_split in _dict(new_facts).items():
        old_split = _dict(_dict(old_facts).get(split))
        count, means = old_split.get("examples"), old_split.get("means")
        if not _are_means(means):
            raise InputError(
                "config.json of the run must have two numbers, or null, as the means "
                f"of {split}, but it has {shortened(means)}; restore it, or use "
                "another run directory."
            )
        if count not in (None, new_split["examples"]):
            changes.append(
                f"{split} had {count} examples and has {new_split['examples']}"
            )
        elif not _may_be_equal(means, new_split["means"]):
            changes.append(f"the first or last image of {split} is another one")
    return changes


def check_code(
    workdir: pathlib.Path, old_facts: Mapping[str, Any], new_facts: Mapping[str, Any]
) -> None:
    """Raises `InputError` unless a run has the same code and initial weights.

    Args:
      workdir: The run directory.
      old_facts: The facts in config.json. Older runs have none of these, and hashes of
        different versions are not compared.
      new_facts: The facts of the same command now.
    """
    changes = []
    old_code, new_code = _dict(old_facts.get("code")), _dict(new_facts.get("code"))
    if old_code.get("versions") == new_code.get("versions"):
        changes += [
            f"the {name} is another one"
            for name in {**old_code, **new_code}
            if old_code.get(name) != new_code.get(name)
        ]
    if old_facts.get("init", new_facts.get("init")) != new_facts.get(
        "init", old_facts.get("init")
    ):
        changes.append("--init has other weights")
    refuse_changed(
        f"{workdir} holds a run of other code or weights",
        changes,
        "Restore what it was trained with to continue it, or give another --workdir.",
    )


def _are_means(value: Any) -> bool:
    """Whether a value of config.json is the means of two images, or null (unknown)."""
    return value is None or (
        isinstance(value, list)
        and len(value) == 2
        and all(type(mean) in (int, float) for mean in value)
    )


def _may_be_equal(old_means: list[float] | None, new_means: list[float] | None) -> bool:
    """Whether means are equal up to rounding, or one of them is not known."""
    if old_means is None or new_means is None:
        return True
    return all(
        math.isclose(a, b, rel_tol=1e-3)
        for a, b in zip(old_means, new_means, strict=True)
    )


def _dict(value: Any) -> dict[str, Any]:
    """A value of config.json if it is a dict; otherwise an empty dict."""
    return value if isinstance(value, dict) else {}


def check_same(workdir: pathlib.Path, old: Settings, new: Settings) -> None:
    """Raises `InputError`, with each difference, unless both describe the same run."""
    old_values, new_values = old.to_dict(), new.that_change(RESULTS, EXTRAS)
    changes = [
        f"--{name} was {old_values[name]!r} and is {new_values[name]!r}"
        for name in new_values
        if old_values[name] != new_values[name]
    ]
    refuse_changed(
        f"{workdir} holds a run with other settings",
        changes,
        "Repeat its settings to continue it, or give another --workdir.",
    )
