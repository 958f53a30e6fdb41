# SPDX-License-Identifier: Apache-2.0
"""Whether a study goes on with the data, code and weights that it was begun with.

Cells are named by their settings, which say where these are found, not what they are.
Only the user's can be others under one name; one cell of each is looked at.
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
    """Raises `InputError` where cells are of other data, code or weights than now.

    Where all is done, these need not be there.
    """
    check_starts(queue, workdir)
    sources: dict[tuple, Source] = {}  # A user's own may be read at once, as a whole.

    def opened(config: TrainConfig) -> Source:
        place = (*_place(config), *(getattr(config, name) for name in data.OPTIONS))
        place += () if ":" in config.dataset else config.tasks
        if place not in sources:
            sources[place] = building.open_source(config)
        return sources[place]

    runs = {}
    for cell in queue.cells:
        if isinstance(config := cell.config, TrainConfig):
            if cell.begins_with:  # A model of the study is not the user's to change.
                config = dataclasses.replace(config, init="")
            runs[cell.folder] = directory.canonical(config)
    _check_runs(queue, workdir, runs, opened)
    _check_attacks(queue, workdir, runs, opened)


def check_starts(queue: Queue, workdir: pathlib.Path) -> None:
    """Raises `InputError` where nets began with models that were trained again since.

    Hashes cover the settings of such a model; another machine, say, gives it other
    weights. Those that are gone, or began nothing that is done, are no matter; what is
    only begun training itself compares.
    """
    digests: dict[str, str] = {}  # Of the models that others begin with.
    changed = []
    for cell in queue.cells:
        first = cell.begins_with
        if not first or queue.state(cell) != DONE:
            continue
        before = files.read_object(workdir / cell.folder / "config.json").get("init")
        if before is None or not (workdir / first / "model.keras").exists():
            continue
        if first not in digests:
            digests[first] = initial_weights.digest(str(workdir / first))
        if before != digests[first]:
            changed.append(f"{cell.folder} began with other weights than {first} has")
    directory.refuse_changed(
        f"{workdir} holds nets whose first nets were trained again",
        changed,
        "Delete the folders of those that began with them, to train and attack them "
        "again, or restore the first nets.",
    )


def _place(config: TrainConfig) -> tuple:
    return config.dataset, config.data_dir, config.image_size


@contextlib.contextmanager
def _needed(queue: Queue) -> Iterator[None]:
    """What cannot be opened now is passed over where nothing waits for it."""
    try:
        yield
    except InputError:
        if queue.waiting():
            raise


def _check_runs(
    queue: Queue, workdir: pathlib.Path, runs: Mapping[str, TrainConfig], opened: _Open
) -> None:
    """As training does that continues a run."""
    seen = set()
    for folder, config in runs.items():
        own = ":" in config.dataset + config.model
        kind = _place(config)
        if own or config.init:
            kind += (config.model, config.tasks, config.init)
        elif not config.data_dir:
            continue
        if kind in seen:
            continue
        before = files.read_object(workdir / folder / "config.json")
        if not before.get("data"):
            continue
        seen.add(kind)
        now: dict[str, Any] = {}
        with _needed(queue):
            source = opened(config) if own or config.data_dir else None
            if source:
                examples = config.train_examples or len(source.columns("train"))
                now["data"] = job.data_facts(source, examples)
            now |= job.own_facts(config, source)
        directory.check_data(workdir / folder, before["data"], now.get("data"))
        directory.check_code(workdir / folder, before, now)


def _check_attacks(
    queue: Queue, workdir: pathlib.Path, runs: Mapping[str, TrainConfig], opened: _Open
) -> None:
    """By the images that their records tell of, and the code of losses and metrics."""
    seen = set()
    for cell in queue.cells:
        config = cell.config
        if not isinstance(config, AttackConfig) or queue.state(cell) != DONE:
            continue
        folder, run = workdir / cell.folder, runs[cell.needs[0]]
        given, record = _data_of(config, run), {}
        own = ":" in given.dataset
        kind = (*_place(given), config.split, config.num_examples)
        kind += given.tasks if own else ()
        if kind in seen or not (own or given.data_dir):
            continue
        with contextlib.suppress(*files.DAMAGED):
            record = files.read_json(folder / cell.files[0])[0]
        if not record.get("images"):  # Of an older version.
            continue
        seen.add(kind)
        if not (own or given.image_size or given.dataset == run.dataset):
            size = side_by_side.size_of(record)  # That of the model's input.
            given = dataclasses.replace(given, image_size=size)
        changed: list[str] = []
        with _needed(queue):
            source = opened(given)
            columns = source.columns(config.split)
            count = config.num_examples or len(columns)
            images = cell_store.images_fingerprint(columns, count)
            changed += _other_images(record, {"images": images})
            if own:
                changed += _other_code(folder, record, source)
        directory.refuse_changed(
            f"{folder} holds an attack on other data or code",
            changed,
            "Restore what it was done with to continue, delete such attacks to do them "
            "again, or give another --workdir.",
        )


def _data_of(config: AttackConfig, run: TrainConfig) -> TrainConfig:
    """The settings of a training on the data that a run is attacked on."""
    name = config.dataset or run.dataset
    tasks = data.canonical_tasks(name, config.tasks or run.tasks)
    trained = run if name == run.dataset else None
    base = trained or TrainConfig(dataset=name, tasks=tasks)
    return dataclasses.replace(
        base,
        tasks=tasks,
        data_dir=config.data_dir or base.data_dir,
        image_size=config.image_size or base.image_size,
        **loading.data_options(config, trained),
    )


def _other_images(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if side_by_side.other_size(before, now):
        old, new = map(side_by_side.size_of, (before, now))
        return [f"the images had {old} pixels and have {new}"]
    return ["the images are others"] if side_by_side.other_images(before, now) else []


def _other_code(
    folder: pathlib.Path, record: Mapping[str, Any], source: Source
) -> list[str]:
    """The tasks whose own loss or metrics differ from those of finished work.

    Hashes of other versions cannot be compared.
    """
    made = files.read_object(folder / "settings.json").get("versions")
    if made != directory.versions():
        return []
    kept = [codes for path in _work(folder, record) if (codes := _codes(path))]
    tasks = source.info.tasks
    return [
        f"the loss or a metric of {name} is another one"
        for name in (kept[0] if kept else ())
        if name in tasks
        and own_code.digest(tasks[name]) not in [codes.get(name) for codes in kept]
    ]


def _work(folder: pathlib.Path, record: Mapping[str, Any]) -> Iterable[pathlib.Path]:
    """Files of finished work that results are of."""
    if rows := record.get("clean_rows"):
        return [(folder / rows).with_suffix(".json")]
    return sorted((folder / "measures").glob("*.json"))


def _codes(path: pathlib.Path) -> dict[str, str]:
    """{task: hash of its own code} of the key of finished work."""
    with contextlib.suppress(*files.DAMAGED):
        tasks = files.read_object(path)["key"]["own_tasks"]
        return {task["name"]: task["code"] for task in tasks if "code" in task}
    return {}
