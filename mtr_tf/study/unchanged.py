# SPDX-License-Identifier: Apache-2.0
"""Checks that a study goes on with the data, code and weights that it began with.

Cells are named by their settings, which say where these are, not what they are. Only
those of a user can change under the same name; one cell for each of them is checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from mtr_tf import data
from mtr_tf import files
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.evaluation import cell_store
from mtr_tf.runs import building
from mtr_tf.runs import directory
from mtr_tf.runs import initial_weights
from mtr_tf.runs import loading
from mtr_tf.show import side_by_side
from mtr_tf.study.queue import DONE
from mtr_tf.study.queue import Queue
from mtr_tf.tasks import own_code
from mtr_tf.training import job

_Open = Callable[[TrainConfig], Source]


def check(queue: Queue, workdir: pathlib.Path) -> None:
    """Raises `InputError` if cells were done with other data, code or weights than now.

    If all cells are done, these need not exist any more.
    """
    check_starts(queue, workdir)
    sources: dict[tuple, Source] = {}  # Opened once: a user's own may read all at once.

    def open_source(config: TrainConfig) -> Source:
        key = (*_data_key(config), *(getattr(config, name) for name in data.OPTIONS))
        key += () if ":" in config.dataset else config.tasks
        if key not in sources:
            sources[key] = building.open_source(config)
        return sources[key]

    runs = {}
    for cell in queue.cells:
        if isinstance(config := cell.config, TrainConfig):
            if cell.begins_with:  # A model of the study is not the user's to change.
                config = dataclasses.replace(config, init="")
            runs[cell.folder] = directory.canonical(config)
    _check_runs(queue, workdir, runs, open_source)
    _check_attacks(queue, workdir, runs, open_source)


def check_starts(queue: Queue, workdir: pathlib.Path) -> None:
    """Raises `InputError` if nets began with models that were trained again since.

    Hashes cover the settings of such a model, but another machine, say, gives it other
    weights. Models that are gone, or that no finished cell began with, are ignored; in
    unfinished cells, training itself compares the weights.
    """
    digests: dict[str, str] = {}  # Of models that others begin with.
    changes = []
    for cell in queue.cells:
        start = cell.begins_with
        if not start or queue.state(cell) != DONE:
            continue
        digest = files.read_object(workdir / cell.folder / "config.json").get("init")
        if digest is None or not (workdir / start / "model.keras").exists():
            continue
        if start not in digests:
            digests[start] = initial_weights.digest(str(workdir / start))
        if digest != digests[start]:
            changes.append(f"{cell.folder} began with other weights than {start} has")
    directory.refuse_changed(
        f"{workdir} holds nets whose first nets were trained again",
        changes,
        "Delete the folders of those that began with them, to train and attack them "
        "again, or restore the first nets.",
    )


def _data_key(config: TrainConfig) -> tuple:
    return config.dataset, config.data_dir, config.image_size


@contextlib.contextmanager
def _raise_if_waiting(queue: Queue) -> Iterator[None]:
    """A context that ignores `InputError` unless cells are waiting to run."""
    try:
        yield
    except InputError:
        if queue.waiting():
            raise


def _check_runs(
    queue: Queue,
    workdir: pathlib.Path,
    runs: Mapping[str, TrainConfig],
    open_source: _Open,
) -> None:
    """Makes the checks on runs that training makes when it continues one."""
    keys = set()
    for folder, config in runs.items():
        has_own_code = ":" in config.dataset + config.model
        key = _data_key(config)
        if has_own_code or config.init:
            key += (config.model, config.tasks, config.init)
        elif not config.data_dir:
            continue
        if key in keys:
            continue
        old = files.read_object(workdir / folder / "config.json")
        if not old.get("data"):
            continue
        keys.add(key)
        new: dict[str, Any] = {}
        with _raise_if_waiting(queue):
            source = open_source(config) if has_own_code or config.data_dir else None
            if source:
                examples = config.train_examples or len(source.columns("train"))
                new["data"] = job.data_facts(source, examples)
            new |= job.own_facts(config, source)
        directory.check_data(workdir / folder, old["data"], new.get("data"))
        directory.check_code(workdir / folder, old, new)


def _check_attacks(
    queue: Queue,
    workdir: pathlib.Path,
    runs: Mapping[str, TrainConfig],
    open_source: _Open,
) -> None:
    """Checks the images of attacks and the user's code of losses and metrics."""
    keys = set()
    for cell in queue.cells:
        config = cell.config
        if not isinstance(config, AttackConfig) or queue.state(cell) != DONE:
            continue
        folder, run = workdir / cell.folder, runs[cell.needs[0]]
        data_config, record = _data_config(config, run), {}
        has_own_data = ":" in data_config.dataset
        key = (*_data_key(data_config), config.split, config.num_examples)
        key += data_config.tasks if has_own_data else ()
        if key in keys or not (has_own_data or data_config.data_dir):
            continue
        with contextlib.suppress(*files.DAMAGED):
            record = files.read_json(folder / cell.files[0])[0]
        if not record.get("images"):  # Of an older version.
            continue
        keys.add(key)
        if not (
            has_own_data or data_config.image_size or data_config.dataset == run.dataset
        ):
            size = side_by_side.size_of(record)  # The model's input size.
            data_config = dataclasses.replace(data_config, image_size=size)
        changes: list[str] = []
        with _raise_if_waiting(queue):
            source = open_source(data_config)
            columns = source.columns(config.split)
            count = config.num_examples or len(columns)
            images = cell_store.images_fingerprint(columns, count)
            changes += _image_changes(record, {"images": images})
            if has_own_data:
                changes += _code_changes(folder, record, source)
        directory.refuse_changed(
            f"{folder} holds an attack on other data or code",
            changes,
            "Restore what it was done with to continue, delete such attacks to do them "
            "again, or give another --workdir.",
        )


def _data_config(config: AttackConfig, run: TrainConfig) -> TrainConfig:
    """Training settings for the data that a run is attacked on."""
    name = config.dataset or run.dataset
    tasks = data.canonical_tasks(name, config.tasks or run.tasks)
    same_run = run if name == run.dataset else None
    base = same_run or TrainConfig(dataset=name, tasks=tasks)
    return dataclasses.replace(
        base,
        tasks=tasks,
        data_dir=config.data_dir or base.data_dir,
        image_size=config.image_size or base.image_size,
        **loading.data_options(config, same_run),
    )


def _image_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    if side_by_side.other_size(old, new):
        old_size, new_size = map(side_by_side.size_of, (old, new))
        return [f"the images had {old_size} pixels and have {new_size}"]
    return ["the images are others"] if side_by_side.other_images(old, new) else []


def _code_changes(
    folder: pathlib.Path, record: Mapping[str, Any], source: Source
) -> list[str]:
    """A sentence for each task whose own loss or metrics have changed.

    Hashes made by other versions cannot be compared.
    """
    versions = files.read_object(folder / "settings.json").get("versions")
    if versions != directory.versions():
        return []
    work_codes = [
        codes for path in _work_files(folder, record) if (codes := _codes(path))
    ]
    tasks = source.info.tasks
    return [
        f"the loss or a metric of {name} is another one"
        for name in (work_codes[0] if work_codes else ())
        if name in tasks
        and own_code.digest(tasks[name])
        not in [codes.get(name) for codes in work_codes]
    ]


def _work_files(
    folder: pathlib.Path, record: Mapping[str, Any]
) -> Iterable[pathlib.Path]:
    """The files of finished work that results come from."""
    if rows := record.get("clean_rows"):
        return [(folder / rows).with_suffix(".json")]
    return sorted((folder / "measures").glob("*.json"))


def _codes(path: pathlib.Path) -> dict[str, str]:
    """{task: hash of its own code}, from the key in a file of finished work."""
    with contextlib.suppress(*files.DAMAGED):
        tasks = files.read_object(path)["key"]["own_tasks"]
        return {task["name"]: task["code"] for task in tasks if "code" in task}
    return {}
