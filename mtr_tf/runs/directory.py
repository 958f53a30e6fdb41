# SPDX-License-Identifier: Apache-2.0
"""Run directories: what is in one, and how files get there.

    runs/NAME/config.json      settings, facts of the data, code, versions, command
              train.flags      a flagfile that repeats the run
              model.keras      the model at the end of training
              checkpoints/     the newest ones, and best/ by the named metric
              train/           TensorBoard events, of validation too
              attacks/NAME/    what `mtr_tf.attack` writes

Files appear complete or not at all: each is written under another name, flushed and
renamed.
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
    """What a result is traced by: command, commit, versions, machine, time (UTC)."""
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
    """Of Python, of mtr_tf, and of what it computes with."""
    found = {"python": platform.python_version(), "mtr_tf": mtr_tf.__version__}
    for package in ("tensorflow", "keras", "numpy", "tensorflow-datasets"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


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


def canonical(config: TrainConfig) -> TrainConfig:
    """The settings as a run keeps them: every task by its one name.

    Names are resolved only here; code that gets these settings does not resolve them
    again. Tasks declared by a user's own data set keep their names.

    Raises:
      InputError: A task is unknown, or named twice.
    """
    own = functools.partial(data.canonical_tasks, config.dataset)
    adversarial = config.adversarial_tasks
    if adversarial not in ("", "main", "all"):
        adversarial = "+".join(own(adversarial.split("+")))
    return dataclasses.replace(
        config,
        tasks=own(config.tasks),
        main_tasks=own(config.main_tasks) if config.main_tasks else (),
        random_targets=own(config.random_targets) if config.random_targets else (),
        task_losses=tuple(_canonical_loss(pair, own) for pair in config.task_losses),
        adversarial_tasks=adversarial,
    )


def _canonical_loss(pair: str, own: Callable[[str], tuple[str, ...]]) -> str:
    """`A:l1` as `autoencoder:l1`; what is no pair as it is."""
    task, separator, loss = pair.partition(":")
    return f"{own(task)[0]}:{loss}" if separator else pair


def default_workdir(config: TrainConfig) -> pathlib.Path:
    """A readable name for a run, of what people vary most."""
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
      tasks: Those of the run, as its data set has them; None where nobody knows.
      ranges: By task the (low, high) of a scalar map in that data set, if known.
      facts: What else is kept of the data and the model, by name (`Begun`).
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
    """What `write_config` writes, by the files' names; arguments are its own."""
    known: dict[str, Any] = {}
    if tasks:
        ranges = {
            name: list(of) for name, of in (ranges or {}).items() if name in tasks
        }
        known = {"tasks": [task.to_dict() for task in tasks.values()], "ranges": ranges}
    content = {"train": config.to_dict(), **known, **(facts or {}), **environment()}
    flags = f"{workdir}/train.flags"
    if remote.named(flags) != flags:  # At an address; flagfiles are read from paths.
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
    """What config.json says of each task and its range; little for older runs."""
    content = files.read_json(workdir / "config.json")
    ranges = content.get("ranges", {})
    return {
        task["name"]: {**task, "range": ranges.get(task["name"])}
        for task in content.get("tasks", ())
    }


# What config.json keeps of the data and the model as they were when the run began.
_FACTS = ("data", "normalization", "code", "init")


@dataclasses.dataclass(frozen=True)
class Begun:
    """What a directory has of a run that may have been begun before.

    Attributes:
      is_run: Whether it is that of a run.
      steps: How many are done and kept in a checkpoint; damaged ones count too.
      normalization: (mean, std) per channel that its model standardises images with;
        None where that is not known: for new runs, older ones, and models of a user's.
    """

    is_run: bool = False
    steps: int = 0
    normalization: Sequence[Sequence[float]] | None = None


def begun(workdir: pathlib.Path) -> Begun:
    """What there is of a run in a directory, whose config.json can be read.

    Raises:
      InputError: What config.json keeps of the model is damaged.
    """
    kept, content = checkpoints.steps(workdir / "checkpoints"), _content(workdir)
    normalization = _normalization(workdir, content.get("normalization"))
    return Begun(bool(content), max(kept, default=0), normalization)


def _normalization(
    workdir: pathlib.Path, kept: Any
) -> tuple[tuple[float, ...], ...] | None:
    """(mean, std) as config.json keeps them; None where it does not."""
    if kept is None:
        return None
    try:
        mean, std = (tuple(map(float, kept[name])) for name in ("mean", "std"))
    except files.DAMAGED:
        mean, std = (), ()
    numbers = (*mean, *std)
    if not mean or len(mean) != len(std) or not all(map(math.isfinite, numbers)):
        raise InputError(
            f"{workdir / 'config.json'} must have a mean and an std for each channel "
            f'as its "normalization", got {shortened(kept)}; restore it, or use '
            "another run directory."
        )
    return mean, std


def _content(workdir: pathlib.Path) -> dict[str, Any]:
    """All of config.json; empty where there is none."""
    try:
        return dict(files.read_json(workdir / "config.json"))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def read_config(workdir: pathlib.Path) -> TrainConfig | None:
    """The settings of the run in a directory; None where there is no run.

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
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise InputError(str(files.what_failed(error))) from error
        return None
    except OSError as error:
        raise InputError(str(files.what_failed(error))) from error
    except files.DAMAGED as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {files.reason(error)}); "
            "restore it, or use another run directory."
        ) from error


def check_workdir(workdir: pathlib.Path, config: TrainConfig, resume: bool) -> None:
    """Raises `InputError` for a directory that holds another run, or something else.

    Also for one that holds this run, unless it may be resumed.
    """
    check_path(workdir)
    if (workdir / "conversion.json").exists():
        raise InputError(
            f"{workdir} holds weights converted by mtr_tf.convert, which training "
            "would overwrite; give another --workdir."
        )
    old = read_config(workdir)
    if old is None:
        if found := kept_work(workdir):
            raise InputError(
                f"{workdir} holds {found.relative_to(workdir)}, but no config.json "
                "that says which run it belongs to; restore config.json to continue, "
                "or give another --workdir."
            )
        return
    check_same(workdir, _as_long(old, config), config)
    if not resume:
        raise InputError(
            f"{workdir} already holds a run; leave out --noresume to continue it, or "
            "give another --workdir."
        )


def check_path(workdir: pathlib.Path) -> None:
    """Raises `InputError` for a `--workdir` that can be none, or not be written of."""
    if not str(workdir).isprintable():  # Nor is what stands for bytes outside UTF-8.
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
    """The newest checkpoint of a run, else its model; None where it has neither."""
    folder = workdir / "checkpoints"
    for place in (folder, folder / "best"):
        if steps := checkpoints.steps(place):
            return place / checkpoints.name(steps[-1])
    model = workdir / "model.keras"
    return model if model.exists() else None


def _as_long(old: TrainConfig, new: TrainConfig) -> TrainConfig:
    """The old run with the new one's epochs, if these are more, and only more.

    Raises:
      InputError: Under its schedule the number of epochs decides every step's rate.
    """
    longer = dataclasses.replace(old, epochs=new.epochs)
    if old.epochs >= new.epochs:
        return old
    if old.schedule == "cosine" and longer.that_change(RESULTS, EXTRAS) == (
        new.that_change(RESULTS, EXTRAS)
    ):
        raise InputError(
            f"--epochs was {old.epochs} and is now {new.epochs}, but with "
            "--schedule=cosine the rate of every step depends on it, so a longer run "
            "differs from the first step; give another --workdir, or train with "
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
    """Makes a checked directory, which is locked now, that of a run (`write_config`).

    Or that of a longer one: then its model is not the end any more, and goes. What is
    kept of its data and model stays.

    Raises:
      InputError: Another run came first meanwhile, or this one was on other data, or of
        other code or initial weights.
    """
    check_workdir(workdir, config, resume)
    old, content, facts = read_config(workdir), _content(workdir), facts or {}
    check_data(workdir, content.get("data"), facts.get("data"))
    if changed := older_targets(workdir):
        raise InputError(f"{workdir} cannot be continued: {changed}. Give another.")
    check_code(workdir, content, facts)
    if old and old.epochs >= config.epochs:
        return
    kept = {name: content[name] for name in _FACTS if name in content}
    settings = _settings(workdir, config, tasks, ranges, {**facts, **kept})
    if old:  # Whose model stays where the settings cannot be written as files.
        (workdir / "model.keras").unlink(missing_ok=True)
        remote.push(workdir, needed=True)  # Before the settings speak of a longer run.
    for name, text in settings.items():
        files.write_text(workdir / name, text)
    remote.push(workdir, needed=True)


def check_data(workdir: pathlib.Path, before: Any, now: Any) -> None:
    """Raises `InputError`, with each difference, unless a run is on the same data.

    Args:
      workdir: The run directory.
      before: What `data_facts` gives of it.
      now: The same of the data that are open.
    """
    refuse_changed(
        f"{workdir} holds a run on other data",
        data_changes(before, now),
        "Give the data that it was trained on to continue it (--data_dir, if they were "
        "moved), or give another --workdir.",
    )


def refuse_changed(held: str, changed: Sequence[str], cure: str) -> None:
    """Raises `InputError` where something has changed: what is held, each, the cure."""
    if changed:
        raise InputError(f"{held}: {'; '.join(changed)}. {cure}")


def data_facts(workdir: pathlib.Path) -> Any:
    """By split its size and the means of two images, as config.json has them.

    Nothing for new and for older runs.
    """
    return _content(workdir).get("data")


def older_targets(workdir: pathlib.Path) -> str:
    """How targets of a run's settings were others when it began; "" if they were not.

    Until version 0.3 `released` meant depth alone; a range was kept since then. (Models
    that were converted have always made standardised pictures.)
    """
    config = read_config(workdir)
    if (
        config is None
        or (config.dataset, config.depth_target) != ("cityscapes", "released")
        or "autoencoder" not in canonical(config).tasks
        or "autoencoder" in _dict(_content(workdir).get("ranges"))
        or (workdir / "conversion.json").exists()
    ):
        return ""
    return (
        "its autoencoder was trained on pictures in [0, 1], and those of "
        "--depth_target=released are standardised now"
    )


def data_changes(before: Any, now: Any) -> list[str]:
    """How data differ from those of a run, in words; see `check_data`.

    Raises:
      InputError: What config.json has as the means of images are none.
    """
    changed = []
    for split, facts in _dict(now).items():
        old = _dict(_dict(before).get(split))
        count, means = old.get("examples"), old.get("means")
        if not _are_means(means):
            raise InputError(
                "config.json of the run must have two numbers, or null, as the means "
                f"of {split}, but it has {shortened(means)}; restore it, or use "
                "another run directory."
            )
        if count not in (None, facts["examples"]):
            changed.append(f"{split} had {count} examples and has {facts['examples']}")
        elif not _may_be_equal(means, facts["means"]):
            changed.append(f"the first or last image of {split} is another one")
    return changed


def check_code(
    workdir: pathlib.Path, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Raises `InputError` unless a run is of the same code and initial weights.

    Args:
      workdir: The run directory.
      before: The facts in config.json. Older runs have none of these, and hashes of
        other versions cannot be compared.
      now: Those of the same command now.
    """
    changed = []
    old, new = _dict(before.get("code")), _dict(now.get("code"))
    if old.get("versions") == new.get("versions"):
        different = [what for what in {**old, **new} if old.get(what) != new.get(what)]
        changed += [f"the {what} is another one" for what in different]
    if before.get("init", now.get("init")) != now.get("init", before.get("init")):
        changed.append("--init has other weights")
    refuse_changed(
        f"{workdir} holds a run of other code or weights",
        changed,
        "Restore what it was trained with to continue it, or give another --workdir.",
    )


def _are_means(value: Any) -> bool:
    """Whether a value of config.json is that of two images' means; null: not known."""
    return value is None or (
        isinstance(value, list)
        and len(value) == 2
        and all(type(mean) in (int, float) for mean in value)
    )


def _may_be_equal(before: list[float] | None, now: list[float] | None) -> bool:
    """Whether means are the same up to rounding, or one of the two is not known."""
    if before is None or now is None:
        return True
    return all(
        math.isclose(a, b, rel_tol=1e-3) for a, b in zip(before, now, strict=True)
    )


def _dict(value: Any) -> dict[str, Any]:
    """A value of config.json as a dict; empty if it is none."""
    return value if isinstance(value, dict) else {}


def check_same(workdir: pathlib.Path, old: Settings, new: Settings) -> None:
    """Raises `InputError`, with each difference, unless both describe one run."""
    before, now = old.to_dict(), new.that_change(RESULTS, EXTRAS)
    changed = [
        f"--{name} was {before[name]!r} and is {now[name]!r}"
        for name in now
        if before[name] != now[name]
    ]
    refuse_changed(
        f"{workdir} holds a run with other settings",
        changed,
        "Repeat its settings to continue it, or give another --workdir.",
    )
